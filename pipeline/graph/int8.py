"""Quantise: a float32 ONNX file -> the same network in whole numbers of 8 bits, by onnxruntime's own tools."""

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.core.onnx_outputs import open_session
from pipeline.errors import one_line
from pipeline.graph.export import stamp
from pipeline.graph.structure import load_graph
from pipeline.system.scratch import scratch_folder
from pipeline.system.thread_settings import computing_threads

__all__ = ["SCHEMES", "NotQuantised", "Quantiser", "Scheme"]

Method = Literal["minmax", "percentile", "entropy"]
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CHUNK = 8
"""Inputs whose activations are held at once while calibrating."""
ERROR_INPUTS = 32


class NotQuantised(Exception):
    """The tools cannot make an int8 file of this one; the message says why in a line."""


@dataclass(frozen=True)
class Scheme:
    """How a file is quantised. Weights and activations are signed, which ARM's dot products take and others are given."""

    per_channel: bool
    """A scale for every output channel of a weight; else one for all."""
    method: Method
    """What finds the range of an activation."""
    spared: tuple[str, ...] = ()
    """Nodes that stay in float32."""

    @property
    def text(self) -> str:
        """'per channel, minmax, 2 layers left in fp32'."""
        spared = f", {len(self.spared)} layer{'s' if len(self.spared) > 1 else ''} left in fp32" if self.spared else ""
        return f"{'per channel' if self.per_channel else 'per tensor'}, {self.method}{spared}"


SCHEMES = tuple(Scheme(per_channel, method) for per_channel in (False, True) for method in ("minmax", "percentile", "entropy"))


class Quantiser:
    """One float32 file with the inputs that calibrate it. The same file, inputs and scheme give the same bytes.

    Works in this process and in temporary folders that are gone when a call returns.
    """

    def __init__(self, data: bytes, inputs: NDArray[np.float32]) -> None:
        """`data`: a file that takes one input at a time; `inputs`: real ones, (N, C, H, W). Raises NotQuantised, also for a file
        that keeps weights outside.
        """
        try:
            self._source = load_graph(data)
            self._prepared = _prepared(self._source)
        except Exception as problem:  # whatever onnx and the tools make of it
            raise NotQuantised(one_line(problem)) from None
        self._inputs = inputs
        self._ranges: dict[str, Any] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """The nodes with weights, in the order in which they run."""
        weights = {tensor.name for tensor in self._prepared.graph.initializer}
        nodes = (node for node in self._prepared.graph.node if node.op_type in LAYERS)
        return tuple(node.name for node in nodes if len(node.input) > 1 and node.input[1] in weights)

    def make(self, scheme: Scheme) -> bytes:
        """The file in int8, which has run here. Raises NotQuantised."""
        data = bytes(self._made(scheme, only=()).SerializeToString(deterministic=True))
        try:
            answers = _answers(data, self._inputs[:1])
        except Exception as problem:
            raise NotQuantised(f"{scheme.text}: ONNX Runtime does not run it: {one_line(problem)}") from None
        if not np.isfinite(answers).all():
            raise NotQuantised(f"{scheme.text}: its answer is not finite")
        return data

    def errors(self, scheme: Scheme) -> dict[str, float]:
        """Layer -> what quantising it alone does to the answers: the mean squared change over the mean square."""
        inputs = self._inputs[:ERROR_INPUTS]
        whole = _answers(self._source.SerializeToString(), inputs)
        power = max(float(np.square(whole).mean()), 1e-12)
        errors = {}
        for layer in self.layers:
            alone = _answers(self._made(scheme, only=(layer,)).SerializeToString(), inputs)
            errors[layer] = float(np.square(alone - whole).mean()) / power
        return errors

    def _made(self, scheme: Scheme, only: tuple[str, ...]) -> onnx.ModelProto:
        try:
            if scheme.method not in self._ranges:
                self._ranges[scheme.method] = self._calibrated(scheme.method)
            model = onnx.ModelProto()
            model.CopyFrom(self._prepared)
            with _silence():
                quantizer = QDQQuantizer(
                    model,
                    scheme.per_channel,
                    False,  # reduce_range
                    QuantType.QInt8,
                    QuantType.QInt8,
                    self._ranges[scheme.method],
                    list(only),
                    list(scheme.spared),
                    _operators(),
                    {},
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
            return self._cleaned(quantizer.model.model, scheme)
        except NotQuantised:
            raise
        except Exception as problem:
            raise NotQuantised(f"{scheme.text}: {one_line(problem)}") from None

    def _calibrated(self, method: Method) -> Any:
        """The range of every activation."""
        with scratch_folder("quantise") as folder, _silence():
            path = folder / "prepared.onnx"
            path.write_bytes(self._prepared.SerializeToString())
            calibrator = create_calibrator(
                path,
                _operators(),
                str(folder / "augmented.onnx"),
                _METHODS[method],
                extra_options={"symmetric": False},  # a range around zero would waste half of it behind every ReLU
            )
            name = self._source.graph.input[0].name
            feeds = ({name: row[None]} for row in self._inputs)
            for _ in range(0, len(self._inputs), CHUNK):
                calibrator.collect_data(_Reader(itertools.islice(feeds, CHUNK)))
            return calibrator.compute_data()

    def _cleaned(self, model: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
        """As it ships: standard operators only, the opset and IR version of the source, and its metadata."""
        domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
        if domains:
            raise NotQuantised(f"{scheme.text}: it would need operators of {', '.join(sorted(domains))}")
        opsets = {entry.domain: entry.version for entry in self._source.opset_import}
        if any(entry.version != opsets.get(entry.domain) for entry in model.opset_import if entry.domain in opsets):
            raise NotQuantised(f"{scheme.text}: it would need another opset than {opsets}")
        for keeper in ("opset_import", "metadata_props"):
            model.ClearField(keeper)
            getattr(model, keeper).extend(getattr(self._source, keeper))
        stamp(model, {"int8": scheme.text})
        model.ir_version, model.doc_string = self._source.ir_version, ""
        model.producer_name, model.producer_version = self._source.producer_name, self._source.producer_version
        model.graph.name = self._source.graph.name
        del model.graph.value_info[:]
        try:
            onnx.checker.check_model(model, full_check=True)
        except onnx.checker.ValidationError as problem:
            raise NotQuantised(f"{scheme.text}: {one_line(problem)}") from None
        return model


class _Reader:
    """Hands the calibrator one input after the other; null at the end."""

    def __init__(self, feeds: Iterator[dict[str, NDArray[np.float32]]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)


def _prepared(source: onnx.ModelProto) -> onnx.ModelProto:
    """Shapes inferred and constants folded, as the tools want it; every node with a name."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    with scratch_folder("quantise") as folder, _silence():
        path = folder / "prepared.onnx"
        quant_pre_process(model, path)
        return load_graph(path.read_bytes())


def _operators() -> list[str]:
    """All that the tools can quantise, in an order that does not change from process to process."""
    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _answers(data: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a file that takes one input at a time."""
    session = open_session(data, threads=computing_threads())
    name = session.get_inputs()[0].name
    return np.concatenate([np.asarray(session.run(None, {name: row[None]})[0]) for row in inputs])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The tools print and log how far they are, and advice that has been followed."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
