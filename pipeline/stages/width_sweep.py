"""Width sweep: find a device's alignment by measuring convolutions of the network's own shapes at many widths."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from pydantic import TypeAdapter, ValidationError
from torch import nn

from pipeline.core.alignment import Alignment, ConvPair, Sweep
from pipeline.core.batch import Inputs
from pipeline.core.measurement import Failure
from pipeline.core.plan import PruneSpace, layer_of
from pipeline.core.progress import Callback
from pipeline.errors import StorageError
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.structure import structure
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Workload
from pipeline.system.files import write_atomically
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["conv_pairs", "find_alignment"]

PAIRS = 2
"""Number of pairs: the most costly ones, of different shapes."""
WINDOW = 16
"""Largest distance of a measured width from the middle one."""
UNIT = 4
ROUNDS = 2
OPTIONS = MeasurementOptions(1, memory=False, fresh=True)

_ALIGNMENT = TypeAdapter(Alignment)


def find_alignment(
    probe: Probe, builder: PrunedModelBuilder, kept: Path, cache: Path, seed: int, callback: Callback
) -> Alignment:
    """The alignment of the probe's device for this network.

    It is read from `kept` if this run found it before, or from the folder `cache` if another run found it on the same device with
    the same runtime and settings. Otherwise it is measured: at most 36 short measurements, two for up to 9 widths of each pair.
    """
    pairs = conv_pairs(builder.module, builder.space, builder.example)
    key = hashlib.sha256(f"{probe.fingerprint} {pairs}".encode()).hexdigest()
    for path in (kept, cache / f"alignment-{key}.json"):
        found = _read(path)
        if found and tuple(sweep.pair for sweep in found.sweeps) == pairs:
            break
    else:
        found = Alignment(_sweeps(probe, pairs, seed, callback))
        _write(cache / f"alignment-{key}.json", found)
    write_atomically(kept, _ALIGNMENT.dump_json(found))
    callback.say(_summary(found))
    return found


def _summary(found: Alignment) -> str:
    count = sum(len(sweep.dominated) for sweep in found.sweeps)
    tried = sum(len(sweep.latency_ms) for sweep in found.sweeps)
    reason = f"{count} of the {tried} measured widths are no faster than wider ones"
    if not tried:
        reason = "the usual number, because no convolution with a width to choose is read by another one"
    return f"widths are multiples of {found.step}: {reason}"


def conv_pairs(module: nn.Module, space: PruneSpace, example: Inputs) -> tuple[ConvPair, ...]:
    """The most costly convolutions with a width to choose, each with the first convolution that reads its output."""
    layers = dict(module.named_modules())
    sides: dict[nn.Module, tuple[int, int]] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        sides.setdefault(layer, (inputs[0].shape[-2], inputs[0].shape[-1]))

    hooks = [layer.register_forward_hook(note) for layer in layers.values() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    found: dict[ConvPair, int] = {}
    for group in space.groups:
        first = layers.get(layer_of(group.name))
        readers = (layers.get(slot.tensor.rpartition(".")[0]) for slot in group.slots if slot.axis == 1)
        second = next((layer for layer in readers if isinstance(layer, nn.Conv2d) and layer.groups == 1), None)
        if not isinstance(first, nn.Conv2d) or second is None or first.groups != 1 or first not in sides or group.bundle != 1:
            continue
        pair = ConvPair(
            group.name,
            first.in_channels,
            first.out_channels,
            second.out_channels,
            (int(first.kernel_size[0]), int(second.kernel_size[0])),
            (int(first.stride[0]), int(second.stride[0])),
            sides[first],
        )
        same = [known for known in found if _shape(known) == _shape(pair)]
        cost = pair.channels * (pair.in_channels * pair.kernels[0] ** 2 + pair.out_channels * pair.kernels[1] ** 2)
        if not same:
            found[pair] = cost * pair.side[0] * pair.side[1] // pair.strides[0] ** 2
    return tuple(sorted(found, key=lambda pair: found[pair], reverse=True)[:PAIRS])


def _shape(pair: ConvPair) -> tuple[Any, ...]:
    return (pair.in_channels, pair.channels, pair.out_channels, pair.kernels, pair.strides, pair.side)


def _widths(channels: int) -> list[int]:
    """Multiples of 4 around a multiple of 32 near the middle. With few channels, all multiples of 4."""
    middle = max(32, channels // 2 // 32 * 32) if channels >= 64 else channels // 2
    low, high = max(UNIT, middle - WINDOW), min(channels, middle + WINDOW)
    return [width for width in range(UNIT, channels + 1, UNIT) if low <= width <= high]


def _sweeps(probe: Probe, pairs: tuple[ConvPair, ...], seed: int, callback: Callback) -> tuple[Sweep, ...]:
    numbers, total = itertools.count(1), sum(ROUNDS * len(_widths(pair.channels)) for pair in pairs)

    def tell() -> None:
        number = next(numbers)
        callback.progress(number, total, f"{number} of {total} short measurements")

    return tuple(_sweep(probe, pair, seed, tell) for pair in pairs)


def _sweep(probe: Probe, pair: ConvPair, seed: int, tell: Callable[[], None]) -> Sweep:
    inputs = np.random.default_rng(0).standard_normal((1, pair.in_channels, *pair.side)).astype(np.float32)
    load = Workload(reference=False, inputs=inputs)
    widths = _widths(pair.channels)
    rounds: dict[int, list[float]] = {width: [] for width in widths}
    generator = np.random.default_rng(seed)
    for _ in range(ROUNDS):
        for width in generator.permutation(widths).tolist():
            measured = probe.measure(_pair_graph(pair, width), OPTIONS, load)
            if not isinstance(measured, Failure):
                rounds[width].append(measured.latency_p50_ms.value)
            tell()
    return Sweep(pair, {width: tuple(found) for width, found in rounds.items() if found})


def _pair_graph(pair: ConvPair, width: int) -> Graph:
    """x -> conv (width) -> relu -> conv -> y"""
    pads = [[kernel // 2] * 4 for kernel in pair.kernels]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[pair.strides[0]] * 2, pads=pads[0]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["y"], strides=[pair.strides[1]] * 2, pads=pads[1]),
    ]
    generator = np.random.default_rng(width)
    weights = [
        numpy_helper.from_array(
            generator.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[1:]))), name
        )
        for name, shape in (
            ("w1", (width, pair.in_channels, pair.kernels[0], pair.kernels[0])),
            ("w2", (pair.out_channels, width, pair.kernels[1], pair.kernels[1])),
        )
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", float32, [1, pair.in_channels, *pair.side])],
        [helper.make_tensor_value_info("y", float32, None)],
        weights,
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return Graph(model.SerializeToString(), structure(model))


def _read(path: Path) -> Alignment | None:
    try:
        return _ALIGNMENT.validate_json(read_foreign(path, JSON_LIMIT_BYTES, own=True))
    except (OSError, ValidationError):
        return None


def _write(path: Path, alignment: Alignment) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _ALIGNMENT.dump_json(alignment))
    except (OSError, StorageError):
        pass  # the cache only saves time
