"""Records real measurements of many plans of one network, for `plan_tables.py`. Run: python benchmarks/record_plans.py --help

Each plan is sliced, timed in turn with the dense network, and scored after least-squares reconstruction and new BatchNorm
statistics. Time is the processor time of one thread with the session settings of the Raspberry Pi's profile, on this machine. So
other programs disturb it less than a clock, but they still take cache and memory bandwidth; the load is in each line.

The command can be interrupted at any time. The same command continues. At its end, and every 100 plans, it writes the compressed
file in benchmarks/results/plans/.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from plan_draws import next_fine_tuned, next_plan
from plan_lines import FOLDER, Recording, read_recording, space_facts, store_recording
from plan_memory import session_of
from torch import Tensor, nn

from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.search.problem import SearchSpace
from pipeline.search.sensitivity import probing_plans
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.search_space import search_space
from pipeline.stages.sensitivity import output_distance
from pipeline.stages.shared_device import share_device
from pipeline.system.files import sha256_bytes
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.scoring import accuracy, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

NETWORKS: dict[str, tuple[str, str | None]] = {
    "resnet20": ("resnet20", "models/resnet20-cifar10.safetensors"),
    "resnet56": ("resnet56", "models/resnet56-cifar10.safetensors"),
    "vgg16_bn": ("vgg16_bn", None),
    "mobilenet_v2": ("mobilenet_v2", "models/mobilenet_v2-cifar10.safetensors"),
    "efficientnet_lite0": ("benchmarks/efficientnet_lite0.py:make", None),
}
"""Name -> `--model`, and the weights in the repository. Other weights come from `--weights`."""
TARGET = "raspberrypi"
WARM_UP, TURNS = 2, 25
STATISTICS_IMAGES, SCORE_IMAGES = 256, 500
TUNING_IMAGES, TUNED_IMAGES, TUNING_RATE = 3200, 1000, 0.05
MEMORY_EVERY, REPEAT_EVERY, STORE_EVERY = 16, 20, 100


@click.command()
@click.argument("network", type=click.Choice(list(NETWORKS)))
@click.option("--data", required=True, help="A folder with train/ and test/, as for `compress --data`.")
@click.option("--unlabelled", type=click.Path(path_type=Path), help="Pictures, if --data is none: agreement is the score.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights that are not in the repository.")
@click.option("--plans", default=1500, show_default=True)
@click.option("--fine-tuned", default=60, show_default=True, help="Number of plans that are also fine-tuned.")
@click.option("--repeats", default=0, show_default=True, help="Measure the latency of each plan again so many times, at the end.")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
def main(
    network: str,
    data: str,
    unlabelled: Path | None,
    weights: Path | None,
    plans: int,
    fine_tuned: int,
    repeats: int,
    out: Path,
) -> None:
    """Record the plans of NETWORK that are missing."""
    keep_freed_memory()
    model, known = NETWORKS[network]
    given = weights or (Path(known) if known else None)
    job = Job(target=TARGET, model=model, weights=given, data=data, unlabelled=unlabelled)
    bench = Bench(job)
    growing, stored = out / f"{network}.jsonl", out / f"{network}.jsonl.xz"
    out.mkdir(parents=True, exist_ok=True)
    recording = continued(growing, stored, bench.header(network, given))
    with growing.open("a") as file:

        def add(line: dict[str, Any]) -> None:
            recording.lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

        for plan in bench.missing(recording):
            add(bench.alone(plan))
        while len(done := recording.plans) < plans:
            add(bench.line(*next_plan(bench.space, done), memory=len(done) % MEMORY_EVERY == 0))
            if len(done) % REPEAT_EVERY == 0 and len(done) > STORE_EVERY:
                add(bench.again(done[len(done) - STORE_EVERY]["widths"]))
            if len(done) % STORE_EVERY == 0:
                store_recording(recording, stored)
                print(f"{len(done) + 1} of {plans} plans, {time.process_time():.0f} s of processor time", flush=True)
        while len(tuned := recording.fine_tuned) < fine_tuned:
            add(bench.fine_tune(next_fine_tuned(recording.plans, tuned)))
            print(f"{len(tuned) + 1} of {fine_tuned} fine-tuned, {time.process_time():.0f} s of processor time", flush=True)
        for line in recording.unrepeated(repeats):
            add(bench.again(line["widths"]))
    store_recording(recording, stored)
    growing.unlink()


def continued(growing: Path, stored: Path, header: dict[str, Any]) -> Recording:
    """The recording so far. The growing file is written anew, so that a line that was cut off is gone."""
    header = json.loads(json.dumps(header))
    found = read_recording(growing) or read_recording(stored) or Recording(header, [])
    changed = [name for name in ("weights", "data", "choices") if found.header[name] != header[name]]
    if changed:
        raise click.ClickException(f"{stored}: was recorded with other {', '.join(changed)}; choose another --out")
    growing.write_text("".join(json.dumps(line) + "\n" for line in (found.header, *found.lines)))
    return found


class Bench:
    """One network with all that is needed to measure, score and fine-tune its plans."""

    def __init__(self, job: Job) -> None:
        loaded = load_model_and_task(job, load_profile(job.target))
        assert isinstance(loaded.task, Classification)
        splits = loaded.task.splits
        short = replace(splits, train=splits.train.sample(TUNING_IMAGES, 0), validation=splits.validation.sample(TUNED_IMAGES, 0))
        self.task = Classification(short, FinetuneSettings(epochs=1, learning_rate=TUNING_RATE), seed=0)
        self._statistics = [pixels for pixels, _ in splits.pictures.sample(STATISTICS_IMAGES, 0).batches(256)]
        self._scoring = splits.validation.sample(SCORE_IMAGES, 0)
        with tempfile.TemporaryDirectory() as scratch, share_device(load_profile(job.target), print) as device:
            self.builder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
        self.space: SearchSpace = search_space(self.builder, int(load_profile(job.target).runtime.channel_step))
        calibration = (pixels for pixels, _ in loaded.task.calibration())
        self._reconstruction = start_reconstruction(self.builder.module, self.builder.space, calibration)
        self._answers: list[Tensor] | None = None
        dense = self.builder.make(self.space.dense())
        self._dense = session_of(dense.data)
        name = self._dense.get_inputs()[0].name
        self._feed = {name: np.asarray(loaded.task.example(), dtype=np.float32)}
        self._facts: dict[str, Any] = {"macs": dense.macs, "params": dense.params, "file_bytes": dense.file_size_bytes}
        self._description = loaded.task.description

    def header(self, network: str, weights: Path | None) -> dict[str, Any]:
        """The first line of the file."""
        return {
            "network": network,
            "weights": sha256_bytes(weights.read_bytes())[:16] if weights else "",
            "data": self._description,
            "target": f"{TARGET}, emulated: processor time of one thread",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "images": {
                "statistics": STATISTICS_IMAGES,
                "score": SCORE_IMAGES,
                "fine-tuning": TUNING_IMAGES,
                "fine-tuned": TUNED_IMAGES,
            },
            "dense": self._facts,
            "choices": space_facts(self.space),
        }

    def line(self, kind: str, widths: list[int], *, memory: bool) -> dict[str, Any]:
        """All figures of one plan. The score is that before fine-tuning."""
        plan = self.space.plan_of(widths)
        pruned = self.builder.make(plan)
        return {
            "kind": kind,
            "widths": widths,
            **self.latency(pruned.data),
            "macs": pruned.macs,
            "params": pruned.params,
            "file_bytes": pruned.file_size_bytes,
            **({"memory_bytes": _memory_bytes(pruned.data)} if memory else {}),
            "score": round(self.score(self.student(plan)), 3),
        }

    def missing(self, recording: Recording) -> list[ChannelPlan]:
        """The dense plan, and those in which one group alone loses channels, as far as their distances are not known."""
        known = {tuple(line["widths"]) for line in recording.lines if line["kind"] == "alone"}
        plans = [self.space.dense(), *(plan for plans in probing_plans(self.space).values() for plan in plans)]
        return [plan for plan in plans if self.space.widths_in(plan) not in known]

    def alone(self, plan: ChannelPlan) -> dict[str, Any]:
        """How far the outputs move; see `pipeline.stages.sensitivity`."""
        if self._answers is None:
            with torch.inference_mode():
                self._answers = [self.builder.module(pixels) for pixels in self._statistics]
        distance = output_distance(self.student(plan), self._answers, self._statistics)
        return {"kind": "alone", "widths": list(self.space.widths_in(plan)), "distance": round(distance, 6)}

    def again(self, widths: list[int]) -> dict[str, Any]:
        """The latency of a plan, measured once more."""
        return {"kind": "again", "widths": widths, **self.latency(self.builder.make(self.space.plan_of(widths)).data)}

    def fine_tune(self, widths: list[int]) -> dict[str, Any]:
        """The accuracy of a plan after one epoch on a few thousand images, in percent."""
        with tempfile.TemporaryDirectory() as scratch:
            student = self.student(self.space.plan_of(widths))
            tuned = self.task.finetune(student, self.builder.module, 0, Path(scratch) / "checkpoint", lambda *_: None)
        return {"kind": "fine-tuned", "widths": widths, "accuracy": round(self.task.validate(tuned.module), 3)}

    def student(self, plan: ChannelPlan) -> nn.Module:
        """The pruned network after least-squares reconstruction."""
        kept = self.builder.kept(plan)
        module = shrink(self.builder.module, self.builder.space, kept).eval()
        self._reconstruction.apply(module, kept)
        return module

    def score(self, module: nn.Module) -> float:
        """Accuracy in percent, or agreement with the dense network."""
        module.to(memory_format=layout_of(module))
        with mixed_precision(torch.device("cpu")):
            recalibrate(module, self._statistics)
            return accuracy(module, self._scoring)

    def latency(self, data: bytes) -> dict[str, Any]:
        """The processor time as a share of the dense network's: the median of the ratios of neighbouring runs.

        The ratio of the least times is recorded, too. A program that takes cache or memory bandwidth disturbs it less.
        """
        session, cores = session_of(data), os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            runs = [[_seconds(each, self._feed) for each in (session, self._dense)] for _ in range(WARM_UP + TURNS)]
        finally:
            os.sched_setaffinity(0, cores)
        pairs = np.asarray(runs)
        ratios = pairs[WARM_UP:, 0] / pairs[WARM_UP:, 1]
        spread = 1.2533 * 1.4826 * float(np.median(np.abs(ratios - np.median(ratios)))) / TURNS**0.5  # error of a median
        return {
            "ratio": round(float(np.median(ratios)), 5),
            "ratio_error": round(spread, 5),
            "least_ratio": round(float(np.divide(*pairs.min(0))), 5),
            "dense_ms": round(1e3 * float(np.median(pairs[WARM_UP:, 1])), 4),
            "load": round(os.getloadavg()[0], 1),
        }


def _seconds(session: onnxruntime.InferenceSession, feed: dict[str, Any]) -> float:
    started = time.thread_time()
    session.run(None, feed)
    return time.thread_time() - started


def _memory_bytes(data: bytes) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plan.onnx"
        path.write_bytes(data)
        program = [sys.executable, str(Path(__file__).parent / "plan_memory.py"), str(path)]
        return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
