"""Quantise: convert a float32 ONNX file to int8 with onnxruntime's own quantisation tools."""

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

from pipeline.core.feeds import Arrays, Feeds, arrays_of
from pipeline.core.onnx_outputs import feeds_of, open_session
from pipeline.errors import one_line
from pipeline.graph.metadata import stamp
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
"""Number of inputs whose activations are in memory at the same time during calibration."""
ERROR_INPUTS = 32


class NotQuantised(Exception):
    """The file cannot be converted to int8; the message gives the reason in one line."""


@dataclass(frozen=True)
class Scheme:
    """How a file is quantised. Weights and activations are signed, because ARM's dot-product instructions take signed values."""

    per_channel: bool
    """Whether each output channel of a weight has its own scale; otherwise the whole weight has one scale."""
    method: Method
    """The calibration method that finds the range of each activation."""
    spared: tuple[str, ...] = ()
    """Nodes that stay in float32."""

    @property
    def text(self) -> str:
        """The scheme in words, for example 'per channel, minmax, 2 layers left in fp32'."""
        spared = f", {len(self.spared)} layer{'s' if len(self.spared) > 1 else ''} left in fp32" if self.spared else ""
        return f"{'per channel' if self.per_channel else 'per tensor'}, {self.method}{spared}"


SCHEMES = tuple(Scheme(per_channel, method) for per_channel in (False, True) for method in ("minmax", "percentile", "entropy"))


class Quantiser:
    """Quantises one float32 file with given calibration inputs. The same file, inputs and scheme give the same bytes.

    It works in this process and in temporary folders, which are deleted before a call returns.
    """

    def __init__(self, data: bytes, inputs: Feeds) -> None:
        """`data` is an ONNX file with batch size 1, and `inputs` are real inputs, (N, C, H, W), one array per input.

        Raises NotQuantised when the file cannot be read or prepared, or keeps weights in other files.
        """
        try:
            self._source = load_graph(data)
            self._prepared = _prepared(self._source)
        except Exception as problem:  # onnx and the tools raise errors of many types
            raise NotQuantised(one_line(problem)) from None
        self._inputs = arrays_of(inputs)
        self._ranges: dict[str, Any] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes with weights, in execution order."""
        weights = {tensor.name for tensor in self._prepared.graph.initializer}
        nodes = (node for node in self._prepared.graph.node if node.op_type in LAYERS)
        return tuple(node.name for node in nodes if len(node.input) > 1 and node.input[1] in weights)

    def make(self, scheme: Scheme) -> bytes:
        """Return the int8 file. It is run once here. Raises NotQuantised when it cannot be made or does not run."""
        data = bytes(self._made(scheme, only=()).SerializeToString(deterministic=True))
        try:
            answers = _answers(data, self._first(1))
        except Exception as problem:
            raise NotQuantised(f"{scheme.text}: ONNX Runtime does not run it: {one_line(problem)}") from None
        if not all(np.isfinite(answer).all() for answer in answers):
            raise NotQuantised(f"{scheme.text}: its answer is not finite")
        return data

    def errors(self, scheme: Scheme) -> dict[str, float]:
        """Return the output error when only one layer is quantised, per layer: mean squared change over mean squared output, the
        mean of all outputs.
        """
        inputs = self._first(ERROR_INPUTS)
        whole = _answers(self._source.SerializeToString(), inputs)
        errors = {}
        for layer in self.layers:
            alone = _answers(self._made(scheme, only=(layer,)).SerializeToString(), inputs)
            parts = (
                float(np.square(one - other).mean()) / max(float(np.square(other).mean()), 1e-12)
                for one, other in zip(alone, whole, strict=True)
            )
            errors[layer] = sum(parts) / len(whole)
        return errors

    def _first(self, count: int) -> Arrays:
        return tuple(array[:count] for array in self._inputs)

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
        """Ranges of all activations, found by calibration with `method`."""
        with scratch_folder("quantise") as folder, _silence():
            path = folder / "prepared.onnx"
            path.write_bytes(self._prepared.SerializeToString())
            calibrator = create_calibrator(
                path,
                _operators(),
                str(folder / "augmented.onnx"),
                _METHODS[method],
                extra_options={"symmetric": False},  # after a ReLU, half of a symmetric range would be unused
            )
            names, count = [value.name for value in self._source.graph.input], len(self._inputs[0])
            feeds = (
                {name: array[row : row + 1] for name, array in zip(names, self._inputs, strict=True)} for row in range(count)
            )
            for _ in range(0, count, CHUNK):
                calibrator.collect_data(_Reader(itertools.islice(feeds, CHUNK)))
            return calibrator.compute_data()

    def _cleaned(self, model: onnx.ModelProto, scheme: Scheme) -> onnx.ModelProto:
        """`model` with the opset, IR version and metadata of the source. Raises NotQuantised for non-standard operators."""
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
    """Passes the inputs to the calibrator one by one, then None."""

    def __init__(self, feeds: Iterator[dict[str, NDArray[Any]]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def _prepared(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `source` as the tools need it: shapes inferred, constants folded, every node named."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    with scratch_folder("quantise") as folder, _silence():
        path = folder / "prepared.onnx"
        quant_pre_process(model, path)
        return load_graph(path.read_bytes())


def _operators() -> list[str]:
    """All operators that the tools can quantise, in an order that is the same in every process."""
    return sorted({*QLinearOpsRegistry, *QDQRegistry})


def _answers(data: bytes, inputs: Arrays) -> Arrays:
    """Outputs of a file with batch size 1 for each of `inputs`, each with the samples on its first axis."""
    session = open_session(data, threads=computing_threads())
    rows = (feeds_of(session, tuple(array[row : row + 1] for array in inputs)) for row in range(len(inputs[0])))
    answers = zip(*(session.run(None, feed) for feed in rows), strict=True)
    return tuple(np.concatenate([np.asarray(each, dtype=np.float32) for each in parts]) for parts in answers)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the progress output of the tools, and their advice, which is already followed here."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
