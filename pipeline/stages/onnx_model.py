"""ONNX model: a network that the user gives as an ONNX file, in place of a factory and weights."""

import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from pipeline.core.batch import Inputs, joined
from pipeline.core.opsets import FileFormat, choose_format
from pipeline.core.profile import Profile
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import ModelError, ProfileError, TraceError, WeightsError
from pipeline.graph.given.batchnorm import has_weights_of, with_batchnorms
from pipeline.graph.given.read import GivenNetwork, read_given
from pipeline.graph.metadata import opset_of
from pipeline.graph.structure import load_graph
from pipeline.graph.to_torch import network_of
from pipeline.stages.job import Job
from pipeline.system.files import write_atomically
from pipeline.system.foreign_file import ONNX_LIMIT_BYTES, read_foreign
from pipeline.training.load import ModelSource
from pipeline.training.task import Task

__all__ = ["is_onnx", "known_format", "onnx_source", "read_onnx", "write_graph"]

IMAGES, TOGETHER = 128, 16
"""Number of images for the statistics of BatchNorm layers that are put back, and how many run at once."""


def is_onnx(model: str) -> bool:
    """Whether `model`, as in `Job.model`, is an ONNX file."""
    return model.lower().endswith(".onnx")


def known_format(profile: Profile, onnxruntimes: list[str]) -> FileFormat:
    """The format of files that runtimes of these versions read; see `choose_format`. Raises ProfileError if there is none."""
    try:
        return choose_format(onnxruntimes, profile.runtime.opset, profile.runtime.ir_version)
    except ValueError as problem:
        raise ProfileError(f"{profile.device.name}: runtime: {problem}") from None


def read_onnx(job: Job, profile: Profile) -> GivenNetwork:
    """Read the ONNX file of `job`. Raises ModelError, also for options that only a factory takes, and ProfileError."""
    if job.weights is not None:
        raise WeightsError(f"{job.model}: an ONNX file has its own weights; leave out --weights")
    if job.model_args:
        raise ModelError(f"{job.model}: an ONNX file has no factory that takes arguments; leave out --model-arg")
    versions = [importlib.metadata.version("onnxruntime"), *filter(None, [profile.runtime.onnxruntime])]
    form = known_format(profile, versions)
    return read_given(Path(job.model), job.shape, form.opset, max(form.opset, form.highest_opset))


def onnx_source(spec: str, given: GivenNetwork) -> ModelSource:
    """The torch module that is rebuilt from `given`, as the source of a network. Its images have the size of the file's input."""
    shape, preprocessing = given.facts.doors[0].shape, None
    if len(given.facts.doors) == 1 and len(shape) == 4:
        preprocessing = Preprocessing(size=shape[2], width=None if shape[3] == shape[2] else shape[3])

    def factory() -> nn.Module:
        try:
            return network_of(given.model)
        except TraceError as problem:
            raise TraceError(f"{spec}: {problem}") from None

    return ModelSource(spec, factory, preprocessing, None, needs_weights=False)


def write_graph(given: GivenNetwork, task: Task, form: FileFormat, dense_path: Path) -> None:
    """Write the trainable graph of `given`, with BatchNorm layers put back, to `dense_path`, unless it is there.

    Raises TraceError if the device cannot read the graph's opset, and StorageError.
    """
    opset, highest = opset_of(given.model), max(form.opset, form.highest_opset)
    if opset > highest:
        raise TraceError(
            f"the network has ONNX opset {opset}, and the device reads {highest}; write the device's version as "
            "runtime.onnxruntime into the profile, so that the file is converted"
        )
    if dense_path.is_file() and has_weights_of(load_graph(read_foreign(dense_path, ONNX_LIMIT_BYTES)), given.model):
        return
    model = with_batchnorms(given.model, _few(task))
    write_atomically(dense_path, model.SerializeToString(deterministic=True))


def _few(task: Task) -> Iterator[Inputs]:
    samples = joined(inputs[:IMAGES] for inputs, _ in itertools.islice(task.calibration(), 1))
    yield from samples.split(TOGETHER)
