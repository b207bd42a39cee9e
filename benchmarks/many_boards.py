"""Searches on 1, 2, 4 and 8 boards in simulated time: trials per hour, and the quality at equal trials.

Run: python benchmarks/many_boards.py [--trials N] [--seeds N] [--searcher NAME] [--toy NAME]

Prints the tables of docs/benchmarks/boards.md. The problems are the toys of the tests. A trial takes what the profile of the
Raspberry Pi asks for: processes, their start, and runs of the candidate and of the dense network in turn. No clock is read: time
is simulated, so the load of this machine does not matter. What the searcher computes takes no simulated time.
"""

import heapq
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from intervals import mean_difference

from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.search.ask_tell import drive
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.searchers import SEARCHERS
from pipeline.stages.forecast import START_S
from pipeline.stages.parallel_trials import AHEAD

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.toys import TOYS, Toy, best_feasible

DENSE_MS = 40.0
"""Latency of the dense network on a Pi 4: MobileNetV2's order of magnitude at 224 pixels with four threads."""
BETWEEN_BOARDS, BETWEEN_TRIALS = 0.05, 0.05
"""Standard deviation of the logarithm of a board's speed, and of the time of a trial."""
PROFILE = load_profile("raspberrypi")


@dataclass
class Boards:
    """Boards that each measure one plan at a time, in simulated seconds. A plan is given to the board that is free first."""

    toy: Toy
    slowness: tuple[float, ...]
    """How many times as long each board takes."""
    seed: int
    lost_at_s: float = float("inf")
    """When the first board is lost for good. Its plan is measured again on another board."""
    now_s: float = 0.0
    evaluations: list[Evaluation] = field(default_factory=list)
    _free: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """All boards are free at the beginning."""
        self._free = [(0.0, number) for number in range(len(self.slowness))]
        self._random = np.random.default_rng(self.seed)

    def submit(self, number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
        """Give `plan` to a board now."""
        found = self.toy.evaluation_of(plan)
        self.evaluations.append(found)
        ends_s = self._ends_s(self.trial_s(found) * float(np.exp(BETWEEN_TRIALS * self._random.standard_normal())))

        def wait() -> Evaluation:
            self.now_s = max(self.now_s, ends_s)
            return found

        return wait

    def _ends_s(self, trial_s: float) -> float:
        free_s, board = heapq.heappop(self._free)
        begins_s = max(free_s, self.now_s)
        ends_s = begins_s + trial_s * self.slowness[board]
        if board == 0 and ends_s > self.lost_at_s:
            self.now_s, before_s = max(self.lost_at_s, begins_s), self.now_s
            again_s = self._ends_s(trial_s)
            self.now_s = before_s
            return again_s
        heapq.heappush(self._free, (ends_s, board))
        return ends_s

    def trial_s(self, found: Evaluation) -> float:
        """Time of a trial on a board of usual speed."""
        probe, ratio = PROFILE.probe, (1 + found.violations[0]) * self.toy.limit
        runs_s = (probe.warmup_runs + probe.runs) * DENSE_MS * (1 + ratio) / 1000
        return probe.processes * (START_S[1] + min(runs_s, probe.time_limit_s))


def searched(toy: Toy, name: str, trials: int, seed: int, boards: Boards, in_flight: int) -> None:
    """Run a search on `boards`."""
    known = tuple(toy.evaluation_of(plan) for plan in (toy.space.dense(), toy.space.thinnest()))
    problem = Problem(toy.space, toy.evaluation_of, trials, constraints=1, seed=seed, known=known)
    searcher = SEARCHERS[name](problem)
    assert searcher is not None
    drive(searcher, boards.submit, trials, in_flight)


def usual(count: int, seed: int) -> tuple[float, ...]:
    """How slow boards of one type are."""
    return tuple(np.exp(BETWEEN_BOARDS * np.random.default_rng(1000 + seed).standard_normal(count)).tolist())


def per_hour(toy: Toy, name: str, trials: int, seed: int, slowness: tuple[float, ...], lost_at_s: float = float("inf")) -> float:
    """Trials per hour on boards of this slowness."""
    boards = Boards(toy, slowness, seed, lost_at_s)
    searched(toy, name, trials, seed, boards, in_flight(len(slowness)))
    return 3600 * len(boards.evaluations) / boards.now_s


def in_flight(boards: int) -> int:
    """Plans in evaluation, as in a run."""
    return AHEAD * boards if boards > 1 else 1


@click.command()
@click.option("--trials", default=60)
@click.option("--seeds", default=20)
@click.option("--searcher", "names", multiple=True, default=("knapsack", "tpe", "evolution", "random"))
@click.option("--toy", "chosen", multiple=True, default=tuple(TOYS))
@click.option("--boards", "counts", multiple=True, type=int, default=(1, 2, 4, 8))
def main(trials: int, seeds: int, names: tuple[str, ...], chosen: tuple[str, ...], counts: tuple[int, ...]) -> None:
    """Print both tables, and the table of slow and lost boards."""
    print(f"{trials} trials, {seeds} seeds, {len(chosen)} toys\n")
    print("Trials per hour, and as a share of as many times the trials per hour of one board:\n")
    print(f"| searcher | {' | '.join(f'boards: {count}' for count in counts)} |")
    print(f"| --- |{' --: |' * len(counts)}")
    quality: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in names}
    for name in names:
        speeds: dict[int, list[float]] = {count: [] for count in counts}
        for toy in (TOYS[each] for each in chosen):
            for seed in range(seeds):
                for count in counts:
                    boards = Boards(toy, usual(count, seed), seed)
                    searched(toy, name, trials, seed, boards, in_flight(count))
                    one = sum(1 / each for each in usual(count, seed)) / count
                    speeds[count].append(3600 * len(boards.evaluations) / boards.now_s / one)
                    quality[name][count].append(100 * best_feasible(boards.evaluations) / toy.optimum())
        mean = {count: float(np.mean(found)) for count, found in speeds.items()}
        cells = [f"{mean[count]:.0f} ({100 * mean[count] / count / mean[counts[0]] * counts[0]:.0f} %)" for count in counts]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\nPercent of the optimum at equal trials, mean ± standard deviation over toys and seeds, and in brackets the mean")
    print("difference to one board with its 95 % interval over pairs of the same toy and seed:\n")
    print(f"| searcher | {' | '.join(f'{in_flight(count)} at once' for count in counts)} |")
    print(f"| --- |{' --: |' * len(counts)}")
    for name in names:
        print(f"| {name} | {' | '.join(_quality(quality[name], count) for count in counts)} |")
    print("\nFour boards, random plans: trials per hour in percent of four equal boards:\n")
    _print_odd_boards(trials, seeds, chosen)


def _quality(found: dict[int, list[float]], count: int) -> str:
    values, first = np.asarray(found[count]), np.asarray(next(iter(found.values())))
    if count == next(iter(found)):
        return f"{values.mean():.1f} ± {values.std():.1f}"
    return f"{values.mean():.1f} ± {values.std():.1f} ({mean_difference((values - first).tolist(), digits=1)})"


def _print_odd_boards(trials: int, seeds: int, chosen: tuple[str, ...]) -> None:
    print("| boards | trials per hour | of the work that they can do |")
    print("| --- | --: | --: |")
    cases = {
        "four equal": ((1.0,) * 4, float("inf"), 4.0),
        "one takes twice as long": ((2.0, 1.0, 1.0, 1.0), float("inf"), 3.5),
        "one takes four times as long": ((4.0, 1.0, 1.0, 1.0), float("inf"), 3.25),
        "one is lost after a minute": ((1.0,) * 4, 60.0, 3.0),
        "three": ((1.0,) * 3, float("inf"), 3.0),
    }
    equal = 0.0
    for title, (slowness, lost_at_s, could) in cases.items():
        found = [per_hour(TOYS[toy], "random", trials, seed, slowness, lost_at_s) for toy in chosen for seed in range(seeds)]
        equal = equal or float(np.mean(found))
        print(f"| {title} | {100 * np.mean(found) / equal:.0f} % | {100 * np.mean(found) / equal * 4 / could:.0f} % |")


if __name__ == "__main__":
    main()
