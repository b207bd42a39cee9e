"""How well is a pruned network recovered from few pictures without labels? Run: python benchmarks/few.py --help

The plan is the same for every row: that of a finished run (--plan), or all groups keep the same share of their channels. The
pictures are drawn from a folder; a fifth of them is for validation, and up to 1,000 others are the test. The score is agreement
with the dense network.
Each cell is one line of JSON in the raw file, and finished cells are not run again.
"""

import copy
import json
import re
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from mir import mir
from torch import nn

from pipeline.core.paired_difference import Scores, paired_drop
from pipeline.core.plan import ChannelPlan, Importance
from pipeline.core.profile import load_profile
from pipeline.data.images import Splits
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.stages.finetune_chosen import kept_inputs_of
from pipeline.stages.job import Job
from pipeline.stages.prepare import LoadedModel, load_model_and_task, start_building
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.finetune import Finetuned
from pipeline.training.scoring import hits, measure_shifts
from pipeline.training.settings import FinetuneSettings
from pipeline.training.statistics_shift import kept_shifts, set_shifts
from pipeline.training.task import Classification
from pipeline.training.teacher import Teacher

ROWS = ("statistics", "none", "distil", "mimic", "blocks", "auto", "mir")
"""`statistics`: BatchNorm statistics only. `none`: trained as with many pictures. `mir`: MiR as published, with as many steps as
`auto` took. The others: see `--recover`."""
TEST = 1000
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Cell:
    """What one line of the raw file is about."""

    model: str
    pictures: int
    width: float
    minutes: float
    seed: int
    row: str
    plan: str = ""
    """Name of the plan, for example "70 % of the latency". Without one, `width` is the plan."""
    importance: str = "l2"
    """What ranked the channels."""
    per_class: bool = False
    """Whether `pictures` is the number of each class, and not of all."""


@dataclass(frozen=True)
class Amount:
    """How many pictures are drawn."""

    pictures: int
    per_class: bool


@click.command()
@click.option("--model", default="", help="Without it, only the table is printed.")
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--pictures", "folder", type=click.Path(path_type=Path), help="Folder of images; its sub-folders are read too.")
@click.option("--count", default=200, show_default=True, help="Pictures for training and validation.")
@click.option("--per-class", default=0, help="Pictures of each sub-folder, in place of --count.")
@click.option("--plan", type=click.Path(path_type=Path), help="plan.json of an artifact.")
@click.option("--plan-name", default="", help="For the table, for example '70 % of the latency'.")
@click.option("--importance", default="reconstruction", show_default=True)
@click.option("--width", default=0.7, show_default=True, help="Share of its channels that each group keeps.")
@click.option("--minutes", default=10.0, show_default=True, help="For `auto` and each method.")
@click.option("--seeds", default=1, show_default=True)
@click.option("--rows", default=",".join(ROWS), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/few.jsonl"), show_default=True)
def main(
    model: str,
    weights: Path | None,
    folder: Path | None,
    count: int,
    per_class: int,
    plan: Path | None,
    plan_name: str,
    importance: Importance,
    width: float,
    minutes: float,
    seeds: int,
    rows: str,
    out: Path,
) -> None:
    """Run the cells that are missing, and print the table of all cells."""
    keep_freed_memory()
    out.parent.mkdir(parents=True, exist_ok=True)
    if plan and not plan_name:
        raise click.UsageError("--plan: give it a name, for example --plan-name '70 % of the latency'")
    amount = Amount(per_class or count, bool(per_class))
    for seed in range(seeds if model else 0):
        first = Cell(model, amount.pictures, 0.0 if plan else width, minutes, seed, "", plan_name, importance, amount.per_class)
        cells = [replace(first, row=row) for row in rows.split(",")]
        missing = [cell for cell in cells if cell not in finished(out)]
        job = Job(target="local", model=model, weights=weights, data="none", unlabelled=folder, seed=seed, importance=importance)
        bench = Bench(job, first, widths_of(plan)) if missing else None
        for cell in missing:
            assert bench is not None
            result = bench.run(cell, steps_of_auto(cell, finished(out)))
            with out.open("a") as file:
                file.write(json.dumps({**vars(cell), **result}) + "\n")
            print(json.dumps({**vars(cell), **result}), flush=True)
    print("\n".join(table(finished(out))))


def widths_of(plan: Path | None) -> dict[str, int]:
    """The widths in the plan.json of an artifact, by group."""
    groups = json.loads(plan.read_text())["groups"] if plan else {}
    return {name: group["width"] for name, group in groups.items()}


def steps_of_auto(cell: Cell, found: dict[Cell, dict[str, Any]]) -> int:
    """The number of steps that `auto` took with the same pictures; 0 if it has not run."""
    texts = found.get(replace(cell, row="auto"), {}).get("choices", [])
    steps = [int(match[1]) for text in texts if (match := re.match(r"(\d+) steps", text))]
    return steps[0] if steps else 0


def finished(out: Path) -> dict[Cell, dict[str, Any]]:
    """The results of the cells in the raw file."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    names = Cell.__dataclass_fields__
    return {
        Cell(**{k: v for k, v in line.items() if k in names}): {k: v for k, v in line.items() if k not in names} for line in lines
    }


class Bench:
    """One network, its pictures and its pruned copy."""

    def __init__(self, job: Job, cell: Cell, widths: dict[str, int]) -> None:
        profile = load_profile(job.target)
        loaded = load_model_and_task(job, profile)
        task = loaded.task
        if not isinstance(task, Classification):
            raise click.ClickException("--model: expected a classification network")
        self.task = replace(task, splits=drawn(task.splits, cell))
        loaded = LoadedModel(loaded.module, self.task, loaded.facts, loaded.notices)
        with tempfile.TemporaryDirectory() as scratch, share_device(profile, print) as device:
            builder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
        plan = ChannelPlan.of(widths) if widths else search_space(builder, 4).uniform(cell.width)
        kept = builder.kept(plan)
        self.macs = builder.make(plan).macs / builder.make(builder.space.dense()).macs
        self.student = shrink(builder.module, builder.space, kept).eval()
        calibration = (pixels for pixels, _ in self.task.calibration())
        start_reconstruction(builder.module, builder.space, calibration).apply(self.student, kept)
        shifts = measure_shifts(builder.module, self.task.statistics_images())
        set_shifts(self.student, kept_shifts(shifts, builder.space, kept))
        self.teacher = Teacher(builder.module.eval(), kept_inputs_of(builder.module, builder.space, kept))

    def run(self, cell: Cell, steps: int) -> dict[str, Any]:
        """Train by `cell.row`. Returns agreement with its 95 % interval, minutes and choices. `steps` is for MiR."""
        started = time.monotonic()
        epochs = 0 if cell.row == "statistics" else None
        recover: Any = "auto" if cell.row in ("statistics", "mir") else cell.row
        settings = FinetuneSettings(epochs=epochs, recover=recover, minutes=cell.minutes)
        task, student = replace(self.task, settings=settings), copy.deepcopy(self.student)
        if cell.row == "mir":
            if not steps:
                raise click.UsageError("--rows: MiR takes as many steps as auto; run auto first")
            tuned = Finetuned(mir(student, self.teacher, task.splits.train, steps, cell.seed), choices=(f"{steps} steps",))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                tuned = task.finetune(student, self.teacher, cell.seed, Path(scratch) / "state", lambda *_: None)
        minutes = (time.monotonic() - started) / 60
        drop = paired_drop(scores(self.teacher.module, task), scores(tuned.module, task))
        interval = [100 - drop.estimate.high, 100 - drop.estimate.low] if drop else None
        return {
            "agreement": 100.0 * float(hits(tuned.module, task.splits.test).mean()),
            "interval": interval,
            "macs": self.macs,
            "took_minutes": round(minutes, 2),
            "threads": torch.get_num_threads(),
            "choices": list(tuned.choices),
            "best": tuned.epoch,
        }


def drawn(splits: Splits, cell: Cell) -> Splits:
    """`cell.pictures` of all images to train and validate with, and others for the test, by the seed.

    Classes are those that the dense network answers.
    """
    labels = splits.train.labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(cell.seed))
    if cell.per_class:
        chosen = torch.cat([order[labels[order] == label][: cell.pictures] for label in labels.unique()])
        chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(cell.seed))]
    else:
        chosen = order[: cell.pictures]
    test = order[~torch.isin(order, chosen)][:TEST]
    held_out = max(round(VALIDATION_SHARE * len(chosen)), 1)
    train, validation, test_images = (
        replace(splits.train, indices=part) for part in (chosen[held_out:], chosen[:held_out], test)
    )
    return replace(splits, train=train, validation=validation, test=test_images)


def scores(module: nn.Module, task: Classification) -> Scores:
    """Whether each test picture gets the dense network's answer, in percent."""
    each = np.where(hits(module, task.splits.test), 100.0, 0.0)
    return Scores(float(each.mean()), each)


def table(found: dict[Cell, dict[str, Any]]) -> list[str]:
    """One line per cell without its seed: mean agreement over the seeds, the interval of each seed, mean minutes."""
    lines = [
        "| network | pictures | plan | MACs | row | seeds | agreement | 95 % interval of each seed | minutes |",
        "| --- | --: | --- | --: | --- | --: | --: | --- | --: |",
    ]
    for key in dict.fromkeys(replace(cell, seed=0) for cell in found):
        rows = [row for cell, row in found.items() if replace(cell, seed=0) == key]
        intervals = ", ".join(f"[{low:.1f}, {high:.1f}]" for low, high in (row["interval"] for row in rows))
        mean, minutes = (sum(row[name] for row in rows) / len(rows) for name in ("agreement", "took_minutes"))
        cells = (
            Path(key.model.partition(":")[0]).stem,
            f"{key.pictures} a class" if key.per_class else key.pictures,
            f"{key.plan or f'{100 * key.width:g} % of the channels'}, by {key.importance}",
            f"{100 * rows[0]['macs']:.0f} %",
            key.row,
            len(rows),
            f"{mean:.1f} %",
            intervals,
            f"{minutes:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    main()
