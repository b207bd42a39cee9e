"""Generated networks for the training of a policy: structure, latency with steps, and sensitivities.

Three families: plain chains, residual stages, and inverted bottlenecks with depthwise layers. All quantities are arrays with one
row per network, padded to the same number of groups and layers, so that many networks are computed at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["LEAST", "MOST_GROUPS", "Spaces", "generate"]

MOST_GROUPS, MOST_LAYERS = 60, 150
LEAST = 1 / 32
"""The least share of its channels that a group keeps."""
SAVED = 1 - LEAST
IMAGE, CLASSES = 3.0, 10.0
"""Channels of the images, and number of classes."""


@dataclass(frozen=True)
class Spaces:
    """n networks. G = MOST_GROUPS, L = MOST_LAYERS; unused groups are absent, unused layers cost nothing."""

    channels: Tensor
    """(n, G)"""
    absent: Tensor
    """(n, G)"""
    ends: Tensor
    """(n, L, 2): the groups that a layer reads and writes; G stands for the image or the classes, which keep all channels."""
    sizes: Tensor
    """(n, L, 2): channels of the two ends."""
    work: Tensor
    """(n, L): multiply-accumulates per pair of channels; for a depthwise layer, per channel."""
    pixels: Tensor
    """(n, L)"""
    depthwise: Tensor
    """(n, L)"""
    seconds: Tensor
    """(n, L): time per multiply-accumulate."""
    traffic: Tensor
    """(n, 1): time per value that is read or written."""
    overhead: Tensor
    """(n, L): time of a layer without any work."""
    vector: Tensor
    """(n, 2): channels that are read and written at once. Time is that of the next multiple."""
    loss: Tensor
    """(n, G): the distance when half of a group's channels are removed."""
    power: Tensor
    """(n, G): how the distance grows with the removed share."""
    norm: Tensor
    """(n, 1): distances add up as this norm of them."""
    collapse: Tensor
    """(n, 2): the distance at which the score has fallen to 1/e, and how steeply it falls."""
    proxies: Tensor
    """(n, G, 3): whether distances are known, and their logarithms with errors at 25 and 50 % removed."""
    features: Tensor
    """(n, G, FEATURES): see `pipeline.search.amortised_policy`."""

    def latency(self, kept: Tensor, *, steps: bool = True) -> Tensor:
        """Kept fractions (n, G) -> latency as a share of the dense network's (n,). Without steps, it has a gradient."""
        dense = self._time(torch.ones_like(kept), steps=steps)
        return self._time(kept, steps=steps) / dense

    def macs(self, kept: Tensor) -> Tensor:
        """Kept fractions (n, G) -> MACs as a share of the dense network's (n,)."""
        return self._macs(kept).sum(1) / self._macs(torch.ones_like(kept)).sum(1)

    def distance(self, kept: Tensor) -> Tensor:
        """Kept fractions (n, G) -> how far the outputs move (n,)."""
        each = self.distances(kept).masked_fill(self.absent, 0.0)
        return (each + 1e-9).pow(self.norm).sum(1).pow(1 / self.norm[:, 0])

    def distances(self, kept: Tensor) -> Tensor:
        """(n, G) -> (n, G): that of each group alone. It rises steeply when few channels are left."""
        removed = (1 - kept).clamp(1e-4, 1.0)
        return self.loss * (removed / 0.5).pow(self.power) * 0.55 / (1.05 - removed)

    def score(self, kept: Tensor) -> Tensor:
        """Kept fractions (n, G) -> score in percent (n,)."""
        return 10 + 80 * torch.exp(-(self.distance(kept) / self.collapse[:, 0]).pow(self.collapse[:, 1]))

    def snapped(self, kept: Tensor, step: int = 4) -> Tensor:
        """The nearest fractions whose widths are multiples of `step`."""
        widths = (kept * self.channels / step).round().clamp(min=1) * step
        return torch.minimum(widths, self.channels) / self.channels

    def subset(self, rows: Tensor) -> "Spaces":
        """Some of the networks."""
        return Spaces(**{name: value[rows] for name, value in vars(self).items()})

    def _widths(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1)
        read, written = (torch.gather(whole, 1, self.ends[..., end]) * self.sizes[..., end] for end in (0, 1))
        return read, written

    def _macs(self, kept: Tensor) -> Tensor:
        read, written = self._widths(kept)
        return self.work * torch.where(self.depthwise, written, read * written)

    def _time(self, kept: Tensor, *, steps: bool) -> Tensor:
        read, written = self._widths(kept)
        whole = []
        for end, width in enumerate((read, written)):
            vector = self.vector[:, end : end + 1]
            whole.append(torch.ceil(width / vector - 1e-4) * vector if steps else width + (vector - 1) / 2)
        computed = self.work * torch.where(self.depthwise, whole[1], whole[0] * whole[1]) * self.seconds
        moved = self.traffic * self.pixels * (read + written)
        return (computed + moved + self.overhead).sum(1)


def generate(count: int, seed: int) -> Spaces:
    """`count` networks. The same seed gives the same networks."""
    generator = np.random.default_rng(seed)
    made = [_one(generator) for _ in range(count)]
    return Spaces(**{name: torch.from_numpy(np.stack([one[name] for one in made])) for name in made[0]})


@dataclass(frozen=True)
class _Layer:
    read: int
    written: int
    area: int
    pixels: float
    depthwise: bool = False

    @property
    def work(self) -> float:
        return self.area * self.pixels


def _one(generator: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    channels, layers = _structure(generator)
    costs = _costs(generator, channels, layers)
    shares, parameters, readers = _shares(channels, layers, costs["sizes"])
    loss, power = _sensitivities(generator, readers, parameters, channels)
    proxies = _proxies(generator, loss, power)
    norm = generator.uniform(1.0, 2.0)
    whole = float((loss**norm).sum() ** (1 / norm))
    padding = MOST_GROUPS - len(channels)

    def padded(values: NDArray[np.float64], filler: float) -> NDArray[np.float32]:
        rest = np.full((padding, *values.shape[1:]), filler)
        return np.concatenate([values, rest]).astype(np.float32)

    return costs | {
        "channels": padded(channels, 64.0),
        "absent": np.arange(MOST_GROUPS) >= len(channels),
        "traffic": np.asarray([10 ** generator.uniform(-0.5, 1.5)], dtype=np.float32),
        "vector": generator.choice([1.0, 4.0, 8.0, 16.0], 2).astype(np.float32),
        "loss": padded(loss, 1.0),
        "power": padded(power, 1.0),
        "norm": np.asarray([norm], dtype=np.float32),
        "collapse": np.asarray([whole * generator.uniform(0.5, 2.5), generator.uniform(1.0, 2.5)], dtype=np.float32),
        "proxies": padded(proxies, 0.0),
        "features": padded(_features(channels, layers, np.column_stack([shares, parameters, proxies])), 0.0),
    }


def _costs(generator: np.random.Generator, channels: NDArray[np.float64], layers: list[_Layer]) -> dict[str, NDArray[np.generic]]:
    """The layers as arrays, with the time that each takes."""
    width = dict(enumerate(channels))
    ends = np.full((MOST_LAYERS, 2), MOST_GROUPS, dtype=np.int64)
    sizes = np.ones((MOST_LAYERS, 2), dtype=np.float32)
    work, pixels, seconds, overhead = np.zeros((4, MOST_LAYERS), dtype=np.float32)
    depthwise = np.zeros(MOST_LAYERS, dtype=np.bool_)
    speed = generator.uniform(0.0, 64.0)  # a layer with so few products per output runs at half speed
    fixed = 10 ** generator.uniform(3.0, 5.5)
    for number, layer in enumerate(layers):
        ends[number] = layer.read, layer.written
        sizes[number] = width.get(layer.read, IMAGE), width.get(layer.written, CLASSES)
        work[number], pixels[number], depthwise[number] = layer.work, layer.pixels, layer.depthwise
        products = layer.area * (1 if layer.depthwise else sizes[number, 0])
        seconds[number] = (1 + speed / products) * generator.lognormal(0.0, 0.25) * (4 if layer.depthwise else 1)
        overhead[number] = fixed * generator.lognormal(0.0, 0.3)
    names = ("ends", "sizes", "work", "pixels", "seconds", "overhead", "depthwise")
    return dict(zip(names, (ends, sizes, work, pixels, seconds, overhead, depthwise), strict=True))


def _shares(
    channels: NDArray[np.float64], layers: list[_Layer], sizes: NDArray[np.generic]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What share of all MACs and parameters is saved when a group is at its thinnest, and how many layers touch it."""
    macs, parameters, readers = np.zeros((3, MOST_GROUPS + 1))
    total = np.zeros(2)
    for layer, (read, written) in zip(layers, sizes.tolist(), strict=False):
        product = written if layer.depthwise else read * written
        total += layer.work * product, layer.area * product
        for end in {layer.read, layer.written}:
            readers[end] += 1
            macs[end] += layer.work * product
            parameters[end] += layer.area * product
    count = len(channels)
    return SAVED * macs[:count] / total[0], SAVED * parameters[:count] / total[1], readers[:count]


def _features(channels: NDArray[np.float64], layers: list[_Layer], known: NDArray[np.float64]) -> NDArray[np.float64]:
    """The features of `pipeline.search.amortised_policy`. `known`: shares of MACs and parameters, and the proxies."""
    count, rows = len(channels), []
    for group, (macs, parameters, *proxies) in enumerate(known):
        number = next(number for number, layer in enumerate(layers) if layer.written == group)
        layer = layers[number]
        rows.append(
            (
                np.log(channels[group] / 64),
                np.log(max(macs * count, 1e-3)),
                np.log(max(parameters * count, 1e-3)),
                np.log((channels[layer.read] if layer.read < count else IMAGE) / 64),
                np.log(layer.area),
                float(number > 0 and layers[number - 1].pixels > layer.pixels),
                (group + 0.5) / count,
                np.log(count / 16),
                *proxies,
            )
        )
    return np.asarray(rows)


def _structure(generator: np.random.Generator) -> tuple[NDArray[np.float64], list[_Layer]]:
    """The channels of each group, and the layers."""
    family = generator.choice(["plain", "residual", "inverted"])
    stages = int(generator.integers(2, 6))
    base, side = float(generator.choice([16, 24, 32, 64])), float(generator.choice([32, 56, 112]))
    deepest = {"plain": 4, "residual": 8, "inverted": 4}[str(family)]
    blocks = generator.integers(1, deepest + 1, stages)
    while blocks.sum() + stages > MOST_GROUPS - 2 or blocks.sum() + stages < 5:
        blocks = generator.integers(1, deepest + 1, stages)
    growth = generator.uniform(1.4, 2.0)
    channels: list[float] = []
    layers: list[_Layer] = []

    def group(width: float) -> int:
        channels.append(max(4 * round(width / 4), 8))
        return len(channels) - 1

    before = MOST_GROUPS
    for stage, number in enumerate(blocks):
        width, pixels = base * growth**stage, max((side / 2**stage) ** 2, 1.0)
        if family == "plain":
            for _ in range(number):
                now = group(width)
                layers.append(_Layer(before, now, 9, pixels))
                before = now
            continue
        trunk = -1
        if stage == 0:
            trunk = group(width)
            layers.append(_Layer(before, trunk, 9, pixels))
            before = trunk
        for _ in range(number):
            bottleneck = (channels[before] if before < MOST_GROUPS else 16.0) * generator.choice([3, 4, 6])
            inner = group(width if family == "residual" else bottleneck)
            if trunk < 0:
                trunk = group(width)
            area = 9 if family == "residual" else 1
            layers.append(_Layer(before, inner, area, pixels))
            if family == "inverted":
                layers.append(_Layer(inner, inner, 9, pixels, depthwise=True))
            layers.append(_Layer(inner, trunk, area, pixels))
            before = trunk
    layers.append(_Layer(before, MOST_GROUPS, 1, 1.0))
    return np.asarray(channels), layers


def _sensitivities(
    generator: np.random.Generator, readers: NDArray[np.float64], parameters: NDArray[np.float64], channels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distance of each group at one half, and its power. Groups with many readers and few channels tend to matter more."""
    log = generator.uniform(0.2, 1.0) * np.log(readers) - generator.uniform(-0.1, 0.5) * np.log(channels / 64)
    log -= generator.uniform(0.0, 0.3) * np.log(np.maximum(parameters, 1e-4))
    log += generator.uniform(0.3, 1.0) * generator.standard_normal(len(readers))
    middle = generator.uniform(1.3, 2.5)
    return np.exp(log - log.mean()), np.clip(middle + 0.4 * generator.standard_normal(len(readers)), 1.0, 4.0)


def _proxies(generator: np.random.Generator, loss: NDArray[np.float64], power: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros((len(loss), 3))
    if generator.random() < 0.3:
        return found
    error = generator.uniform(0.05, 0.6) * generator.standard_normal(len(loss))
    for place, removed in enumerate((0.25, 0.5), start=1):
        found[:, place] = np.log(loss) + power * np.log(removed / 0.5) + error + 0.1 * generator.standard_normal(len(loss))
    found[:, 1:] -= found[:, 1:].mean(0)
    found[:, 0] = 1.0
    return found
