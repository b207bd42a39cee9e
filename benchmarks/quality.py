"""Search quality at equal cost: the same trials, fine-tuning and seeds for all. Run: python benchmarks/quality.py --help

A cell is one complete run: network, budget, searcher, seed. A finished cell is a raw line and is not run again. An interrupted
cell resumes in its run directory. So the table can grow over days and machines, which it names. `--table` makes it from the raw
lines, without data or weights. It shows missing cells, and the default's rank. The control row scales random ratios to the budget
with the same number of trials.
"""

import zlib
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from cells import Campaign, Cell, Facts, finished, keep
from rivals import RIVALS, run_rival
from tables import draw, standing_of, table_of

from pipeline.compress import compress
from pipeline.core.artifact import Artifact
from pipeline.core.candidate import Candidate
from pipeline.search.problem import Problem, Reward, SearcherFactory
from pipeline.search.searchers import SEARCHERS
from pipeline.stages.job import Job
from pipeline.system.files import write_atomically
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.settings import FinetuneSettings

BISECTIONS = 5
"""Number of trials that scale one random direction to the budget."""


def scaled_random(problem: Problem) -> None:
    """Random ratios, scaled by bisection until they just meet the budget: the result of chance with the same trials."""
    generator = np.random.default_rng(problem.seed)
    while True:  # until problem.evaluate raises TrialsSpent
        direction = generator.uniform(0.1, 1.0, len(problem.space.choices))
        low, high = 0.0, 1.0 / float(direction.min())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = problem.evaluate(problem.space.plan(np.clip(middle * direction, 0, 1).tolist()))
            low, high = (middle, high) if found.feasible else (low, middle)


def disorder(candidate: Candidate) -> float:
    """Paper B's reward with the opposite sign."""
    return 100 * (candidate.entropy or 0.0)


def accuracy_and_channels(candidate: Candidate) -> float:
    """Accuracy times kept channel entropy. This product ranked random plans of all networks best."""
    return (candidate.score or 0.0) * (candidate.kept_channel_entropy or 0.0)


def luck(candidate: Candidate) -> float:
    """A reward without information, which is always the same for the same plan."""
    return 100 * zlib.crc32(repr(candidate.plan.widths).encode()) / 2**32


ROWS: dict[str, tuple[str | SearcherFactory, Reward | None]] = {
    **{name: (name, None) for name in SEARCHERS},
    "random, scaled": (scaled_random, None),
    "ppo-lagrangian, spatial entropy": ("ppo-lagrangian", "spatial-entropy"),
    "ppo-lagrangian, accuracy times spatial entropy": ("ppo-lagrangian", "accuracy-entropy"),
    "ppo-lagrangian, accuracy times channel entropy": ("ppo-lagrangian", accuracy_and_channels),
    "ddpg, accuracy": ("ddpg-entropy", "accuracy"),
    "ddpg, channel entropy": ("ddpg-entropy", "channel-entropy"),
    "ddpg, least entropy": ("ddpg-entropy", "least-entropy"),
    "ddpg, flipped entropy": ("ddpg-entropy", disorder),
    "ddpg, random reward": ("ddpg-entropy", luck),
}
"""Row -> its searcher, and the reward that replaces the searcher's usual one."""
ALL = (*ROWS, *RIVALS)
RESULTS = Path(__file__).parent / "results" / "quality.jsonl"


@click.command()
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--model", required=True)
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", help="Not needed with --table.")
@click.option("--budget", "budgets", multiple=True, default=("latency_p50=50%",), show_default=True, help="Repeatable.")
@click.option("--searcher", "searchers", multiple=True, type=click.Choice(ALL), default=ALL, help="[default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--trials", default=100, show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--learning-rate", type=float, help="Of fine-tuning, for all alike.  [default: tried for each]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/quality"), show_default=True, help="Run directories.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Raw lines.  [default: those in results/]")
@click.option("--table", is_flag=True, help="Run nothing; print what there is.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy against latency into this SVG file.")
def main(
    target: str,
    model: str,
    weights: Path | None,
    data: str | None,
    budgets: tuple[str, ...],
    searchers: tuple[str, ...],
    seeds: int,
    trials: int,
    epochs: int,
    learning_rate: float | None,
    out: Path,
    results: Path,
    table: bool,
    plot: Path | None,
) -> None:
    """Run the cells that are missing, seed by seed, and print the table after each."""
    if not (table or data):
        raise click.UsageError("Missing option '--data'.")
    keep_freed_memory()
    campaign = Campaign(model, trials, epochs, learning_rate, results)
    for seed in range(seeds if not table else 0):
        for budget in budgets:
            for searcher in searchers:
                cell = Cell(budget, searcher, seed)
                if cell not in finished(campaign):
                    keep(campaign, cell, run(campaign, cell, target, weights, data or "", out))
                    print(table_of(campaign, budgets, searchers, seeds))
    print(table_of(campaign, budgets, searchers, seeds))
    print(f"\n{standing_of(campaign, budgets, seeds)}")
    if plot:
        draw(plot, campaign, budgets, searchers, seeds)


def folder_of(out: Path, campaign: Campaign, cell: Cell) -> Path:
    """The run directory of a cell."""
    rate = "tried" if campaign.pinned_rate is None else f"{campaign.pinned_rate:g}"
    words = (campaign.model, cell.budget, cell.searcher, str(campaign.epochs), rate, str(cell.seed))
    return out / "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in "-".join(words))


def run(campaign: Campaign, cell: Cell, target: str, weights: Path | None, data: str, out: Path) -> Facts:
    """Run one cell from the start, or resume it."""
    metric, _, value = cell.budget.partition("=")
    folder = folder_of(out, campaign, cell)
    folder.mkdir(parents=True, exist_ok=True)
    if cell.searcher not in RIVALS:
        share_supernet(folder_of(out, campaign, replace(cell, searcher="ANY")), folder)
    function, reward = ROWS.get(cell.searcher, ("uniform", None))
    job = Job(
        target=target,
        model=campaign.model,
        weights=weights,
        data=data,
        budget={"latency_p50": "100%", "accuracy_drop": 100.0, metric: value},  # overrides the profile's budget
        searcher=function,
        reward=reward,
        trials=campaign.trials,
        seed=cell.seed,
        out=folder,
        finetuning=FinetuneSettings(campaign.epochs, learning_rate=campaign.pinned_rate),
    )
    if cell.searcher in RIVALS:
        return run_rival(job, cell.searcher, metric, folder)
    return facts(compress(job).artifact, metric)


def share_supernet(cells: Path, folder: Path) -> None:
    """Copy another cell's supernet (same network, budget and seed) to `folder`, so that all searchers use the same weights."""
    made = next(cells.parent.glob(f"{cells.name.replace('ANY', '*')}/supernet.safetensors"), None)
    if made and not (folder / "journal.jsonl").is_file():
        write_atomically(folder / made.name, made.read_bytes())


def facts(artifact: Artifact, metric: str) -> Facts:
    """The figures of one cell for the table. Its budget limits `metric`."""
    rows = {row.key: row for row in artifact.rows}
    limited = rows[metric]
    used = (limited.ratio.value if limited.relative and limited.ratio else limited.after or 0.0) / (limited.limit or 1.0)
    return {
        "accuracy": rows["accuracy_drop"].after or 0.0,
        "dense_accuracy": rows["accuracy_drop"].dense or 0.0,
        "latency_p50": rows["latency_p50"].ratio.value if rows["latency_p50"].ratio else float("nan"),
        "used": used,
        "verdict": limited.verdict or "",
        "learning_rate": artifact.learning_rate,
        "params": artifact.shipped.params,
        "macs": artifact.shipped.macs,
        "seconds": sum(seconds for phase, seconds in artifact.phase_seconds.items() if phase != "supernet"),
        "machine": measurement.fingerprint.machine if (measurement := artifact.shipped.measurement) else "",
    }


if __name__ == "__main__":
    main()
