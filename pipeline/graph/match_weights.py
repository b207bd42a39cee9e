"""Match weights: find the tensors of a torch network among the initializers of its exported graph, by their values.

The exporter keeps the names of most tensors, transposes the weights of linear layers, and computes some tensors anew, such as
normalised weights. A name alone is never trusted: the values must be equal.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from pipeline.graph.metadata import rename_constants
from pipeline.graph.to_torch.places import TorchTensor

__all__ = ["match_weights"]

Key = tuple[tuple[int, ...], bytes]
"""The shape of a tensor without axes of length 1, and some of its values."""
SAMPLED = 64
"""So many values of a tensor are in its key. All are compared only where the keys are equal."""

Layout = tuple[str, tuple[int, ...]]
"""A tensor of the state dict, and the order of its axes in the graph."""


def match_weights(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> dict[str, TorchTensor]:
    """Return initializer -> its tensor in `state`, a state dict. `model` is changed in place, without changing what it computes.

    A matched initializer gets the tensor's name. An initializer without a match, such as a constant in the network's code, that
    several nodes read is copied for each of them: the channels of one layer say nothing about those of another.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in state.items():
        memory = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if tensor.is_floating_point() and (not tensor.numel() or memory not in seen):  # a layer with two names has one tensor
            arrays[name] = tensor.detach().cpu().numpy()
            seen.add(memory)
    found: dict[str, TorchTensor] = {}
    others: list[tuple[str, NDArray[np.generic]]] = []
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
            values, own = numpy_helper.to_array(tensor), arrays.get(tensor.name)
            if own is not None and own.dtype == values.dtype and np.array_equal(own, values):
                found[tensor.name] = TorchTensor(tensor.name, tuple(range(own.ndim)))
            else:
                others.append((tensor.name, values))
    by_key: dict[Key, list[Layout]] = defaultdict(list)
    for name, array in arrays.items():
        for axes in _layouts(array):
            by_key[_key(array.transpose(axes))].append((name, axes))
    taken = {tensor.name for tensor in model.graph.initializer} | {name for node in model.graph.node for name in node.output}
    renamed: dict[str, str] = {}
    for name, values in others:
        equal = [layout for layout in by_key.get(_key(values), []) if _has_values(arrays[layout[0]], layout, values)]
        place = _place(name, values.shape, arrays, equal)
        if place is None:
            continue
        if place.name != name and place.name not in taken:
            renamed[name] = place.name
            taken.add(place.name)
        found[renamed.get(name, name)] = place
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    rename_constants(model, renamed)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in renamed:
                node.input[position] = renamed[name]
    _separate(model, found)
    return found


def _layouts(array: NDArray[np.generic]) -> list[tuple[int, ...]]:
    """The orders of axes in which an exporter may store a tensor: its own, and, for a matrix, the transposed one."""
    own = tuple(range(array.ndim))
    return [own, own[::-1]] if array.ndim == 2 else [own]


def _key(array: NDArray[np.generic]) -> Key:
    positions = np.linspace(0, array.size - 1, min(array.size, SAMPLED)).astype(np.int64)
    return tuple(size for size in array.shape if size != 1), array.flat[positions].tobytes()


def _has_values(array: NDArray[np.generic], layout: Layout, values: NDArray[np.generic]) -> bool:
    """Whether `array` has these values in the order of axes of `layout`, apart from axes of length 1."""
    same_kind = array.dtype == values.dtype
    return same_kind and np.array_equal(np.squeeze(array.transpose(layout[1])), np.squeeze(values))


def _place(
    name: str, shape: tuple[int, ...], arrays: Mapping[str, NDArray[np.generic]], candidates: Sequence[Layout]
) -> TorchTensor | None:
    same = [candidate for candidate in candidates if candidate[0] == name]
    if not same and len({candidate[0] for candidate in candidates}) != 1:
        return None  # no tensor has these values, or several do
    tensor, order = (same or candidates)[0]
    if arrays[tensor].ndim == len(shape):
        return TorchTensor(tensor, order)
    axes = _without_ones(shape, arrays[tensor].shape)
    return TorchTensor(tensor, axes) if axes else None


def _without_ones(shape: tuple[int, ...], torch_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The torch axis of each axis, where the shapes differ only in axes of length 1; -1 for an axis that torch has not."""
    theirs = [axis for axis, size in enumerate(torch_shape) if size != 1]
    axes = [theirs.pop(0) if size != 1 else -1 for size in shape]
    return None if theirs else tuple(axes)


def _separate(model: onnx.ModelProto, found: Mapping[str, TorchTensor]) -> None:
    """Copy initializers that are no tensors of the network, once for each node that reads them."""
    uses = Counter(name for node in model.graph.node for name in set(node.input))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            tensor = tensors.get(name)
            if tensor is None or name in found or uses[name] < 2 or not any(size > 1 for size in tensor.dims):
                continue
            if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16):
                continue
            seen[name] += 1
            if seen[name] > 1:
                copy = model.graph.initializer.add()
                copy.CopyFrom(tensor)
                copy.name = f"{name}#{seen[name]}"
                node.input[position] = copy.name
