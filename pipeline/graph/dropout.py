"""Dropout: keep the dropout layers of a network in evaluation mode in its exported graph, so that the graph can be trained."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from onnxscript import opset18
from torch import Tensor
from torch.nn import functional as F
from torch.onnx import utils as traced_exporter
from torch.overrides import TorchFunctionMode

__all__ = ["DROPOUT_TRANSLATION", "keep_dropout"]

LAYERS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
"""What the layers of torch.nn call. Dropout of whole channels becomes dropout of single values, because ONNX has only that."""


@torch.library.custom_op("edge_compress::dropout", mutates_args=())
def _dropout(x: Tensor, p: float) -> Tensor:
    """Dropout in evaluation mode. Both exporters take torch's own out of the network, because it does nothing then."""
    return x.clone()


@_dropout.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty_like(x)


class _KeepDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYERS and not kwargs.get("training", True) and args[0].is_floating_point():
            return torch.ops.edge_compress.dropout(args[0], float(kwargs["p"]))
        return func(*args, **kwargs)


@contextlib.contextmanager
def keep_dropout() -> Iterator[None]:
    """Export dropout in evaluation mode as an ONNX Dropout node, which does nothing at inference.

    The captured exporter also needs `DROPOUT_TRANSLATION`.
    """
    name = "edge_compress::dropout"
    traced_exporter.register_custom_op_symbolic(name, lambda graph, x, p: graph.op("Dropout", x, p), 13)
    try:
        with _KeepDropout():
            yield
    finally:
        traced_exporter.unregister_custom_op_symbolic(name, 13)


def _to_onnx(x: Any, p: float) -> Any:
    op: Any = opset18
    output, _ = op.Dropout(x, op.Constant(value_float=p))
    return output


DROPOUT_TRANSLATION: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.edge_compress.dropout.default: _to_onnx}
"""For `custom_translation_table` of `torch.onnx.export(..., dynamo=True)`."""
