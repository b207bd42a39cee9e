"""Prepare: load the user's network and task, and start the probe that measures it."""

import importlib.metadata
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core.batch import Outputs
from pipeline.core.budget import Constraint, sample_size_notices
from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.core.network_form import Form, in_form, settle_form
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import Importance
from pipeline.core.profile import Profile
from pipeline.core.progress import Progress, no_progress
from pipeline.data.images import Splits
from pipeline.data.unlabelled import with_unlabelled
from pipeline.errors import ModelError
from pipeline.foreign_text import clean_text
from pipeline.graph.given.read import GivenNetwork
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.cached import CachedProbe, cache_folder
from pipeline.probe.calibrated import CalibratedProbe
from pipeline.probe.connection import Notify
from pipeline.probe.interface import Probe
from pipeline.probe.local import LocalProbe
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.check_network import argument_names, check_classifier, check_runs, check_samples, fit_to_file
from pipeline.stages.job import Job
from pipeline.stages.load_splits import load_splits
from pipeline.stages.onnx_model import is_onnx, known_format, onnx_source, read_onnx, write_graph
from pipeline.stages.probe_adapter import reference_of
from pipeline.stages.shared_device import SharedDevice
from pipeline.system.files import sha256_bytes
from pipeline.training.adapt_network import adapt
from pipeline.training.agreement import Agreement, agreement_with
from pipeline.training.load import answered, find_model, load_model, load_task, settle_normalisation
from pipeline.training.relative_error import is_classifier
from pipeline.training.task import Classification, OwnTask, Task
from pipeline.training.user_errors import network_errors

__all__ = [
    "LoadedModel",
    "emulated",
    "file_format",
    "importance_of",
    "load_model_and_task",
    "start_building",
    "start_local",
    "start_probe",
]


@dataclass(frozen=True)
class LoadedModel:
    """The network to compress, with its task."""

    module: nn.Module
    task: Task
    facts: dict[str, Any]
    """Fingerprints of weights, data and software. A run does not mix results that have different fingerprints."""
    notices: tuple[str, ...]
    validation_score: float | None = None
    """Score of the dense network, if it is known this early."""
    image_s: float | None = None
    """Time of the dense network per validation image, in seconds, if it was scored."""
    given: GivenNetwork | None = None
    """The network as the user's ONNX file holds it, if it comes from one."""

    def test_set_notices(self, constraints: tuple[Constraint, ...]) -> tuple[str, ...]:
        """Notices if there are too few test images to judge an accuracy budget."""
        task = self.task
        return sample_size_notices(
            constraints,
            images=task.test_images,
            tests_each_image=task.tests_each_image,
            dense_accuracy=None if isinstance(task, Agreement) else self.validation_score,  # its values are no hits
            agreement=task.score_name == "agreement",
        )


def load_model_and_task(job: Job, profile: Profile, progress: Progress = no_progress) -> LoadedModel:
    """Load the network, the weights and the data of `job`. Raises ModelError, DataError and their subclasses."""
    progress(0, 0, "reading network and data")
    given = read_onnx(job, profile) if is_onnx(job.model) else None
    source = onnx_source(job.model, given) if given else find_model(job.model, job.model_args)
    notices: list[str] = [f"{job.model}: {text}" for text in given.notices] if given else []
    score, image_s = None, None
    task: Task
    if job.task is not None:
        wanted = load_task(job.task) if isinstance(job.task, str) else job.task
        own = fit_to_file(wanted, given, job.model) if given else wanted
        module = load_model(source, job.weights, None, notices.append)
        form = settle_form(module, own.inputs(1), job.model, own.input_names)
        task = _in_form(own, form) if form else own
        with network_errors("first forward pass"):
            check_samples(module, task.inputs(1), job.model)
            notices += adapt(module, task.inputs(2))
    else:
        splits = load_splits(job, source.preprocessing, given, progress)
        module = load_model(source, job.weights, len(splits.classes) or None, notices.append)
        one, two = (next(splits.train.sample(count, 0).batches(count))[0] for count in (1, 2))
        form = settle_form(module, one, job.model, argument_names(module, splits, job))
        outputs = check_runs(module, one, job)
        if splits.classes:
            check_classifier(outputs, len(splits.classes), job)
        check_samples(module, one, job.model)
        with network_errors("first forward pass"):
            notices += adapt(module, two)
        task = _task_of(job, module, splits, outputs, progress)
        notices += task.splits.notices
        started = time.monotonic()
        score = task.validate(module, progress)
        image_s = (time.monotonic() - started) / len(task.splits.validation)
        if not splits.classes:
            notices.append(
                "there are no labels: agreement with the dense network is judged in place of accuracy"
                + (", as the mean relative error of its outputs" if isinstance(task, Agreement) else "")
            )
        elif score < 2 * (chance := 100 / len(splits.classes)):
            notices.append(
                f"the network's validation accuracy is {score:.1f} %, close to the chance level of {chance:.1f} %; check that "
                "weights, classes (folders in alphabetical order) and normalisation match"
            )
    if form and form.changes_outputs:
        what = "outputs only this tensor" if len(form.places) == 1 else f"has the outputs {', '.join(form.outputs)}"
        notices.append(clean_text(f"the network returns a {form}; the shipped file {what}"))
    if not profile.measures_its_device:
        notices.append(
            f"this machine measures in place of {profile.device.name}: its figures rank plans and judge relative budgets, but "
            "they are not the device's"
        )
    facts: dict[str, Any] = {
        "weights": _digest(module),
        "data": task.description,
        "torch": torch.__version__,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
    }
    if task.few_pictures:
        facts["importance"] = importance_of(job, task)
    if isinstance(task, Classification):
        facts["preprocessing"] = task.splits.train.preprocessing.facts()
    return LoadedModel(module, task, facts, tuple(notices), score, image_s, given)


def _task_of(job: Job, module: nn.Module, splits: Splits, outputs: Outputs, progress: Progress) -> Classification:
    """The task of the command line. `outputs` are those of the network for one sample."""
    if job.importance == "taylor" and not is_classifier(outputs):
        raise ModelError("importance: 'taylor' needs a network that returns one tensor of (N, classes); choose another one")
    if splits.classes:
        splits = settle_normalisation(module, splits, progress)
    elif is_classifier(outputs):
        splits = answered(module, splits, progress)
    if job.unlabelled and job.data != "none":  # with "none", they are the data set
        splits = with_unlabelled(splits, job.unlabelled)
    if not is_classifier(outputs):
        return agreement_with(module, splits, job.finetuning, job.seed)
    return Classification(splits, job.finetuning, job.seed)


def importance_of(job: Job, task: Task) -> Importance:
    """What ranks the channels: the user's choice, or by default the usual one for so many pictures."""
    return job.importance or ("reconstruction" if task.few_pictures else "l2")


def start_building(
    job: Job,
    loaded: LoadedModel,
    dense_path: Path,
    device: SharedDevice,
    progress: Progress = no_progress,
    grouped: Grouped = "evenly",
) -> PrunedModelBuilder:
    """Analyse the network and export it once to `dense_path`, or read that file, for the installed onnxruntime versions.

    Raises the errors of `file_format` and `start_builder`.
    """
    form, task = file_format(device, ask=not (job.dry_run or job.calibration)), loaded.task
    if loaded.given:
        write_graph(loaded.given, task, form, dense_path)
    importance = importance_of(job, task)
    return start_builder(
        loaded.module,
        task.example(),
        form,
        PruningSettings(importance, task.calibration(labelled=importance == "taylor"), grouped, job.restriction),
        dense_path,
        progress,
    )


def start_probe(device: SharedDevice, builder: PrunedModelBuilder, *, dry_run: bool) -> Probe:
    """Start the probe that the profile asks for. Its reference is the dense graph. Raises ProbeError and its subclasses."""
    return SimulatedProbe(device.profile, reference_of(builder)) if dry_run else device.probe(builder)


def start_local(
    profile: Profile, builder: PrunedModelBuilder, notify: Notify, calibration: LatencyPredictor | None = None
) -> Probe:
    """Start a probe on this machine instead of the device. With a calibration it predicts the device's latencies."""
    reference = reference_of(builder)
    probe = CachedProbe(LocalProbe(emulated(profile), reference, notify), reference, cache_folder())
    return CalibratedProbe(probe, reference, calibration) if calibration else probe


def file_format(device: SharedDevice, *, ask: bool) -> FileFormat:
    """Opset and IR version of all files: what the profile asks for, or the lowest that suffice. Both the device's onnxruntime and
    the local one must read them. The device is asked for its version, but with no host or without `ask` the profile's is used.
    Raises ProfileError if one of the two cannot read what the profile asks for, ProbeError and its subclasses.
    """
    profile, versions = device.profile, [importlib.metadata.version("onnxruntime")]
    if profile.device.host and ask:
        versions.append(device.onnxruntime())
    elif profile.runtime.onnxruntime:
        versions.append(profile.runtime.onnxruntime)
    return known_format(profile, versions)


def emulated(profile: Profile) -> Profile:
    """`profile`, changed so that it is measured on this machine."""
    return profile.model_copy(update={"device": profile.device.model_copy(update={"host": None})})


def _in_form(task: OwnTask, form: Form) -> OwnTask:
    """The user's functions still see the network's own form of inputs and outputs."""
    test, each = task.evaluate_test, task.test_each_image
    return replace(
        task,
        evaluate=in_form(task.evaluate, form),
        train=in_form(task.train, form),
        evaluate_test=in_form(test, form) if test else None,
        test_each_image=in_form(each, form) if each else None,
    )


def _digest(module: nn.Module) -> str:
    parts = (
        f"{name} {tuple(t.shape)}".encode() + t.detach().contiguous().numpy().tobytes() for name, t in module.state_dict().items()
    )
    return sha256_bytes(b"".join(parts))[:16]
