"""Measure: ONNX files as they are, on a profile's device; two of them interleaved, with an answer to which is faster."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.errors import ModelError, one_line
from pipeline.graph.structure import load_graph
from pipeline.graph.structure import structure as structure_of
from pipeline.measurement import Failure, Fingerprint, Measurement
from pipeline.prepare import connect
from pipeline.probe.base import Effort, Graph, Load, Reference
from pipeline.probe.connection import Notify
from pipeline.profile import Profile
from pipeline.statistics import Estimate

__all__ = ["Answer", "Comparison", "FileMeasurement", "Measured", "measure_files"]

Answer = Literal["faster", "slower", "undecided"]


@dataclass(frozen=True)
class FileMeasurement:
    """One file."""

    path: Path
    size_bytes: int
    shape: tuple[int, ...]
    """Of the input that it was fed with."""
    measured: Measurement | Failure


@dataclass(frozen=True)
class Comparison:
    """A file against the first one, run in turns in the same processes."""

    path: Path
    ratio_p50: Estimate
    """Its median latency over the first one's."""

    @property
    def answer(self) -> Answer:
        """Faster or slower only where the whole interval says so."""
        if self.ratio_p50.high < 1:
            return "faster"
        return "slower" if self.ratio_p50.low > 1 else "undecided"


@dataclass(frozen=True)
class Measured:
    """What `compress measure` found."""

    fingerprint: Fingerprint
    load: Load
    files: tuple[FileMeasurement, ...]
    comparisons: tuple[Comparison, ...]


def measure_files(
    profile: Profile, paths: Sequence[Path], period_ms: float = 0.0, sustain_s: float = 0.0, notify: Notify = lambda text: None
) -> Measured:
    """Measure each of `paths`, one at least, and all but the first against the first; over one connection.

    `period_ms`: one run begins so long after the one before. `sustain_s`: keep running for so long, in one process; the
    files are then not compared. Raises ModelError for what is no ONNX file, ProbeError and its kin.
    """
    graphs = [_read(path) for path in paths]
    load = Load(period_ms, sustain_s, reference=False)
    effort = Effort(1 if sustain_s else profile.probe.final_processes)
    probe = connect(profile, Reference(*graphs[0]), notify)
    try:
        found = [
            FileMeasurement(path, len(graph.data), inputs.shape, probe.measure(graph, effort, replace(load, inputs=inputs)))
            for path, (graph, inputs) in zip(paths, graphs, strict=True)
        ]
        fingerprint = next(
            (each.measured.fingerprint for each in found if isinstance(each.measured, Measurement)), probe.fingerprint
        )
        sound = [isinstance(each.measured, Measurement) for each in found]
        others = [number for number in range(1, len(paths)) if sound[0] and sound[number] and not sustain_s]
        comparisons = []
        for number in others:
            # in turns, both with the first one's input
            beside = probe.measure(graphs[number][0], replace(effort, memory=False), Load(period_ms))
            if isinstance(beside, Failure):
                notify(f"{paths[number]} cannot be compared with {paths[0]}: {beside.kind}: {beside.detail}")
            elif beside.relative_p50:
                comparisons.append(Comparison(paths[number], beside.relative_p50))
    finally:
        probe.close()
    return Measured(fingerprint, load, tuple(found), tuple(comparisons))


def _read(path: Path) -> tuple[Graph, NDArray[np.float32]]:
    """The file, and numbers to feed it with."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"{path}: cannot be read ({problem.strerror})") from None
    try:
        model = load_graph(data)
        hashed = structure_of(model)
    except Exception as problem:  # protobuf's own
        raise ModelError(f"{path}: not an ONNX file that can be measured ({one_line(problem, 120)})") from None
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"{path}: has {len(inputs)} inputs; only networks with one can be measured")
    kind = inputs[0].type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise ModelError(f"{path}: its input '{inputs[0].name}' is {name}; only float32 can be measured")
    shape = [dim.dim_value for dim in kind.shape.dim]
    if shape and shape[0] < 1:
        shape[0] = 1  # a free batch size: one image, as on a device
    if not shape or min(shape) < 1:
        free = [dim.dim_param or "?" if dim.dim_value < 1 else dim.dim_value for dim in kind.shape.dim]
        raise ModelError(
            f"{path}: its input '{inputs[0].name}' has no fixed shape ({free}); fix it: python -m "
            "onnxruntime.tools.make_dynamic_shape_fixed"
        )
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Graph(data, hashed), numbers
