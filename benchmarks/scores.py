"""Does what a search looks at rank plans as fine-tuning does? Run: python benchmarks/scores.py --help

Random plans with about the same number of multiply-accumulates, so that size explains little. Each is scored in every way
before it is fine-tuned: as it was cut, with compensated weights, with those of the supernet, and by entropies of its
activations in these three states: paper B's (1 - H), and the shares that are kept of the dense network's spatial and channel
entropy. The control of these two looks at widths alone. Fine-tuning begins with the supernet's weights; with `--start
compensated` there is no supernet. Printed: Spearman's rank correlation of each with the validation accuracy after fine-tuning,
with a bootstrap interval over the plans. Plans that are done are not done again; where only a column is missing, they are not
fine-tuned again.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.files import sha256_bytes, write_atomically
from pipeline.finetune import FinetuneSettings
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.compensate import start_compensation
from pipeline.graph.drafts import Drafts
from pipeline.graph.shrink import shrink
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.heap import keep_freed_memory
from pipeline.job import Job
from pipeline.offer import search_space
from pipeline.plan import ChannelPlan
from pipeline.prepare import draft_subject, load_subject
from pipeline.profile import load_profile
from pipeline.reward import ENTROPY_INPUTS
from pipeline.search.problem import SearchSpace
from pipeline.supernet import IMAGES, affordable_steps, middle_share, plans_around, train_supernet

STEP = 4
"""Widths are multiples of it, as in the profiles of the boards."""
TOLERANCE = 0.15
"""Of the multiply-accumulates asked for."""
STATES = ("as cut", "compensated", "supernet")


def columns(start: str) -> set[str]:
    """Of a row whose plan is fine-tuned from the weights of state `start`."""
    states = STATES[: STATES.index(start) + 1]
    seen = {
        f"{what}, {state}" for state in states for what in ("accuracy", "1 - H", "kept spatial entropy", "kept channel entropy")
    }
    return {"key", "plan", "macs", "parameters", "kept widths", *seen, "fine-tuned"}


@click.command()
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--model", required=True)
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", required=True)
@click.option("--macs", "share", default=0.25, show_default=True, help="Share of the dense network's that a plan has.")
@click.option("--plans", default=20, show_default=True)
@click.option("--epochs", default=1, show_default=True, help="Of fine-tuning.")
@click.option("--learning-rate", default=0.05, show_default=True, help="Of fine-tuning, the same for all plans.")
@click.option("--start", type=click.Choice(STATES[1:]), default=STATES[-1], show_default=True, help="Of fine-tuning.")
@click.option("--seed", default=0, show_default=True, help="Of the plans.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/scores.jsonl"), show_default=True)
@click.option("--table", is_flag=True, help="Print the table of the raw lines; without data or weights.")
def main(
    target: str,
    model: str,
    weights: Path | None,
    data: str,
    share: float,
    plans: int,
    epochs: int,
    learning_rate: float,
    start: str,
    seed: int,
    out: Path,
    table: bool,
) -> None:
    """Score and fine-tune the plans that are missing; print the table."""
    keep_freed_memory()
    settings = FinetuneSettings(epochs=epochs, learning_rate=learning_rate)
    job = Job(target=target, model=model, weights=weights, data=data, finetuning=settings)
    key = {
        "model": model,
        "weights": weights.name if weights else None,
        "data": Path(data).name,
        "macs": share,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "start": start,
        "seed": seed,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    rows = [line for line in lines if line["key"] == key]
    others = [line for line in lines if line["key"] != key]
    if not table and (len(rows) < plans or any(row.keys() != columns(start) for row in rows)):
        bench = Bench(job, share, start, out.parent)
        drawn = random_plans(bench.space, bench.drafts, share * bench.dense_macs, max(plans, len(rows)), seed)
        for number, plan in enumerate(drawn):
            known = rows[number] if number < len(rows) else {}
            if known and known["plan"] != [list(pair) for pair in plan]:
                raise click.ClickException(f"{out}: plan {number + 1} is another than the one drawn today; choose another --out")
            if known.keys() != columns(start):
                rows[number:] = [{"key": key, **bench.row(plan, known.get("fine-tuned"))}, *rows[number + 1 :]]
                write_atomically(out, "".join(json.dumps(line) + "\n" for line in (*others, *rows)).encode())
            print(f"{number + 1} of {plans}: {rows[number]['fine-tuned']:.2f} %", flush=True)
    print_table(rows)


class Bench:
    """One network with all that is needed to score its plans in every way."""

    def __init__(self, job: Job, share: float, start: str, folder: Path) -> None:
        profile = load_profile(job.target)
        subject = load_subject(job, profile)
        self.task = task = subject.task
        with tempfile.TemporaryDirectory() as scratch:
            self.drafts = drafts = draft_subject(job, profile, subject, Path(scratch) / "dense.onnx", print)
        self.dense_macs = drafts.make(drafts.space.dense()).macs
        self.space = search_space(drafts, STEP)
        self._compensation = start_compensation(drafts.module, drafts.space, (pixels for pixels, _ in task.calibration()))
        self._supernet = self._train_supernet(job, share, folder) if start == "supernet" else None
        inputs = task.inputs(ENTROPY_INPUTS)
        self._spatial = start_spatial_entropy(drafts.module, drafts.space, inputs)
        self._channels = start_channel_entropy(drafts.module, inputs)
        self._checkpoint = folder / "scores.safetensors"

    def _train_supernet(self, job: Job, share: float, folder: Path) -> nn.Module:
        drafts, lessons = self.drafts, self.task.lessons(IMAGES)
        assert lessons is not None
        typical = self._uniform(share * self.dense_macs)
        middle = drafts.make(self.space.uniform(middle_share(typical))).macs
        steps = affordable_steps(middle, self.dense_macs, len(lessons))
        plans = (drafts.kept(plan) for plan in plans_around(self.space, typical, 0))
        name = sha256_bytes(repr((job.model, job.weights, job.data, share)).encode())[:8]
        checkpoint = folder / f"supernet-{name}.safetensors"
        return train_supernet(drafts.module, drafts.space, plans, lessons, steps, checkpoint)

    def row(self, plan: ChannelPlan, finetuned: float | None) -> dict[str, Any]:
        """Everything that is seen of one plan; it is fine-tuned when it was not yet."""
        kept, draft = self.drafts.kept(plan), self.drafts.make(plan)
        cut = draft.module
        states = [cut, self.compensated(plan)]
        if self._supernet is not None:
            states.append(shrink(self._supernet, self.drafts.space, kept))
        student = copy.deepcopy(states[-1])
        row: dict[str, Any] = {"plan": list(plan.widths), "macs": draft.macs, "parameters": draft.params}
        row["kept widths"] = harmonic_mean(kept_widths(cut, self.drafts.module))
        for state, module in zip(STATES, states, strict=False):
            row[f"accuracy, {state}"] = self.task.score(module)
            disorder = self._spatial.of(module, kept)
            row[f"1 - H, {state}"], row[f"kept spatial entropy, {state}"] = 1 - disorder.entropy, disorder.kept
            row[f"kept channel entropy, {state}"] = self._channels.kept(module)
        if finetuned is not None:
            return {**row, "fine-tuned": finetuned}
        self._checkpoint.unlink(missing_ok=True)
        tuned = self.task.finetune(student, self.drafts.module, 0, self._checkpoint, lambda *_: None)
        row["fine-tuned"] = self.task.validate(tuned.module)
        self._checkpoint.unlink(missing_ok=True)
        return row

    def compensated(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, of whose weights some take over what the removed ones did."""
        module = copy.deepcopy(self.drafts.make(plan).module)
        self._compensation.apply(module, self.drafts.kept(plan))
        return module

    def looks(self, plan: ChannelPlan, module: nn.Module) -> tuple[Callable[[], object], ...]:
        """Its score; its spatial entropy; its channel entropy."""
        kept = self.drafts.kept(plan)
        return (
            lambda: self.task.score(module),
            lambda: self._spatial.of(module, kept),
            lambda: self._channels.kept(module),
        )

    def _uniform(self, macs: float) -> float:
        """The share of channels at which all groups together have `macs`."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.drafts.make(self.space.uniform(middle)).macs < macs else (low, middle)
        return low


def kept_widths(small: nn.Module, whole: nn.Module) -> list[float]:
    """Of each convolution, the share of its channels that it keeps."""
    sizes = {name: layer.out_channels for name, layer in whole.named_modules() if isinstance(layer, nn.Conv2d)}
    return [layer.out_channels / sizes[name] for name, layer in small.named_modules() if isinstance(layer, nn.Conv2d)]


def random_plans(space: SearchSpace, drafts: Drafts, macs: float, count: int, seed: int) -> list[ChannelPlan]:
    """Random ratios scaled by bisection to `macs`; those that come out too far off are drawn again."""
    generator = np.random.default_rng(seed)
    plans: list[ChannelPlan] = []
    while len(plans) < count:
        direction = generator.uniform(0.1, 1.0, len(space.choices))
        low, high = 0.0, 1.0 / float(direction.min())
        for _ in range(12):
            middle = (low + high) / 2
            plan = space.plan(np.clip(middle * direction, 0, 1).tolist())
            low, high = (middle, high) if drafts.make(plan).macs < macs else (low, middle)
        if abs(drafts.make(plan).macs / macs - 1) < TOLERANCE and plan not in plans:
            plans.append(plan)
    return plans


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line for each thing that a search could look at."""
    truth = np.asarray([row["fine-tuned"] for row in rows])
    print(f"\n{len(rows)} plans, fine-tuned {truth.mean():.2f} % ({truth.min():.2f} to {truth.max():.2f} %)\n")
    print("| score | mean | rank correlation with fine-tuned | 95 % interval |\n| --- | --: | --: | --- |")
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(rows), (2000, len(rows)))
    for name in rows[0]:
        if name in ("key", "plan", "fine-tuned"):
            continue
        seen = np.asarray([row[name] for row in rows], dtype=np.float64)
        again = [spearman(seen[draw], truth[draw]) for draw in draws if len(set(draw.tolist())) > 2]
        low, high = np.nanquantile(again, (0.025, 0.975))
        mean = f"{seen.mean():.3f}" if seen.mean() < 1 else f"{seen.mean():.4g}"
        print(f"| {name} | {mean} | {spearman(seen, truth):.2f} | {low:.2f} to {high:.2f} |")


def spearman(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, ties shared."""
    ranks = [(values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2 for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(each) for each in ranks) > 0 else float("nan")


if __name__ == "__main__":
    main()
