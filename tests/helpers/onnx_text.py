"""Small ONNX graphs written as text, with random weights."""

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

__all__ = ["graph"]


def graph(text: str, opset: int = 18, **weights: tuple[int, ...] | list[int]) -> onnx.ModelProto:
    """The graph that `text` describes in ONNX's own notation. A tuple is the shape of a random weight, a list an integer constant.

    >>> graph("(float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }", w=(4, 3, 1, 1)).graph.node[0].op_type
    'Conv'
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> net {text}')
    generator = np.random.default_rng(0)
    for name, given in weights.items():
        if isinstance(given, list):
            values = np.asarray(given, dtype=np.int64)
        else:
            values = generator.standard_normal(given).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model
