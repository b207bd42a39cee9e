"""Least error: rank channels by how well the other channels replace them, after least-squares reconstruction.

A removed channel costs little if the layers that read it hardly use it, or if the remaining channels predict it. Without input j,
the least-squares weights of a layer have a squared error that is larger by |w_j|^2 / P_jj, where P is the inverse of the inputs'
covariance (Hassibi & Stork, Second order derivatives for network pruning: Optimal Brain Surgeon, NeurIPS 1992, equation 5, for
a linear layer). Channels are removed one after the other, the cheapest first, and weights and P are corrected after each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.plan import Group
from pipeline.graph.reconstruct import RIDGE, Moments, Reconstruction

__all__ = ["order_by_error"]

Floats = NDArray[np.float64]
ROUNDS = 64
"""Number of rounds in which the channels of a group are removed. With one channel per round, wide groups would take minutes."""


@dataclass(eq=False)
class _Reader:
    """One layer that reads the channels of a group. It may read others too, which all stay."""

    rows: NDArray[np.int64]
    """The group's channel of each input of the layer; -1 for another group's."""
    precision: Floats
    """(C, C): inverse of the covariance of the inputs. Rows and columns of removed inputs are 0."""
    gram: Floats
    """(C, C): products of the weights of two inputs, summed over outputs and kernel positions."""
    scale: float
    """Variance of the layer's outputs, summed over outputs."""

    def costs(self, channels: int) -> Floats:
        """Return the squared error without each channel alone, as a share of the outputs' variance, (channels,)."""
        diagonal = self.precision.diagonal()
        each = np.where(diagonal > 0, self.gram.diagonal() / np.maximum(diagonal, 1e-300), 0.0) / self.scale
        summed: Floats = np.bincount(self.rows[self.rows >= 0], each[self.rows >= 0], channels).astype(np.float64)
        return summed

    def remove(self, channels: NDArray[np.int64]) -> None:
        """Remove the inputs of `channels`. The weights of the others are corrected by least squares."""
        gone = np.flatnonzero(np.isin(self.rows, channels))
        if not len(gone):
            return
        across = np.linalg.solve(self.precision[np.ix_(gone, gone)], self.precision[gone])  # (gone, C); the identity on gone
        inner, cross = self.gram[np.ix_(gone, gone)], self.gram[:, gone] @ across
        self.gram = self.gram - cross - cross.T + across.T @ inner @ across
        self.precision = self.precision - self.precision[:, gone] @ across
        for matrix in (self.gram, self.precision):
            matrix[gone], matrix[:, gone] = 0.0, 0.0


def order_by_error(
    reconstruction: Reconstruction, fallback: dict[str, tuple[int, ...]], between: Callable[[], None] = lambda: None
) -> dict[str, tuple[int, ...]]:
    """Return the channels of each group, by group name; the one that is removed first comes last.

    The errors of several layers that read a group are added, each as a share of the variance of its outputs. A group that no
    layer with moments reads has its order of `fallback`. In a tie, the channel that is less important in `fallback` goes first.
    """
    found = {}
    for group in reconstruction.space.groups:
        readers = _readers(reconstruction, group)
        found[group.name] = _order(group.channels, readers, fallback[group.name]) if readers else fallback[group.name]
        between()
    return found


def _order(channels: int, readers: list[_Reader], fallback: tuple[int, ...]) -> tuple[int, ...]:
    left = np.asarray(fallback[::-1])  # the least important one first, so that it goes first in a tie
    removed: list[int] = []
    at_once = -(-channels // ROUNDS)
    while len(left) > 1:
        costs = np.sum([reader.costs(channels) for reader in readers], axis=0)
        gone = left[np.argsort(costs[left], kind="stable")[: min(at_once, len(left) - 1)]]
        for reader in readers:
            reader.remove(gone)
        removed.extend(gone.tolist())
        left = left[~np.isin(left, gone)]
    return (*left.tolist(), *reversed(removed))


def _readers(reconstruction: Reconstruction, group: Group) -> list[_Reader]:
    found = []
    for slot in group.slots:
        name, _, kind = slot.tensor.rpartition(".")
        moments = reconstruction.moments.get(name) if kind == "weight" and slot.axis == 1 else None
        if moments is not None:
            reader = _reader(reconstruction, name, moments, dict(zip(slot.entries, slot.channels, strict=True)))
            found.extend([reader] if reader else [])
    return found


def _reader(reconstruction: Reconstruction, name: str, moments: Moments, channel_of: dict[int, int]) -> _Reader | None:
    """None if the moments are not finite, or the layer's outputs do not vary."""
    weight = reconstruction.module.get_submodule(name).get_parameter("weight").detach()
    by_input = weight[:, torch.from_numpy(moments.columns)].double()  # (outputs, C, k, kernel...)
    flat = by_input.movedim(1, 0).flatten(1).cpu().numpy()
    covariance = moments.covariance.cpu().numpy()
    gram = flat @ flat.T
    scale = float((gram * covariance).sum())
    if not (np.isfinite(covariance).all() and np.isfinite(gram).all() and scale > 0):
        return None
    ridge = RIDGE * float(covariance.diagonal().mean()) + 1e-12
    precision: Floats = np.linalg.inv(covariance + ridge * np.eye(len(covariance))).astype(np.float64)
    rows = np.asarray([channel_of.get(int(entry), -1) for entry in moments.columns[:, 0]])
    return _Reader(rows, precision, gram, scale)
