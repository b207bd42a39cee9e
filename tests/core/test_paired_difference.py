"""The accuracy drop of two networks on the same images: its interval, its verdict, and how many images decide it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.budget import Constraint, Verdict, known_metrics, read_budget, sample_size_notices
from pipeline.core.candidate import Candidate
from pipeline.core.paired_difference import (
    HitCounts,
    PairedDrop,
    Scores,
    images_to_decide,
    images_to_show_agreement,
    images_to_show_no_drop,
    newcombe,
    no_drop,
    paired_drop,
)
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.core.statistics import Estimate
from pipeline.errors import ModelError

counts = st.integers(0, 2000)


def answers(hits: HitCounts) -> tuple[Scores, Scores]:
    """Dense and compressed network, 100 for each image that is answered rightly."""
    table = [(100.0, 100.0)] * int(hits.both) + [(100.0, 0.0)] * int(hits.only_dense)
    table += [(0.0, 100.0)] * int(hits.only_after) + [(0.0, 0.0)] * int(hits.neither)
    dense, after = np.array(table).T
    return Scores(float(dense.mean()), dense), Scores(float(after.mean()), after)


def both_networks(hits: HitCounts) -> tuple[Candidate, Candidate]:
    """The dense and the shipped file."""
    dense, after = answers(hits)
    drop = paired_drop(dense, after)
    plan = ChannelPlan.of({})
    return Candidate(plan, 1, 1, 1, "", None, dense.value), Candidate(plan, 1, 1, 1, "", None, after.value, drop=drop)


def verdict(hits: HitCounts, limit: float) -> Verdict:
    dense, shipped = both_networks(hits)
    return Constraint(known_metrics()["accuracy_drop"], limit, relative=False).verdict(shipped, dense)


# the interval


@pytest.mark.parametrize(
    ("hits", "low", "high"),
    [
        (HitCounts(1, 1, 7, 12), -0.507, -0.026),
        (HitCounts(59, 6, 16, 80), -0.119, -0.005),
        (HitCounts(14, 5, 0, 22), 0.011, 0.226),
    ],
)
def test_the_interval_is_that_of_the_published_examples(hits: HitCounts, low: float, high: float) -> None:
    """Bentur 2009 and Cavo 2012 in Fagerland, Lydersen and Laake, 2017, chapter 8; Altman and others, 2000, table 6.2"""
    found = newcombe(hits)

    assert (round(found.low / 100, 3), round(found.high / 100, 3)) == (low, high)


def binomials(count: int, share: float) -> np.ndarray:
    """(count + 1,) the probability of each number of successes."""
    found = np.ones(1)
    for _ in range(count):
        found = np.convolve(found, (1 - share, share))
    return found


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.02, 0.01), (0.06, 0.06), (0.1, 0.02), (0.2, 0.2)])
def test_the_true_drop_is_beyond_either_end_in_at_most_three_of_a_hundred_test_sets(lost: float, gained: float) -> None:
    """All tables of 60 images that one of the networks gets right, each with its exact probability."""
    images, above, below = 60, 0.0, 0.0
    changed = binomials(images, lost + gained)
    for apart in range(images + 1):
        for only_dense, chance in enumerate(changed[apart] * binomials(apart, lost / (lost + gained))):
            if chance > 1e-9:
                found = newcombe(HitCounts(images - apart, only_dense, apart - only_dense, 0))
                above += chance * (found.low > 100 * (lost - gained) + 1e-9)
                below += chance * (found.high < 100 * (lost - gained) - 1e-9)

    assert above < 0.03
    assert below < 0.03


@given(counts, counts, counts, counts)
def test_the_interval_holds_the_drop_and_turns_with_the_networks(both: int, lost: int, gained: int, neither: int) -> None:
    hits = HitCounts(both, lost, gained, neither)
    if not hits.images:
        return
    found, turned = newcombe(hits), newcombe(HitCounts(both, gained, lost, neither))

    assert -100 <= found.low <= found.value <= found.high <= 100
    assert found.value == pytest.approx(100 * (lost - gained) / hits.images)
    assert (turned.low, turned.value, turned.high) == pytest.approx((-found.high, -found.value, -found.low))
    assert found.low < found.high


def test_right_and_wrong_answers_are_counted_image_by_image() -> None:
    hits = HitCounts(356, 1, 2, 1)

    assert paired_drop(*answers(hits)) == PairedDrop(360, newcombe(hits), "newcombe", hits)


def test_other_scores_get_a_bootstrap_over_images() -> None:
    """400 images, on each of which the second network scores 2 points less, give or take 5: +- 1.96 x 5 / 20."""
    generator = np.random.default_rng(1)
    dense = generator.uniform(20, 90, 400)
    lost = generator.normal(0, 5, 400)
    after = dense - 2 - (lost - lost.mean())
    found = paired_drop(Scores(dense.mean(), dense), Scores(after.mean(), after))

    assert found is not None
    assert found.method == "bootstrap"
    assert found.estimate.value == pytest.approx(2)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((1.51, 2.49), abs=0.06)


@pytest.mark.parametrize(
    ("dense", "after"),
    [
        (None, np.array([50.0])),
        (np.linspace(0, 9, 19), np.linspace(0, 8, 19)),  # too few
        (np.linspace(0, 9, 50), np.linspace(0, 9, 50) - 1),  # all alike
    ],
)
def test_where_nothing_can_be_said_there_is_no_interval(dense: np.ndarray | None, after: np.ndarray) -> None:
    assert paired_drop(Scores(50.0, dense), Scores(50.0, after)) is None


@pytest.mark.parametrize(
    ("dense", "after", "message"),
    [
        (
            [1.0, 2.0],
            [1.0],
            r"shapes \(2,\) for the dense network and \(1,\) for the compressed one; return one number per image",
        ),
        ([[1.0]], [[1.0]], r"shapes \(1, 1\)"),
        ([], [], r"shapes \(0,\)"),
        ([1.0, float("nan")], [1.0, 2.0], "not all finite"),
    ],
)
def test_values_that_do_not_belong_to_the_same_images_are_refused(dense: list[float], after: list[float], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        paired_drop(Scores(0.0, np.array(dense)), Scores(0.0, np.array(after)))


# the verdict


@pytest.mark.parametrize(
    ("hits", "limit", "expected"),
    [
        (HitCounts(356, 1, 2, 1), 2.0, "within"),
        (HitCounts(190, 1, 1, 8), 1.0, "undecided"),  # no drop at all, and 200 images
        (HitCounts(1900, 10, 10, 80), 1.0, "within"),  # the same with 2,000
        (HitCounts(190, 3, 2, 5), 1.0, "undecided"),  # half a point
        (HitCounts(170, 20, 1, 9), 1.0, "over"),
        (HitCounts(360, 0, 0, 0), 0.0, "undecided"),  # the same answers
        (HitCounts(300, 0, 60, 0), 0.0, "within"),  # better
    ],
)
def test_a_drop_is_within_or_over_only_with_its_whole_interval(hits: HitCounts, limit: float, expected: str) -> None:
    assert verdict(hits, limit) == expected


@pytest.mark.parametrize(
    ("hits", "limit"), [(HitCounts(190, 3, 2, 5), 1.0), (HitCounts(185, 8, 2, 5), 1.0), (HitCounts(80, 10, 8, 2), 1.0)]
)
def test_the_number_of_images_that_would_decide_does(hits: HitCounts, limit: float) -> None:
    """Ten percent fewer would not."""
    drop = paired_drop(*answers(hits))
    assert drop is not None
    needed = images_to_decide(drop, limit)
    assert needed is not None
    few, enough = (newcombe(hits.scaled(images / hits.images)) for images in (0.9 * needed, needed))

    assert few.low <= limit < few.high
    assert enough.high <= limit or enough.low > limit


def test_a_drop_that_is_the_limit_itself_is_decided_by_no_number_of_images() -> None:
    drop = paired_drop(*answers(HitCounts(185, 6, 4, 5)))

    assert drop is not None
    assert images_to_decide(drop, drop.estimate.value) is None


def test_a_mean_needs_four_times_the_images_for_half_the_interval() -> None:
    drop = PairedDrop(100, Estimate(0.0, -2.0, 2.0), "bootstrap")

    assert images_to_decide(drop, 1.0) == 400


# before the search


def notices(
    drop: float, *, images: int | None = 200, each: bool = True, accuracy: float | None = 92.0, agreement: bool = False
) -> tuple[str, ...]:
    profile = load_profile("raspberrypi")
    limits = read_budget(profile, {"accuracy_drop": drop})
    return sample_size_notices(limits, images=images, tests_each_image=each, dense_accuracy=accuracy, agreement=agreement)


def test_two_hundred_images_are_said_to_be_too_few_for_a_point() -> None:
    assert notices(1.0) == (
        "accuracy_drop <= 1.00 points will probably stay undecided: with 200 test images, even a network without any drop has a 95 % interval that reaches 3.31 points; about 1,700 are needed (assumed: only one of the two networks is right on "
        "4.0 % of the images, half the dense network's errors)",
    )


def test_the_images_that_are_said_to_be_needed_are_enough_to_say_nothing_more() -> None:
    assert images_to_show_no_drop(1.0, 0.04, 0.08) == 1700
    assert notices(1.0, images=1700) == ()
    assert notices(1.0, images=1500) != ()


def test_no_loss_at_all_can_be_shown_by_no_number_of_images() -> None:
    (notice,) = notices(0.0, images=50_000)

    assert "only a network better than the dense one can be shown to meet it" in notice


def test_nothing_is_said_where_the_images_suffice_or_their_number_is_not_known() -> None:
    assert notices(2.0, images=360, accuracy=99.16) == ()
    assert notices(1.0, images=None) == ()
    assert notices(1.0, accuracy=None) == ()


def test_agreement_on_two_hundred_images_is_said_to_be_too_few_for_two_points() -> None:
    (notice,) = notices(2.0, accuracy=100.0, agreement=True)

    assert "a network that answers 1 % of all images differently has a 95 % interval that reaches 3.57 points" in notice
    assert notice.endswith("about 760 are needed for it")


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0, 10.0])
def test_the_images_needed_for_an_agreement_are_those_with_which_a_verdict_is_met(limit: float) -> None:
    """The oracle is the verdict on whole images, of which half as many as allowed are answered differently."""
    sizes = [round(200 * apart / limit) for apart in range(1, 10)]
    first = next(
        number for number, size in enumerate(sizes) if verdict(HitCounts(size - number - 1, number + 1, 0, 0), limit) == "within"
    )
    needed = images_to_show_agreement(limit, limit / 200) or 0

    assert sizes[first - 1] < needed <= sizes[first]
    assert notices(limit, images=needed, accuracy=100.0, agreement=True) == ()


def test_the_same_answers_on_all_images_can_be_shown_by_no_number_of_images() -> None:
    (notice,) = notices(0.0, images=50_000, accuracy=100.0, agreement=True)

    assert notice.endswith("no number of images can show that it is met")


def test_a_task_without_values_per_image_is_said_to_have_no_interval() -> None:
    (notice,) = notices(1.0, images=None, each=False)

    assert notice.endswith("the accuracy drop has no interval and the verdict uses its value alone")


@pytest.mark.parametrize(("limit", "apart"), [(0.5, 0.02), (1.0, 0.04), (1.0, 0.1), (2.0, 0.2)])
def test_the_images_needed_are_those_of_the_normal_approximation_and_some_more(limit: float, apart: float) -> None:
    """1.96 standard deviations of a drop of nothing, sqrt(apart / images), are the limit."""
    needed = images_to_show_no_drop(limit, apart, 2 * apart)

    assert 1 <= (needed or 0) / (1.96**2 * apart / (limit / 100) ** 2) < 1.15


def test_more_images_and_a_larger_budget_need_no_more() -> None:
    needed = [images_to_show_no_drop(limit, 0.04, 0.08) or 0 for limit in (0.5, 1.0, 2.0, 4.0)]
    reach = [newcombe(no_drop(images, 0.04, 0.08)).high for images in (50, 200, 1000, 10_000)]

    assert all(more > less for more, less in pairwise(needed))
    assert all(wide > narrow for wide, narrow in pairwise(reach))
