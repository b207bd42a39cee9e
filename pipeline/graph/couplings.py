"""Couplings: the tensor entries that belong to each channel according to torch-pruning, as plain data.

Only two files import torch_pruning: this one, and `proof.py`, which checks our pruning against torch-pruning's.
"""

import json
import os
import select
import signal
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.errors import TraceError, one_line

__all__ = ["Coupling", "trace_couplings"]

TIME_LIMIT_S = 120.0


@dataclass(frozen=True)
class Coupling:
    """One torch-pruning group, as torch-pruning reports it."""

    root: str
    """The module whose output channels are counted."""
    channels: int
    members: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...]
    """(module or parameter name, 'out' | 'in' | 'parameter:<dim>', entries, root channel of each entry)."""


def trace_couplings(module: nn.Module, example: Tensor) -> list[Coupling]:
    """Return all couplings of `module`, in the order in which their roots run. `example` is one batch, (N, C, H, W).

    The dependency graph is built in a child process, because on unusual networks it can run forever or use all memory.
    Raises TraceError when the network does not run on `example`, or when the graph is not built within the time limit.
    """
    answer = _in_child(lambda: _couplings(module, example), TIME_LIMIT_S)
    if "error" in answer:
        raise TraceError(f"the network cannot be traced: {answer['error']}; it must run on a {tuple(example.shape)} batch")
    return [
        Coupling(
            root=found["root"],
            channels=found["channels"],
            members=tuple((name, role, tuple(entries), tuple(roots)) for name, role, entries, roots in found["members"]),
        )
        for found in answer["couplings"]
    ]


def _couplings(module: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    module.eval()
    order = _execution_order(module, example)
    module.requires_grad_(True)
    names = {id(inner): name for name, inner in reversed(list(module.named_modules()))}
    parameters = {id(tensor): name for name, tensor in module.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
        found: list[dict[str, Any]] = []
        for group in graph.get_all_groups():
            members: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]] = []
            for item in group.items:
                target = item.dep.target.module
                if isinstance(target, nn.Parameter):
                    dim = next(entry.pruning_dim for entry in graph.unwrapped_parameters if entry.parameters is target)
                    role = f"parameter:{dim % target.dim()}"
                    members.append((parameters[id(target)], role, tuple(item.idxs), tuple(item.root_idxs)))
                elif id(target) in names:
                    role = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
                    members.append((names[id(target)], role, tuple(item.idxs), tuple(item.root_idxs)))
            channels = len(group[0].idxs)
            found.append(asdict(Coupling(_first_to_run(members, channels, order), channels, tuple(members))))
    return sorted(found, key=lambda coupling: order.get(coupling["root"], len(order)))


def _first_to_run(members: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]], channels: int, order: dict[str, int]) -> str:
    """The first module to run whose outputs map one to one to the channels of the group. The group takes its name."""
    plain = [name for name, role, entries, roots in members if role == "out" and len(entries) == channels and entries == roots]
    return min(plain, key=lambda name: order.get(name, len(order)))


def _execution_order(module: nn.Module, example: Tensor) -> dict[str, int]:
    order: dict[str, int] = {}
    names = {id(inner): name for name, inner in module.named_modules()}

    def note(inner: nn.Module, _inputs: object, _output: object) -> None:
        order.setdefault(names[id(inner)], len(order))

    handles = [inner.register_forward_hook(note) for inner in module.modules()]
    with torch.no_grad():
        module(example)
    for handle in handles:
        handle.remove()
    return order


def _in_child(work: Any, time_limit_s: float) -> dict[str, Any]:
    """Run `work()` in a forked child and return its result, sent as JSON over a pipe. The child is killed at the time limit.

    The child is forked because a user's network may not be picklable. It uses one thread because the parent's thread
    pool does not exist in the child.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a threaded process; see the docstring
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            torch.set_num_threads(1)
            try:
                answer = {"couplings": work()}
            except Exception as problem:
                answer = {"error": f"{type(problem).__name__}: {one_line(problem)}"}
            with os.fdopen(writer, "w") as pipe:
                json.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + time_limit_s
    chunks: list[bytes] = []
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reader], [], [], left)[0]:
                return {"error": f"no dependency graph after {time_limit_s:.0f} s"}
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        return dict(json.loads(b"".join(chunks)))
    except ValueError:  # the answer is empty or cut off
        return {"error": "the tracing process died, perhaps for lack of memory"}
