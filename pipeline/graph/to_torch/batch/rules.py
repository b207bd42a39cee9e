"""Rules: where the images of a batch lie in the output of each op, {op type: rule}.

A rule gets a call and returns the state of all outputs, a list with the state of each output, or None. None says that the op
cannot compute all images at once here. A rule may replace inputs: it repeats what is the same for every image, and it adapts
shapes.
"""

from torch import Tensor

from pipeline.graph.to_torch.batch.call import Call, State, repeated
from pipeline.graph.to_torch.batch.moving import MOVING, Rule
from pipeline.graph.to_torch.node import normal_axis
from pipeline.graph.to_torch.ops.elementwise import BROADCAST, POINTWISE
from pipeline.graph.to_torch.ops.pool_resize import GLOBAL, POOL
from pipeline.graph.to_torch.ops.reduce import ALONG, ARG, REDUCE, reduced_axes
from pipeline.graph.to_torch.ops.resize import resize_axes

__all__ = ["RULES"]


def _first(call: Call) -> State | None:
    return call.only_first()


def _cast_like(call: Call) -> State | list[State | None]:
    state = call.states[0]
    return [None] if state is None else state


def _unless(*axes: int) -> Rule:
    """The op keeps all axes, and works on each entry of an axis alone, except along these."""

    def rule(call: Call) -> State | None:
        state = call.only_first()
        rank = call.tensor(0).dim()
        return state if state is not None and state.axis not in [normal_axis(axis, rank) for axis in axes] else None

    return rule


def _images_first(call: Call) -> State | None:
    """The op works on each entry of axis 0 alone."""
    state = call.only_first()
    return state if state is not None and state.axis == 0 else None


def together(call: Call, positions: list[int], skipped: int = 0) -> State | None:
    """The state after broadcasting inputs, without their last `skipped` axes. Repeats those that are the same for every image."""
    held = [(call.tensor(place), state) for place in positions if (state := call.states[place]) is not None]
    aligned = {(state.axis - value.dim(), state.outer, value.shape[state.axis]) for value, state in held}
    if len(aligned) != 1:
        return None
    axis, outer, size = aligned.pop()
    rank = max(call.tensor(place).dim() for place in positions)
    if axis >= -skipped:
        return None
    for place in positions:
        value = call.tensor(place)
        if call.states[place] is None and value.dim() >= -axis and value.shape[axis] != 1:
            if call.exported != 1 or value.shape[axis] * call.images != size:
                return None
            call.inputs[place] = repeated(value, State(axis + value.dim(), outer), call.images)
    return State(axis + rank, outer)


def _broadcast(call: Call) -> State | None:
    return together(call, list(range(len(call.inputs))))


def _without(state: State, axes: list[int], *, keep: bool) -> State | None:
    """The state after `axes` are reduced."""
    if state.axis in axes:
        return None
    return state if keep else State(state.axis - sum(axis < state.axis for axis in axes), state.outer)


def _reduce(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    axes = reduced_axes(call.node, call.tensor(0).dim(), call.given(1))
    return _without(state, axes, keep=bool(call.node.int("keepdims", 1)))


def _position(call: Call) -> State | None:
    state = call.only_first()
    axis = normal_axis(call.node.int("axis", 0), call.tensor(0).dim())
    return None if state is None else _without(state, [axis], keep=bool(call.node.int("keepdims", 1)))


def _along(call: Call) -> State | None:
    """Ops along one axis; the older softmax joins all axes from there on."""
    state, rank, node = call.only_first(), call.tensor(0).dim(), call.node
    if state is None:
        return None
    joined = node.opset < 13 and node.op in ("Softmax", "LogSoftmax", "Hardmax")
    if node.op == "CumSum":
        axis = normal_axis(int(call.tensor(1)), rank)
    else:
        axis = normal_axis(node.int("axis", 1 if joined else -1), rank)
    return state if (state.axis < axis if joined else state.axis != axis) else None


def _layer_norm(call: Call) -> State | None:
    state = call.only_first()
    axis = normal_axis(call.node.int("axis", -1), call.tensor(0).dim())
    return state if state is not None and state.axis < axis else None


def _matmul(call: Call) -> State | None:
    if len(call.inputs) == 1:  # a layer
        return _unless(-1)(call)  # type: ignore[return-value]
    a, b = call.states
    left, right = call.tensor(0), call.tensor(1)
    rank = max(left.dim(), right.dim())
    if left.dim() < 2 or right.dim() < 2:
        return None
    if a is not None and b is None and a.axis == left.dim() - 2:
        return State(rank - 2, a.outer)
    if a is None and b is not None and b.axis == right.dim() - 1:
        return State(rank - 1, b.outer)
    return together(call, [0, 1], skipped=2)


def _gemm(call: Call) -> State | None:
    state = call.only_first()
    if len(call.inputs) == 1:
        return _unless(-1)(call)  # type: ignore[return-value]
    bias = call.given(2)
    free = bias is None or bias.dim() < 2 or bias.shape[0] == 1
    return State(0, state.outer) if state is not None and state.axis == call.node.int("transA", 0) and free else None


def _einsum(call: Call) -> State | None:
    left, arrow, out = call.node.text("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left:
        return None
    held = {(terms[place][state.axis], state.outer) for place, state in enumerate(call.states) if state is not None}
    if len(held) != 1:
        return None
    letter, outer = held.pop()
    shared = any(state is None and letter in terms[place] for place, state in enumerate(call.states))
    repeated_letter = any(term.count(letter) > 1 for term in terms)
    return None if shared or repeated_letter or letter not in out else State(out.index(letter), outer)


def _resize(call: Call) -> State | None:
    state, node = call.only_first(), call.node
    if state is None or state.axis > 1:
        return None
    axes = resize_axes(node, call.tensor(0).dim())
    scales, sizes = (1, None) if node.opset < 11 else (2, 3)
    if state.axis not in axes:
        return state
    place = axes.index(state.axis)
    goal = None if sizes is None else call.given(sizes)
    if goal is not None and goal.numel() and sizes is not None:
        if int(goal[place]) != call.single(0)[state.axis]:
            return None
        goal = goal.clone()
        goal[place] = call.tensor(0).shape[state.axis]
        call.inputs[sizes] = goal
        return state
    factors: Tensor | None = call.given(scales)
    found = node.attributes.get("scales") if factors is None else factors.tolist()
    return state if found and found[place] == 1 else None


def _grid_sample(call: Call) -> State | None:
    if call.states[0] is None or call.states[0].axis != 0:
        return None
    if call.states[1] is None:
        if call.exported != 1 or call.tensor(1).shape[0] % call.states[0].outer:
            return None
        call.inputs[1] = repeated(call.tensor(1), call.states[0], call.images)
        return call.states[0]
    return call.states[0] if call.states[0] == call.states[1] else None


def _recurrent(call: Call) -> list[State | None] | None:
    state = call.states[0]
    if state is None or any(call.states[1:]) or call.node.int("layout", 0) or state.axis != 1:
        return None
    for place in (5, 6):
        if call.given(place) is not None:
            if call.exported != 1:
                return None
            call.inputs[place] = repeated(call.tensor(place), state, call.images)
    return [State(2, state.outer), *[State(1, state.outer)] * 2]


def _attention(call: Call) -> State | None:
    mask = call.given(3)
    states = set(call.states[:3])
    if states != {State(0)} or any(call.states[3:]):
        return None
    return State(0) if mask is None or mask.dim() < 4 or mask.shape[0] == 1 else None


RULES: dict[str, Rule] = {
    **MOVING,
    **dict.fromkeys(POINTWISE, _first),
    **dict.fromkeys(BROADCAST, _broadcast),
    **dict.fromkeys(REDUCE, _reduce),
    **dict.fromkeys(ARG, _position),
    **dict.fromkeys(ALONG, _along),
    **dict.fromkeys([*POOL, *GLOBAL, "InstanceNormalization", "GroupNormalization"], _images_first),
    **dict.fromkeys(["Conv", "ConvTranspose", "DepthToSpace", "SpaceToDepth"], _images_first),
    **dict.fromkeys(["Resize", "Upsample"], _resize),
    **dict.fromkeys(["LSTM", "GRU", "RNN"], _recurrent),
    "Attention": _attention,
    "BatchNormalization": _unless(1),
    "CastLike": _cast_like,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "LRN": _unless(1),
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "PRelu": _broadcast,
    "RMSNormalization": _layer_norm,
    "Trilu": _unless(-1, -2),
}
