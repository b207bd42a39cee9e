"""Finished runs as tables for docs/benchmarks.md. Run: python benchmarks/runs.py RUN_DIRECTORY ..."""

import shlex
from pathlib import Path

import click

from pipeline.core.artifact import Artifact, read_artifact
from pipeline.system.units import format_duration


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print one section per run: command, machine, figures before and after, wall time by phase."""
    for folder in folders:
        print("\n".join(section(read_artifact(folder / "artifact"))))


def section(artifact: Artifact) -> list[str]:
    """The lines of one run."""
    measured = artifact.shipped.measurement
    if measured is None:
        return []
    fingerprint = measured.fingerprint
    lines = [
        f"### {artifact.job['model']}, {artifact.job['searcher']}, seed {artifact.job['seed']}: {artifact.verdict}",
        "",
        f"`{shlex.join(artifact.command)}`",
        "",
        f"{artifact.data}. {fingerprint.machine} ({fingerprint.architecture}), {fingerprint.stamp}, onnxruntime "
        f"{fingerprint.onnxruntime}, torch {artifact.versions['torch']}, {artifact.created[:10]}.",
        "",
        "| | dense | after | change | budget | verdict |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for row in artifact.rows:
        before, after, change, limit = row.texts
        interval = f" {row.interval_text}" if row.interval_text else ""
        cells = (row.title, before, after, change + interval, f"<= {limit}" if limit else "", row.verdict or "")
        lines.append(f"| {' | '.join(cells)} |")
    validation = artifact.validation
    phases = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in artifact.phase_seconds.items())
    lines += [
        "",
        f"Validation accuracy: dense {validation['dense']:.2f} %, chosen plan before fine-tuning "
        f"{validation['before_finetuning']:.2f} %, after {validation['after_finetuning']:.2f} %.",
        f"Wall time: {phases}.",
        "",
    ]
    return lines


if __name__ == "__main__":
    main()
