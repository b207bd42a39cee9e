"""All searchers on toys with a known optimum, at equal trials. Run: python benchmarks/searchers.py [--trials N] [--seeds N]

Prints a table for docs/benchmarks/scoring.md: the best feasible score as a share of the optimum, mean and standard deviation over
seeds. The toys are those of the tests, and two with sixteen groups, scores that collapse, and 1 % of measurement noise.
"""

import sys
import time
from pathlib import Path

import click
import numpy as np

from pipeline.search.searchers import SEARCHERS

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.toys import TOYS, Toy, best_feasible, deep

DEEP = {"deep chain": deep("chain", 0.25), "deep ragged": deep("ragged", 0.35)}


@click.command()
@click.option("--trials", default=60)
@click.option("--seeds", default=5)
@click.option("--searcher", "names", multiple=True, default=tuple(SEARCHERS))
@click.option("--toy", "chosen", multiple=True, default=(*TOYS, *DEEP))
def main(trials: int, seeds: int, names: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    """Print the table."""
    toys = {name: {**TOYS, **DEEP}[name] for name in chosen}
    print(f"{trials} trials, {seeds} seeds; percent of the optimum, mean ± standard deviation (smallest)\n")
    print(f"| searcher | {' | '.join(toys)} | mean | s per search |")
    print(f"| --- |{' --: |' * (len(toys) + 2)}")
    for name in names:
        started = time.perf_counter()
        shares = {toy: np.array([share(toys[toy], name, trials, seed) for seed in range(seeds)]) for toy in toys}
        seconds = (time.perf_counter() - started) / len(toys) / seeds
        cells = [f"{found.mean():.1f} ± {found.std():.1f} ({found.min():.1f})" for found in shares.values()]
        mean = np.mean([found.mean() for found in shares.values()])
        print(f"| {name} | {' | '.join(cells)} | {mean:.1f} | {seconds:.1f} |", flush=True)


def share(toy: Toy, name: str, trials: int, seed: int) -> float:
    """Percent of the optimum. Plans count by their true cost, not by the noisy measurement that the searcher saw."""
    asked = toy.solve(SEARCHERS[name], trials, seed)
    if not toy.noise:
        return 100 * best_feasible(asked) / toy.optimum()
    widths = np.array([[width for _, width in found.plan] for found in asked]) / 64
    # a violation within the noise is accepted, because the re-evaluation after a search measures again
    truly = toy.violations(widths) <= toy.noise
    return (
        100
        * max((found.score for found, holds in zip(asked, truly, strict=True) if holds and found.feasible), default=0.0)
        / toy.optimum()
    )


if __name__ == "__main__":
    main()
