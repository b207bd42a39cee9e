"""Recurrent ops: LSTM, GRU and RNN with the weights of the graph, in torch's order of gates."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.graph.to_torch.node import Node
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["RECURRENT"]

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Torch's gates as positions among ONNX's: torch has i f g o, ONNX i o f c; torch r z n, ONNX z r h."""


def _reordered(weight: Tensor, op: str) -> Tensor:
    """(gates x hidden, ...) in torch's order of gates."""
    gates = weight.chunk(len(_GATES[op]))
    return torch.cat([gates[place] for place in _GATES[op]])


def _weights(node: Node, w: Tensor, r: Tensor, b: Tensor | None) -> list[Tensor]:
    """Torch's flat list of weights: for every direction the input's, the hidden state's and both biases."""
    result: list[Tensor] = []
    for place in range(w.shape[0]):
        result += [_reordered(w[place], node.op), _reordered(r[place], node.op)]
        if b is not None:
            result += [_reordered(half, node.op) for half in b[place].chunk(2)]
    return result


def _recurrent(node: Node, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, *rest: Tensor | None) -> tuple[Tensor, ...]:
    _, first, cell = (*rest, None, None, None)[:3]
    if node.int("layout", 0):
        x = x.transpose(0, 1)
        first, cell = (None if state is None else state.transpose(0, 1) for state in (first, cell))
    backwards = node.text("direction", "forward") == "reverse"
    if backwards:
        x = x.flip(0)
    x = x.to(w.dtype)
    zeros = x.new_zeros(w.shape[0], x.shape[1], r.shape[-1])
    start = zeros if first is None else first.to(x.dtype)
    if node.op == "GRU" and not node.int("linear_before_reset", 0):
        out, *last = _gru_reset_first(x, start, (w, r, b))
    else:
        flat = _weights(node, w, r, b)
        options = (b is not None, 1, 0.0, False, w.shape[0] == 2, False)
        if node.op == "LSTM":
            out, *last = torch.lstm(x, [start, zeros if cell is None else cell.to(x.dtype)], flat, *options)
        else:
            out, *last = _FUNCTIONS[_kind(node)](x, start, flat, *options)
        out = out.unflatten(-1, (w.shape[0], -1)).transpose(1, 2)
    if backwards:
        out = out.flip(0)
    if node.int("layout", 0):
        return (out.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (out, *last)


_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"GRU": torch.gru, "Tanh": torch.rnn_tanh, "Relu": torch.rnn_relu}


def _kind(node: Node) -> str:
    return "GRU" if node.op == "GRU" else str((node.attributes.get("activations") or ("Tanh",))[0])


def _gru_reset_first(x: Tensor, start: Tensor, weights: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """The GRU whose reset gate works before the product, which torch does not have."""
    w, r, b = weights
    outs, lasts = [], []
    for place in range(w.shape[0]):
        wz, wr, wh = w[place].chunk(3)
        rz, rr, rh = r[place].chunk(3)
        halves = x.new_zeros(6 * r.shape[-1]) if b is None else b[place]
        bz, br, bh, cz, cr, ch = halves.chunk(6)
        state, found = start[place], []
        for step in x.unbind(0) if place == 0 else reversed(x.unbind(0)):
            z = torch.sigmoid(step @ wz.T + bz + state @ rz.T + cz)
            reset = torch.sigmoid(step @ wr.T + br + state @ rr.T + cr)
            new = torch.tanh(step @ wh.T + bh + (reset * state) @ rh.T + ch)
            state = (1 - z) * new + z * state
            found.append(state)
        outs.append(torch.stack(found if place == 0 else found[::-1]))
        lasts.append(state)
    return torch.stack(outs, 1), torch.stack(lasts)


RECURRENT: dict[str, Op] = {"GRU": _recurrent, "LSTM": _recurrent, "RNN": _recurrent}
