"""Do the figures that a search uses rank plans as fine-tuning does? Run: python benchmarks/scores.py --help

Random plans have about the same number of multiply-accumulates, so that size explains little. Before fine-tuning, each is scored
in three states: as it was cut, with least-squares reconstruction ("compensated"), and with the supernet's weights. In each state
its entropies are computed too: paper B's (1 - H), and the kept shares of the dense network's spatial and channel entropy. The
control uses only widths. Fine-tuning starts from the supernet's weights; with `--start compensated` there is no supernet. The
output is Spearman's rank correlation of each figure with the validation accuracy after fine-tuning, with a bootstrap interval
over the plans. Finished plans are not run again, and are not fine-tuned again if only a column is missing.
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

from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.search.problem import SearchSpace
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.reward import ENTROPY_INPUTS
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.stages.supernet import IMAGES, Schedule, affordable_steps, middle_share, plans_around, train_supernet
from pipeline.system.files import sha256_bytes, write_atomically
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.settings import FinetuneSettings

STEP = 4
"""Widths are multiples of this, as in the profiles of the boards."""
TOLERANCE = 0.15
"""Largest deviation from the requested multiply-accumulates."""
STATES = ("as cut", "compensated", "supernet")


def columns(start: str) -> set[str]:
    """The columns of a row whose plan is fine-tuned from the weights of state `start`."""
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
        drawn = random_plans(bench.space, bench.builder, share * bench.dense_macs, max(plans, len(rows)), seed)
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
    """One network, with everything that is needed to score its plans."""

    def __init__(self, job: Job, share: float, start: str, folder: Path) -> None:
        profile = load_profile(job.target)
        loaded = load_model_and_task(job, profile)
        self.task = task = loaded.task
        with tempfile.TemporaryDirectory() as scratch, share_device(profile, print) as device:
            self.builder = builder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
        self.dense_macs = builder.make(builder.space.dense()).macs
        self.space = search_space(builder, STEP)
        self._reconstruction = start_reconstruction(builder.module, builder.space, (pixels for pixels, _ in task.calibration()))
        self._supernet = self._train_supernet(job, share, folder) if start == "supernet" else None
        inputs = task.inputs(ENTROPY_INPUTS)
        self._spatial = start_spatial_entropy(builder.module, builder.space, inputs)
        self._channels = start_channel_entropy(builder.module, inputs)
        self._checkpoint = folder / "scores.safetensors"

    def _train_supernet(self, job: Job, share: float, folder: Path) -> nn.Module:
        builder, distillation_images = self.builder, self.task.distillation_images(IMAGES)
        assert distillation_images is not None
        typical = self._uniform(share * self.dense_macs)
        middle = builder.make(self.space.uniform(middle_share(typical))).macs
        steps = affordable_steps(middle, self.dense_macs, len(distillation_images))
        plans = (builder.kept(plan) for plan in plans_around(self.space, typical, 0))
        name = sha256_bytes(repr((job.model, job.weights, job.data, share)).encode())[:8]
        checkpoint = folder / f"supernet-{name}.safetensors"
        return train_supernet(builder.module, builder.space, Schedule(plans, steps), distillation_images, checkpoint)

    def row(self, plan: ChannelPlan, finetuned: float | None) -> dict[str, Any]:
        """All figures of one plan. It is fine-tuned unless `finetuned` is given."""
        kept, pruned = self.builder.kept(plan), self.builder.make(plan)
        cut = pruned.module
        states = [cut, self.reconstructed(plan)]
        if self._supernet is not None:
            states.append(shrink(self._supernet, self.builder.space, kept))
        student = copy.deepcopy(states[-1])
        row: dict[str, Any] = {"plan": list(plan.widths), "macs": pruned.macs, "parameters": pruned.params}
        row["kept widths"] = harmonic_mean(kept_widths(cut, self.builder.module))
        for state, module in zip(STATES, states, strict=False):
            row[f"accuracy, {state}"] = self.task.score(module)
            disorder = self._spatial.of(module, kept)
            row[f"1 - H, {state}"], row[f"kept spatial entropy, {state}"] = 1 - disorder.entropy, disorder.kept
            row[f"kept channel entropy, {state}"] = self._channels.kept(module)
        if finetuned is not None:
            return {**row, "fine-tuned": finetuned}
        self._checkpoint.unlink(missing_ok=True)
        tuned = self.task.finetune(student, self.builder.module, 0, self._checkpoint, lambda *_: None)
        row["fine-tuned"] = self.task.validate(tuned.module)
        self._checkpoint.unlink(missing_ok=True)
        return row

    def reconstructed(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, with the least-squares reconstruction of the removed channels."""
        module = copy.deepcopy(self.builder.make(plan).module)
        self._reconstruction.apply(module, self.builder.kept(plan))
        return module

    def looks(self, plan: ChannelPlan, module: nn.Module) -> tuple[Callable[[], object], ...]:
        """Three functions: the score, the spatial entropy and the channel entropy."""
        kept = self.builder.kept(plan)
        return (
            lambda: self.task.score(module),
            lambda: self._spatial.of(module, kept),
            lambda: self._channels.kept(module),
        )

    def _uniform(self, macs: float) -> float:
        """The share of channels at which the uniform plan has `macs`."""
        low, high = 0.0, 1.0
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self.builder.make(self.space.uniform(middle)).macs < macs else (low, middle)
        return low


def kept_widths(small: nn.Module, whole: nn.Module) -> list[float]:
    """The share of its channels that each convolution keeps."""
    sizes = {name: layer.out_channels for name, layer in whole.named_modules() if isinstance(layer, nn.Conv2d)}
    return [layer.out_channels / sizes[name] for name, layer in small.named_modules() if isinstance(layer, nn.Conv2d)]


def random_plans(space: SearchSpace, builder: PrunedModelBuilder, macs: float, count: int, seed: int) -> list[ChannelPlan]:
    """Random ratios, scaled by bisection to `macs`. Plans that deviate too much are drawn again."""
    generator = np.random.default_rng(seed)
    plans: list[ChannelPlan] = []
    while len(plans) < count:
        direction = generator.uniform(0.1, 1.0, len(space.choices))
        low, high = 0.0, 1.0 / float(direction.min())
        for _ in range(12):
            middle = (low + high) / 2
            plan = space.plan(np.clip(middle * direction, 0, 1).tolist())
            low, high = (middle, high) if builder.make(plan).macs < macs else (low, middle)
        if abs(builder.make(plan).macs / macs - 1) < TOLERANCE and plan not in plans:
            plans.append(plan)
    return plans


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each figure that a search could use."""
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
    """Spearman's rank correlation. Ties share their rank."""
    ranks = [(values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2 for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(each) for each in ranks) > 0 else float("nan")


if __name__ == "__main__":
    main()
