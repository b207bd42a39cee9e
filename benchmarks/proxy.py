"""Does low spatial entropy mean high accuracy? Run on finished runs: python benchmarks/proxy.py RUN_DIRECTORY ...

Make one with: compress --target raspberrypi --dry-run --searcher random --reward spatial-entropy --trials 60 --epochs 1
Prints Spearman's rank correlation over the plans of the search, before fine-tuning. A second figure excludes the effect of the
numbers of parameters and multiply-accumulates, because wider networks are better and may have less entropy too.
"""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pipeline.core.run import read_trials

Floats = NDArray[np.float64]


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print one row per run."""
    print("| run | plans | 1 - H and accuracy | at equal size | 1 - H and parameters | dead channels |\n| --- |" + " --: |" * 5)
    for folder in folders:
        candidates = [trial.candidate for trial in read_trials(folder) if trial.role == "search"]
        scored = [each for each in candidates if each.entropy is not None and each.score is not None]
        order, score, params, macs = (
            ranks(np.asarray(column, dtype=np.float64))
            for column in zip(*((1 - (c.entropy or 0), c.score, c.params, c.macs) for c in scored), strict=True)
        )
        size = np.stack([np.ones(len(scored)), params, macs], axis=1)
        dead = np.mean([each.dead_share or 0.0 for each in scored])
        partial = alike(without(order, size), without(score, size))
        print(
            f"| {folder.name} | {len(scored)} | {alike(order, score):.2f} | {partial:.2f} | {alike(order, params):.2f} "
            f"| {100 * dead:.1f} % |"
        )


def ranks(values: Floats) -> Floats:
    """Mean ranks. Ties share their rank."""
    return np.asarray([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def without(values: Floats, explained_by: Floats) -> Floats:
    """The residuals of `values` (n,) after a linear fit to `explained_by` (n, k)."""
    return values - explained_by @ np.linalg.lstsq(explained_by, values, rcond=None)[0]


def alike(left: Floats, right: Floats) -> float:
    """Pearson's correlation. For ranks, this is Spearman's."""
    return float(np.corrcoef(left, right)[0, 1])


if __name__ == "__main__":
    main()
