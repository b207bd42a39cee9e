"""What do the examples of the documentation lose when they are pruned? Run: python benchmarks/examples.py --help

A seed changes the first weights of the dense network, the order of the scenes in training, and the search. The scenes are always
the same. Each run is one line of JSON in the raw file, and finished runs are not run again.
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import detection
import safetensors.torch
import segmenter

from pipeline import Job, compress
from pipeline.core.artifact import Artifact, Row
from pipeline.core.statistics import Estimate
from pipeline.system.malloc import keep_freed_memory

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
NETWORKS = {"segmenter": "segmenter.py:segmenter", "detector": "detector.py:detector"}
BUDGETS: dict[str, dict[str, str | float]] = {
    "segmenter": {"latency_p50": "50%", "accuracy_drop": 3.0},
    "detector": {"latency_p50": "50%", "accuracy_drop": 5.0},
}


@click.command()
@click.option("--example", type=click.Choice(tuple(NETWORKS)), help="Without it, only the table is printed.")
@click.option("--seeds", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="For weights and runs.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/examples.jsonl"), show_default=True)
def main(example: str | None, seeds: int, folder: Path, out: Path) -> None:
    """Make the runs that are missing, and print the table of all runs."""
    keep_freed_memory()
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds if example else 0):
        if not any((line["example"], line["seed"]) == (example, seed) for line in lines_of(out)):
            line = run(str(example), seed, folder)
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print("\n".join(table(lines_of(out))))


def run(example: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train the dense network, unless its weights are in `folder`, and prune it. Returns the line of the raw file."""
    code = detection if example == "detector" else segmenter
    weights = folder / f"{example}-{seed}.safetensors"
    started = time.monotonic()
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(code.train_from_scratch(code.Settings(), seed).state_dict(), weights)
    trained = time.monotonic()
    job = Job(
        target="local",
        model=str(EXAMPLES / NETWORKS[example]),
        weights=weights,
        task=code.task(),
        budget=BUDGETS[example],
        searcher="uniform",
        trials=8,
        seed=seed,
        out=folder / f"{example}-{seed}",
    )
    artifact = compress(job).artifact
    return line_of(example, seed, artifact) | {
        "training_minutes": round((trained - started) / 60, 1),
        "run_minutes": round(sum(artifact.phase_seconds.values()) / 60, 1),
    }


def line_of(example: str, seed: int, artifact: Artifact) -> dict[str, Any]:
    """The figures of one run for the raw file."""
    score, latency, macs, params = (row_of(artifact, key) for key in ("accuracy_drop", "latency_p50", "macs", "params"))
    assert score.drop is not None
    assert latency.ratio is not None
    assert artifact.shipped.measurement is not None
    return {
        "example": example,
        "seed": seed,
        "score": score.title.removesuffix(" (test)"),
        "dense": score.dense,
        "after": score.after,
        "drop": interval_of(score.drop),
        "latency_ms": [latency.dense, latency.after],
        "latency": interval_of(latency.ratio),
        "verdicts": {row.key: row.verdict for row in (score, latency)},
        "macs": [macs.dense, macs.after],
        "params": [params.dense, params.after],
        "validation": dict(artifact.validation),
        "machine": artifact.shipped.measurement.fingerprint.machine,
        "stamp": artifact.shipped.measurement.fingerprint.stamp,
    }


def row_of(artifact: Artifact, key: str) -> Row:
    """The row of the final table with this key."""
    return next(row for row in artifact.rows if row.key == key)


def interval_of(estimate: Estimate) -> list[float]:
    """Value, lower and upper end."""
    return [estimate.value, estimate.low, estimate.high]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the raw file."""
    return [json.loads(text) for text in out.read_text().splitlines()] if out.is_file() else []


def table(lines: list[dict[str, Any]]) -> list[str]:
    """One row for each run."""
    head = (
        "| example | seed | score | dense | pruned | change, points | latency p50 | share of the dense one | MACs | parameters |",
        "| --- | --: | --- | --: | --: | --: | --: | --: | --: | --: |",
    )
    return [*head, *(_row(line) for line in sorted(lines, key=lambda line: (line["example"], line["seed"])))]


def _row(line: dict[str, Any]) -> str:
    drop, low, high = line["drop"]
    before_ms, after_ms = line["latency_ms"]
    share, least, most = (100 * value for value in line["latency"])
    macs, params = (100 * line[key][1] / line[key][0] for key in ("macs", "params"))
    cells = (
        line["example"],
        f"{line['seed']}",
        line["score"],
        f"{line['dense']:.1f} %",
        f"{line['after']:.1f} %",
        f"{-drop:+.1f} [{-high:+.1f}, {-low:+.1f}]",
        f"{before_ms:.2f} -> {after_ms:.2f} ms",
        f"{share:.0f} % [{least:.0f}, {most:.0f}]",
        f"{macs:.0f} %",
        f"{params:.0f} %",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
