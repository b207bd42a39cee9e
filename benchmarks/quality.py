"""Search quality at equal cost: the same trials, fine-tuning and seeds for all. Run: python benchmarks/quality.py --help

A cell is one run of the whole walk: network, budget, searcher, seed. Each has a run directory, so cells that are done are not run
again, and one that was cut off goes on: the table can grow over days. `--table` prints what there is, and which cells are
missing. The control row takes random ratios and scales them to the budget, with the same number of trials.
"""

import json
import statistics
import zlib
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from rivals import RIVALS, run_rival

from pipeline.artifact import Artifact, read_artifact
from pipeline.candidate import Candidate
from pipeline.compress import compress
from pipeline.files import write_atomically
from pipeline.finetune import FinetuneSettings
from pipeline.job import Job
from pipeline.search.problem import Problem, Reward, Searcher
from pipeline.search.searchers import SEARCHERS
from pipeline.units import format_duration

BISECTIONS = 5
"""Trials that one random direction gets to be scaled to the budget."""


def scaled_random(problem: Problem) -> None:
    """Random ratios, scaled by bisection until they just meet the budget: what luck alone finds with as many trials."""
    generator = np.random.default_rng(problem.seed)
    while True:  # until problem.evaluate raises TrialsSpent
        direction = generator.uniform(0.1, 1.0, len(problem.space.choices))
        low, high = 0.0, 1.0 / float(direction.min())
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            found = problem.evaluate(problem.space.plan(np.clip(middle * direction, 0, 1).tolist()))
            low, high = (middle, high) if found.feasible else (low, middle)


def disorder(candidate: Candidate) -> float:
    """Paper B's reward with the sign flipped."""
    return 100 * (candidate.entropy or 0.0)


def luck(candidate: Candidate) -> float:
    """A reward that says nothing, but always the same of a plan."""
    return 100 * zlib.crc32(repr(candidate.plan.widths).encode()) / 2**32


ROWS: dict[str, tuple[str | Searcher, Reward | None]] = {
    **{name: (name, None) for name in SEARCHERS},
    "random, scaled": (scaled_random, None),
    "ppo-lagrangian, entropy": ("ppo-lagrangian", "entropy"),
    "ddpg, accuracy": ("ddpg-entropy", "accuracy"),
    "ddpg, least entropy": ("ddpg-entropy", "least-entropy"),
    "ddpg, flipped entropy": ("ddpg-entropy", disorder),
    "ddpg, random reward": ("ddpg-entropy", luck),
}
"""Row -> the searcher, and what it is rewarded for in place of its usual reward."""
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H", "x", "+", "1", "2")
ALL = (*ROWS, *RIVALS)


@click.command()
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--model", required=True)
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", required=True)
@click.option("--budget", "budgets", multiple=True, default=("latency_p50=50%",), show_default=True, help="Repeatable.")
@click.option("--searcher", "searchers", multiple=True, type=click.Choice(ALL), default=ALL, help="[default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--trials", default=100, show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--learning-rate", type=float, help="Of fine-tuning, for all alike.  [default: tried for each]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/quality"), show_default=True)
@click.option("--table", is_flag=True, help="Run nothing; print what there is.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy against latency into this SVG file.")
def main(
    target: str,
    model: str,
    weights: Path | None,
    data: str,
    budgets: tuple[str, ...],
    searchers: tuple[str, ...],
    seeds: int,
    trials: int,
    epochs: int,
    learning_rate: float | None,
    out: Path,
    table: bool,
    plot: Path | None,
) -> None:
    """Run the cells that are missing, seed by seed, and print the table after each."""
    finetuning = FinetuneSettings(epochs, learning_rate=learning_rate)
    for seed in range(seeds if not table else 0):
        for budget in budgets:
            for searcher in searchers:
                folder = cell(out, model, budget, searcher, seed)
                if known(folder, budget) is None:
                    run(target, model, weights, data, budget, searcher, seed, trials, finetuning, folder)
                    print_table(out, model, budgets, searchers, seeds)
    print_table(out, model, budgets, searchers, seeds)
    if plot:
        draw(plot, out, model, budgets, searchers, seeds)


def cell(out: Path, model: str, budget: str, searcher: str, seed: int) -> Path:
    """The run directory of a cell."""
    words = "-".join((model, budget, searcher, str(seed)))
    return out / "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in words)


def run(
    target: str,
    model: str,
    weights: Path | None,
    data: str,
    budget: str,
    searcher: str,
    seed: int,
    trials: int,
    finetuning: FinetuneSettings,
    folder: Path,
) -> None:
    """One cell; its figures are added to the raw lines."""
    metric, _, value = budget.partition("=")
    if searcher not in RIVALS:
        share_supernet(cell(folder.parent, model, budget, "ANY", seed), folder)
    function, reward = ROWS.get(searcher, ("uniform", None))
    job = Job(
        target=target,
        model=model,
        weights=weights,
        data=data,
        budget={"latency_p50": "100%", "accuracy_drop": 100.0, metric: value},  # over the profile's own
        searcher=function,
        reward=reward,
        trials=trials,
        seed=seed,
        out=folder,
        finetuning=finetuning,
    )
    found = run_rival(job, searcher, metric, folder) if searcher in RIVALS else facts(compress(job).artifact, metric)
    key = {"model": model, "budget": budget, "searcher": searcher, "seed": seed, "trials": trials, "epochs": finetuning.epochs}
    with (folder.parent / "cells.jsonl").open("a") as file:
        file.write(json.dumps(key | found) + "\n")


def share_supernet(cells: Path, folder: Path) -> None:
    """Give the cell `folder` the supernet of another with the same network, budget and seed: same weights for all searchers."""
    made = next(cells.parent.glob(f"{cells.name.replace('ANY', '*')}/supernet.safetensors"), None)
    if made and not (folder / "journal.jsonl").is_file():
        folder.mkdir(exist_ok=True)
        write_atomically(folder / made.name, made.read_bytes())


def known(folder: Path, budget: str) -> dict[str, Any] | None:
    """The figures of a cell that was run."""
    if (folder / "cell.json").is_file():
        rival: dict[str, Any] = json.loads((folder / "cell.json").read_text())
        return rival
    if not (folder / "artifact" / "artifact.json").is_file():
        return None
    return facts(read_artifact(folder / "artifact"), budget.partition("=")[0])


def facts(artifact: Artifact, metric: str) -> dict[str, Any]:
    """What the table needs of one cell, whose budget limits `metric`."""
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
    }


def print_table(out: Path, model: str, budgets: tuple[str, ...], searchers: tuple[str, ...], seeds: int) -> None:
    """One line for each budget and searcher; cells that were not run are counted."""
    print(
        f"\n{model}\n\n| budget | searcher | test accuracy | latency p50, % of dense | of the budget | within | time | not run |"
    )
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for budget in budgets:
        for searcher in searchers:
            found = [each for seed in range(seeds) if (each := known(cell(out, model, budget, searcher, seed), budget))]
            if not found:
                print(f"| {budget} | {searcher} | | | | | | {seeds} |")
                continue
            accuracy = spread([float(each["accuracy"]) for each in found], "{:.2f} %")
            latency = spread([100 * float(each["latency_p50"]) for each in found], "{:.1f}")
            used = spread([100 * float(each["used"]) for each in found], "{:.0f} %")
            within = sum(each["verdict"] == "within" for each in found)
            seconds = format_duration(statistics.mean(float(each["seconds"]) for each in found))
            line = (budget, searcher, accuracy, latency, used, f"{within} of {len(found)}", seconds, str(seeds - len(found)))
            print(f"| {' | '.join(line)} |")


def draw(path: Path, out: Path, model: str, budgets: tuple[str, ...], searchers: tuple[str, ...], seeds: int) -> None:
    """Each cell as a point; the front joins those that no other beats in both accuracy and latency."""
    points: list[tuple[float, float]] = []
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "compress", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, searcher in enumerate(searchers):
            folders = [(cell(out, model, budget, searcher, seed), budget) for budget in budgets for seed in range(seeds)]
            cells = [each for folder in folders if (each := known(*folder))]
            found = [(100 * float(each["latency_p50"]), float(each["accuracy"])) for each in cells]
            if found:
                axes.plot(*zip(*found, strict=True), MARKERS[number % len(MARKERS)], label=searcher, markersize=6, alpha=0.8)
            points += found
        front = [p for p in sorted(points) if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
        if front:
            axes.plot(*zip(*front, strict=True), "-", color="#9aa4b2", linewidth=1, zorder=0, label="Pareto front")
        axes.set_xlabel("latency p50 of the shipped file, % of dense")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(model, loc="left")
        axes.legend(fontsize=7, ncols=2)
        figure.savefig(path, format="svg", metadata={"Date": None})


def spread(values: list[float], form: str) -> str:
    """Mean, and the smallest and largest where there are several."""
    text = form.format(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


if __name__ == "__main__":
    main()
