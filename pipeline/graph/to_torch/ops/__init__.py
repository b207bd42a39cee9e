"""The ops that are functions: one table {op type: function}."""

from pipeline.graph.to_torch.ops.contraction import CONTRACTION
from pipeline.graph.to_torch.ops.elementwise import BROADCAST, POINTWISE, Op
from pipeline.graph.to_torch.ops.normalisation import NORMALISATION
from pipeline.graph.to_torch.ops.pool_resize import GLOBAL, POOL, REGIONS
from pipeline.graph.to_torch.ops.recurrent import RECURRENT
from pipeline.graph.to_torch.ops.reduce import ALONG, ARG, REDUCE
from pipeline.graph.to_torch.ops.resize import RESIZE
from pipeline.graph.to_torch.ops.shape import SHAPE

__all__ = ["FUNCTIONS", "Op"]

FUNCTIONS: dict[str, Op] = {
    **POINTWISE,
    **BROADCAST,
    **SHAPE,
    **REDUCE,
    **ARG,
    **ALONG,
    **CONTRACTION,
    **POOL,
    **REGIONS,
    **GLOBAL,
    **RESIZE,
    **NORMALISATION,
    **RECURRENT,
}
"""ONNX op type -> the function that computes it: (node, inputs) -> output, or all outputs."""
