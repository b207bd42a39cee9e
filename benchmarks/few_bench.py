"""One network with the pictures of one draw, for `few.py`: it makes the pruned network of a plan, and recovers it in each way."""

import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import numpy as np
import torch
from few_cells import Amount, Cell, Facts, Network, packed
from mir import mir
from torch import nn

from pipeline.core.paired_difference import Scores, paired_drop
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.data.decode import Decoder
from pipeline.data.folder import MEMORY_LIMIT_BYTES, fetch_files
from pipeline.data.images import Splits
from pipeline.data.listing import Skipped, image_files
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.stages.finetune_chosen import kept_inputs_of
from pipeline.stages.job import Job
from pipeline.stages.prepare import LoadedModel, start_building
from pipeline.stages.shared_device import share_device
from pipeline.training.adapt_network import adapt
from pipeline.training.epochs import Validation, distillation_loss
from pipeline.training.finetune import Finetuned, Tracking, TrainingData, finetune
from pipeline.training.learning_rates import fitting_batch_size
from pipeline.training.load import answered, find_model, load_model
from pipeline.training.recover.distil import TEMPERATURE
from pipeline.training.recover.methods import methods_of
from pipeline.training.recover.recover import recover
from pipeline.training.scoring import hits, measure_shifts, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.statistics_shift import Shifts, kept_shifts, set_shifts
from pipeline.training.task import Classification
from pipeline.training.teacher import Teacher

VALIDATION_SHARE, FEW_VALIDATION, MOST_VALIDATION_SHARE = 0.15, 10, 0.2
"""Share of the pictures for validation, and a number that is held out if it is at most the larger share, as in a run."""
TEST = 2000
"""Most pictures for the test."""
TEST_SHARE = 0.5
"""Share of the pictures that are for the test where there is no test folder."""


@dataclass(frozen=True)
class Inputs:
    """Where the pictures and the weights are."""

    cifar: Path | None
    """Holds train/ and test/, one sub-folder per class."""
    imagenet: Path | None
    """Holds one sub-folder per class."""
    weights: Path | None
    """Of a network whose weights are not in the repository."""

    def pictures(self, network: Network) -> Path | None:
        """The folder with the pictures of `network`; None if it was not given."""
        return self.cifar if network.pictures == "cifar" else self.imagenet


class Bench:
    """A network and its pictures. The labels are the dense network's answers. `amount` and `seed` decide which pictures."""

    def __init__(self, network: Network, inputs: Inputs, amount: Amount, seed: int) -> None:
        source, folder = find_model(network.model), inputs.pictures(network)
        module = load_model(source, inputs.weights if network.needs_weights else network.weights_file, None)
        assert folder is not None
        if source.preprocessing is None or source.preprocessing.size is None or source.preprocessing.mean is None:
            raise click.ClickException(f"{network.model}: declares no PREPROCESSING with size and mean")
        train, test = drawn(folder, amount, seed)
        held_out = max(round(VALIDATION_SHARE * len(train)), min(FEW_VALIDATION, round(MOST_VALIDATION_SHARE * len(train))))
        paths, numbers = [*train, *test], torch.arange(len(train) + len(test))
        parts = numbers[held_out : len(train)], numbers[:held_out], numbers[len(train) :]
        decoder = Decoder(source.preprocessing.size, len(source.preprocessing.mean), source.preprocessing)
        fetch = fetch_files(paths, decoder, MEMORY_LIMIT_BYTES)
        splits = Splits.of(fetch, torch.full((len(paths),), -1), parts, source.preprocessing, (), "pictures without labels")
        adapt(module, next(splits.train.batches(2))[0])
        self.splits = answered(module, splits)
        loaded = LoadedModel(module, Classification(self.splits, FinetuneSettings(), seed), {}, ())
        profile = load_profile("local")
        job = Job("local", network.model, data="none", unlabelled=folder, importance="reconstruction", seed=seed)
        with tempfile.TemporaryDirectory() as scratch, share_device(profile, print) as device:
            self.builder: PrunedModelBuilder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
        self.task = Classification(self.splits, FinetuneSettings(), seed)

    @cached_property
    def reconstruction(self) -> Reconstruction:
        """Least-squares reconstruction from the pictures at hand."""
        calibration = (pixels for pixels, _ in self.task.calibration())
        return start_reconstruction(self.builder.module, self.builder.space, calibration)

    @cached_property
    def shifts(self) -> Shifts:
        """How the dense network's BatchNorm statistics differ from estimates from the pictures at hand."""
        return measure_shifts(self.builder.module, self.task.statistics_images())

    @cached_property
    def dense(self) -> nn.Module:
        """The dense network in evaluation mode."""
        return self.builder.module.eval()

    def student(self, plan: ChannelPlan, *, corrected: bool = True) -> nn.Module:
        """The pruned network after least-squares reconstruction. With `corrected`, estimated statistics are corrected."""
        kept = self.builder.kept(plan)
        student = shrink(self.builder.module, self.builder.space, kept).eval()
        self.reconstruction.apply(student, kept)
        if corrected:
            set_shifts(student, kept_shifts(self.shifts, self.builder.space, kept))
        return student

    def run(self, cell: Cell, widths: Mapping[str, int], steps: int) -> Facts:
        """Recover the network by `cell.row`, and test it. `steps` is for MiR."""
        plan, started = self.builder.space.plan(widths), time.process_time()
        tuned = self._recovered(cell, plan, steps)
        taken = (time.process_time() - started) / 60
        found = self.validated(tuned.module)
        each = hits(tuned.module, self.splits.test)
        drop = paired_drop(
            Scores(100.0, np.full(len(each), 100.0)), Scores(100.0 * float(each.mean()), np.where(each, 100.0, 0.0))
        )
        assert drop is not None
        return {
            "agreement": round(100.0 * float(each.mean()), 3),
            "interval": [round(100 - end, 3) for end in (drop.estimate.high, drop.estimate.low)],
            "validation_agreement": round(found.accuracy, 3),
            "validation_distance": round(found.loss, 5),
            "macs": round(self.builder.make(plan).macs / self.builder.make(self.builder.space.dense()).macs, 5),
            "core_minutes_taken": round(taken, 2),
            "threads": torch.get_num_threads(),
            "steps": self._steps(cell, tuned, steps),
            "choices": list(tuned.choices),
            "best": tuned.epoch,
            "pictures_of": [len(images) for images in (self.splits.train, self.splits.validation, self.splits.test)],
            "hits": packed(each),
        }

    def _recovered(self, cell: Cell, plan: ChannelPlan, steps: int) -> Finetuned:
        kept = self.builder.kept(plan)
        if cell.row == "none":
            return Finetuned(shrink(self.builder.module, self.builder.space, kept).eval())
        teacher = Teacher(self.dense, kept_inputs_of(self.builder.module, self.builder.space, kept))
        if cell.row == "statistics":
            student = self.student(plan)
            recalibrate(student, self.task.statistics_images())
            return Finetuned(student)
        if cell.row == "mir":
            student = self.student(plan, corrected=False)
            return Finetuned(mir(student, teacher, self.splits.train, steps, cell.seed))
        recovery = "none" if cell.row == "before" else cell.row
        settings = FinetuneSettings(recover=recovery, minutes=cell.core_minutes)  # type: ignore[arg-type]
        data = TrainingData(self.splits.train, self.splits.validation)
        if not methods_of(settings, len(self.splits.train)):
            return finetune(self.student(plan, corrected=False), teacher.module, data, settings, cell.seed)
        tracking = Tracking(clock=time.process_time)
        return recover(self.student(plan), teacher, data, settings, cell.seed, tracking)

    def _steps(self, cell: Cell, tuned: Finetuned, steps_of_mir: int) -> int:
        """The number of steps of training, without those of trials."""
        if cell.row == "mir":
            return steps_of_mir
        found = next((int(match[1]) for text in tuned.choices if (match := re.match(r"(\d+) steps", text))), None)
        if found is not None:
            return found
        images = len(self.splits.train)
        return len(tuned.accuracies) * math.ceil(images / fitting_batch_size(images))

    def validated(self, module: nn.Module) -> Validation:
        """Agreement with the dense network on the validation pictures, and the distance between the outputs."""
        agreed, distance, count = 0, 0.0, len(self.splits.validation)
        module.eval()
        with torch.inference_mode():
            for pixels, labels in self.splits.validation.batches():
                logits, target = module(pixels), self.dense(pixels)
                agreed += int((logits.argmax(1) == labels).sum())
                distance += float(distillation_loss(logits, target, TEMPERATURE)) * len(labels)
        return Validation(100.0 * agreed / count, distance / count)


def drawn(folder: Path, amount: Amount, seed: int) -> tuple[list[Path], list[Path]]:
    """The pictures to train and validate with, shuffled, and those for the test, by the seed.

    The test pictures are from `folder`/test, or from half of the pictures that is never trained on. They are the same for every
    amount.
    """
    whole = (folder / "train").is_dir()
    pool, tested = (listed(folder / "train"), listed(folder / "test")) if whole else (listed(folder), [])
    pool = shuffled(pool, seed)
    if not whole:
        cut = round((1 - TEST_SHARE) * len(pool))
        pool, tested = pool[:cut], pool[cut:]
    if amount.per_class:
        count = dict.fromkeys(dict.fromkeys(path.parent for path in pool), 0)
        chosen = []
        for path in pool:
            count[path.parent] += 1
            chosen += [path] if count[path.parent] <= amount.pictures else []
    else:
        chosen = pool[: amount.pictures]
    return chosen, shuffled(tested, seed)[:TEST]


def listed(folder: Path) -> list[Path]:
    """The images below `folder`. Raises click.ClickException if there are none."""
    found = image_files(folder, Skipped()) if folder.is_dir() else []
    if not found:
        raise click.ClickException(f"{folder}: contains no images")
    return found


def shuffled(paths: Sequence[Path], seed: int) -> list[Path]:
    """`paths` in an order that only the seed decides."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))
    return [paths[number] for number in order.tolist()]
