"""Small graphs with blocks, written as text, and what is found in them."""

import numpy as np
import onnx

from helpers.onnx_text import graph
from pipeline.core.onnx_outputs import run_onnx
from pipeline.graph.blocks import find_blocks
from pipeline.graph.drop_blocks import drop_blocks
from pipeline.graph.edit import copy_of
from pipeline.graph.labels.space import label_graph
from pipeline.graph.silence import silence

__all__ = ["INPUT", "SQUARE", "found", "net", "operators", "silence_of", "without"]

INPUT = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
HEAD = "(float[1,3,4,4] x) => (float[1,2,4,4] y)"
SQUARE = (4, 4, 1, 1)


def net(body: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """x -> conv with 4 channels -> e -> body -> z -> conv with 2 channels -> y"""
    text = f"{HEAD} {{ e = Conv(x, stem) {body} y = Conv(z, head) }}"
    return graph(text, stem=(4, 3, 1, 1), head=(2, 4, 1, 1), **weights)


def found(model: onnx.ModelProto) -> tuple[list[str], dict[str, str]]:
    """The names of the blocks, and the reasons for the additions that end none."""
    blocks, refused = find_blocks(model, label_graph(model).space.groups)
    return [block.name for block in blocks], {layer.name: layer.reason for layer in refused}


def without(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    smaller = copy_of(model)
    drop_blocks(smaller.graph, [block for block in find_blocks(model)[0] if block.name in names])
    return smaller


def silence_of(model: onnx.ModelProto, *names: str) -> np.ndarray:
    """The answer of the whole network in which the blocks whose first weights these are give zeros."""
    labelled = label_graph(model)
    labelled = labelled.with_blocks(*find_blocks(model, labelled.space.groups))
    gone = {block.name: () for block in labelled.space.blocks if block.tensors[0] in names}
    answer: np.ndarray = run_onnx(silence(model, labelled, gone).SerializeToString(), INPUT)
    return answer


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
