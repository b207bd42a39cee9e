"""Statistics, against a published table and against noise whose truth is known."""

import numpy as np
import pytest

from pipeline.core import statistics
from pipeline.core.statistics import MEDIAN, PERCENTILE_90, Blocks, Estimate, early_stopping_discards, estimate, p90_estimate
from pipeline.core.statistics import ratio_estimate as ratio

MLPERF_P90 = {1: 64, 2: 81, 3: 97, 4: 113, 5: 127, 6: 142, 7: 156, 8: 170, 9: 183, 10: 197}
"""Over-latency runs that are allowed -> the least runs that allow so many."""


def blocks(seed: int, processes: int = 2, count: int = 8, runs: int = 8, scale: float = 1.0, noise: float = 0.02) -> Blocks:
    """processes x count x runs of `scale` ms, normally distributed; `noise` is their MAD over their median."""
    values = scale * (1 + 1.4826 * noise * np.random.default_rng(seed).standard_normal((processes, count, runs)))
    return tuple(tuple(tuple(map(float, block)) for block in process) for process in values)


def times(runs: Blocks, factor: np.ndarray) -> Blocks:
    """Every block multiplied with its own factor, processes x blocks."""
    return tuple(
        tuple(tuple(run * f for run in block) for block, f in zip(process, factors, strict=True))
        for process, factors in zip(runs, factor, strict=True)
    )


@pytest.mark.parametrize(("allowed", "least"), MLPERF_P90.items())
def test_the_p90_sets_aside_as_many_runs_as_mlperf_allows(allowed: int, least: int) -> None:
    """t runs over the latency need so many runs in all; t - 1 of them are set aside"""
    assert early_stopping_discards(least, 0.90) == allowed - 1
    assert early_stopping_discards(least - 1, 0.90) == (allowed - 2 if allowed > 1 else None)


def test_the_p99_needs_662_runs() -> None:
    assert early_stopping_discards(661, 0.99) is None
    assert early_stopping_discards(662, 0.99) == 0


def test_below_64_runs_there_is_no_p90() -> None:
    """7 x 9 = 63 runs, 8 x 8 = 64"""
    assert p90_estimate(blocks(0, processes=1, count=7, runs=9)) is None
    assert p90_estimate(blocks(0, processes=1, count=8, runs=8)) is not None


def test_the_p90_of_81_runs_is_the_second_slowest() -> None:
    """1, 2, ... 81 ms: one run is set aside; the plain 90th percentile is the near end of the interval"""
    runs: Blocks = ((tuple(float(run) for run in range(81, 0, -1)),),)

    assert p90_estimate(runs) == Estimate(80.0, 73.0, 80.0)


def test_with_99_percent_confidence_the_p90_is_no_lower_than_the_true_one() -> None:
    """exponential runs, whose 90th percentile is ln 10"""
    generator = np.random.default_rng(0)
    found = [p90_estimate(((tuple(generator.exponential(size=128)),),)) for _ in range(1000)]

    assert np.mean([p90.value >= np.log(10) for p90 in found if p90]) >= 0.985


def test_an_estimate_contains_its_point_and_is_the_plain_statistic() -> None:
    runs = blocks(3, processes=1)

    for statistic, plain in ((MEDIAN, np.median(runs[0])), (PERCENTILE_90, np.percentile(runs, 90))):
        found = estimate(runs, statistic)
        assert found.low <= found.value <= found.high
        assert found.value == pytest.approx(plain)


@pytest.mark.parametrize("statistic", [MEDIAN, PERCENTILE_90])
def test_intervals_shrink_with_more_data(statistic: statistics.Statistic) -> None:
    """16 times the blocks: a quarter of the width, on the average of ten draws"""

    def width(count: int, *, relative: bool) -> float:
        pairs = [(blocks(2 * seed, count=count), blocks(2 * seed + 1, count=count)) for seed in range(10)]
        found = [ratio(*pair, statistic) if relative else estimate(pair[0], statistic) for pair in pairs]
        return float(np.mean([each.high - each.low for each in found if each]))

    for relative in (False, True):
        assert width(128, relative=relative) < width(8, relative=relative) / 2


def test_drift_that_both_halves_share_cancels_in_the_ratio() -> None:
    """the machine slows by half while it measures: both figures wander, their ratio does not"""
    ramp = np.linspace(1.0, 1.5, 16).reshape(2, 8)
    runs, reference = blocks(1, scale=2.0, noise=0.002), blocks(2, scale=1.0, noise=0.002)
    absolute = estimate(times(runs, ramp), MEDIAN)
    relative = ratio(times(runs, ramp), times(reference, ramp), MEDIAN)
    steady = ratio(runs, reference, MEDIAN)

    assert relative is not None
    assert steady is not None
    assert absolute.high / absolute.low > 1.1
    assert relative.high / relative.low < 1.02
    assert relative.value == pytest.approx(steady.value, rel=0.01)


def test_the_same_runs_give_the_same_interval_always() -> None:
    assert estimate(blocks(5), MEDIAN) == estimate(blocks(5), MEDIAN)
    assert ratio(blocks(5), blocks(6), MEDIAN) == ratio(blocks(5), blocks(6), MEDIAN)


def test_without_a_reference_there_is_no_ratio() -> None:
    assert ratio(blocks(0), (), MEDIAN) is None
    assert ratio(blocks(0), ((), ()), MEDIAN) is None


def test_the_interval_of_a_ratio_also_holds_for_other_minutes() -> None:
    """A file against a copy of itself, five quiet processes: in each minute their ratio is off by 0.8 %, as it was measured."""
    drift = 1 + statistics.DRIFT * np.random.default_rng(7).standard_normal(150)
    found = [
        ratio(blocks(2 * seed, 5, scale=scale, noise=0.01), blocks(2 * seed + 1, 5, noise=0.01), MEDIAN)
        for seed, scale in enumerate(drift)
    ]
    alone = [each.low <= 1 <= each.high for each in found if each]
    allowed = [each.low <= 1 <= each.high for each in map(statistics.allow_drift, filter(None, found))]

    assert np.mean(alone) < 0.85
    assert np.mean(allowed) >= 0.93


def test_an_exact_ratio_gets_the_interval_of_the_drift_alone() -> None:
    """1.96 standard deviations of 0.8 %"""
    exact = statistics.allow_drift(Estimate.exact(0.5))

    assert (exact.low, exact.value, exact.high) == pytest.approx((0.5 * 0.98432, 0.5, 0.5 * 1.01568))


def covered_by(seed: int, statistic: statistics.Statistic, **shape: int) -> bool:
    """A against A: whether the interval of the ratio holds 1."""
    found = ratio(blocks(2 * seed, **shape), blocks(2 * seed + 1, **shape), statistic)
    return found is not None and found.low <= 1 <= found.high


@pytest.mark.parametrize("statistic", [MEDIAN, PERCENTILE_90])
@pytest.mark.parametrize(("processes", "trials", "share"), [(5, 200, 0.95), (2, 600, 0.94)], ids=["final", "search"])
def test_a_file_is_not_found_different_from_itself(
    statistic: statistics.Statistic, processes: int, trials: int, share: float
) -> None:
    """the profiles' own efforts, 5 or 2 processes x 8 blocks x 8 runs, at 2 % noise: 95 % of the intervals hold 1

    With 2 processes it is 95.6 % in the long run, and 600 trials tell that to one percent.
    """
    assert np.mean([covered_by(seed, statistic, processes=processes) for seed in range(trials)]) >= share


def simulated(seed: int, truth: float, processes: int, between: float) -> tuple[Blocks, Blocks]:
    """A file that takes `truth` times as long as its reference; 8 blocks of 4 runs.

    Each process has a speed for both files, which cancels, and one for each file (`between`), which does not. Blocks differ by
    half of that. Single runs are up to 2 % longer on the average.
    """
    generator = np.random.default_rng(seed)
    speed = np.exp(0.1 * generator.standard_normal((processes, 1, 1)))

    def runs(scale: float) -> Blocks:
        own = np.exp(between * generator.standard_normal((processes, 1, 1)))
        block = np.exp(between / 2 * generator.standard_normal((processes, 8, 1)))
        values = scale * speed * own * block * (1 + generator.exponential(0.02, (processes, 8, 4)))
        return tuple(tuple(map(tuple, process)) for process in values.tolist())

    return runs(truth), runs(1.0)


def share_covered(trials: int, truth: float, processes: int, between: float, statistic: statistics.Statistic = MEDIAN) -> float:
    """The share of simulated measurements whose interval holds the truth."""
    found = [ratio(*simulated(seed, truth, processes, between), statistic) for seed in range(trials)]
    return float(np.mean([each is not None and each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize(("processes", "between"), [(3, 0.1), (5, 0.03), (8, 0.01)])
def test_95_percent_of_the_intervals_hold_the_ratio_where_processes_differ(processes: int, between: float) -> None:
    """150 measurements, of which chance takes 2 points; a bootstrap has 80 to 91 %"""
    assert share_covered(150, 0.5, processes, between) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("processes", [5, 8])
def test_coverage_is_nominal_over_2000_measurements(processes: int, between: float) -> None:
    """a file against a copy of itself, where a miss is a false alarm"""
    assert share_covered(2000, 1.0, processes, between) >= 0.945


@pytest.mark.parametrize("statistic", [MEDIAN, PERCENTILE_90])
def test_a_copy_of_a_file_is_called_different_in_at_most_5_percent_of_the_cases(statistic: statistics.Statistic) -> None:
    """five processes that differ by 3 %"""
    assert 1 - share_covered(150, 1.0, 5, 0.03, statistic) <= 0.05


def test_the_jackknife_of_the_median_is_students_t_over_the_processes() -> None:
    """ratios of 0.4, 0.5 and 0.6 with equal references and no spread inside: 0.5 +- 4.303 * 0.1 / sqrt(3)"""
    file = tuple((tuple([each] * 4),) for each in (0.4, 0.5, 0.6))
    found = ratio(file, (((1.0,) * 4,),) * 3, MEDIAN)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.5 - 4.303 * 0.1 / 3**0.5, 0.5 + 4.303 * 0.1 / 3**0.5))


@pytest.mark.parametrize("degrees", [1, 4, 8, 9, 15, 39, 1000])
def test_students_quantile_is_scipys(degrees: int) -> None:
    from scipy.stats import t

    assert statistics.student(degrees) == pytest.approx(t.ppf(0.975, degrees), abs=1e-3)


def test_two_processes_that_agree_are_judged_by_the_bootstrap() -> None:
    """ratios of 0.49 and 0.51: Student's t with one degree of freedom would reach from 0.37 to 0.63"""
    file = tuple((tuple([each] * 4),) * 16 for each in (0.49, 0.51))
    found = ratio(file, (((1.0,) * 4,) * 16,) * 2, MEDIAN)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.49, 0.51))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 8)])
def test_a_handful_of_blocks_is_not_taken_for_certainty(shape: tuple[int, int]) -> None:
    """a slow network meets the time limit after a block or two: what is left has an interval that is worth its name"""
    processes, count = shape

    assert np.mean([covered_by(seed, MEDIAN, processes=processes, count=count) for seed in range(200)]) >= 0.90


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_a_slowdown_of_five_percent_is_found(noise: float) -> None:
    found = [ratio(blocks(2 * seed, scale=1.05, noise=noise), blocks(2 * seed + 1, noise=noise), MEDIAN) for seed in range(100)]

    assert np.mean([each is not None and each.low > 1 for each in found]) >= 0.99
    assert np.mean([each.value for each in found if each]) == pytest.approx(1.05, abs=0.005)


def test_unlike_numbers_of_blocks_are_no_obstacle() -> None:
    """one process met its time limit after 3 blocks: the point sees all runs, the interval as many as both have"""
    runs = (blocks(1, processes=1, count=3)[0], blocks(2, processes=1, count=8)[0])
    found = estimate(runs, MEDIAN)

    assert found.value == pytest.approx(np.mean([np.median(process) for process in runs]))
    assert found.low < found.value < found.high


def test_the_median_is_the_mean_of_the_processes_medians() -> None:
    """medians of 10, 30 and 30; the median of all runs together is 30"""
    fast, slow = ((9.0, 10.0, 11.0),), ((29.0, 30.0, 31.0),)

    assert estimate((fast, slow, slow), MEDIAN).value == pytest.approx(70 / 3)


def test_processes_of_two_kinds_are_told_apart_from_a_faster_file() -> None:
    """every other process is a quarter slower, for file and reference in another order: the interval of 20 holds the truth and is 16 % wide"""
    kinds = np.where(np.arange(20) % 2, 1.25, 1.0)[:, None] * np.ones((20, 8))
    found = []
    for seed in range(50):
        shuffled = np.random.default_rng(seed).permutation(kinds)
        runs, reference = blocks(2 * seed, 20, scale=0.47), blocks(2 * seed + 1, 20)
        found.append(ratio(times(runs, shuffled), times(reference, kinds), MEDIAN))

    assert np.mean([each.low <= 0.47 <= each.high for each in found if each]) >= 0.9
    assert np.mean([(each.high - each.low) / 0.47 for each in found if each]) < 0.16


def test_noise_is_that_of_the_worst_process() -> None:
    """medians may differ between processes; only the spread inside each counts: 10 +- 1 and 20 +- 4"""
    calm, restless = ((9.0, 10.0, 11.0),), ((16.0, 20.0, 24.0),)

    assert statistics.noise((calm, restless)) == pytest.approx(4 / 20)
    assert statistics.noise((calm, calm)) == pytest.approx(1 / 10)
    assert statistics.noise((((5.0, 5.0, 5.0),),)) == 0


def test_a_figure_scales_with_its_interval() -> None:
    assert Estimate(2.0, 1.0, 4.0).scaled(0.5) == Estimate(1.0, 0.5, 2.0)
    assert Estimate.exact(3.0) == Estimate(3.0, 3.0, 3.0)
