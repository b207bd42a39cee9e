"""Reconstruction error: the order of channels, compared with the errors of all remaining sets, computed one by one."""

import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.core.plan import PruneSpace
from pipeline.graph.analyse import analyse
from pipeline.graph.importance import rank
from pipeline.graph.reconstruct import RIDGE, Moments, start_reconstruction
from pipeline.graph.reconstruction_error import order_by_error
from pipeline.graph.shrink import shrink

CHANNELS = 6


class Bottleneck(nn.Module):
    """x(4) -> a: 1x1 (6) -> relu -+-> b: 3x3 (3) ->+ sum of means
    +-> c: 1x1 (3) ->+"""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.c = nn.Conv2d(4, CHANNELS, 1), nn.Conv2d(CHANNELS, 3, 3), nn.Conv2d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(x).mean((2, 3)) + self.c(x).mean((2, 3))


@functools.cache
def space_of_all() -> PruneSpace:
    """The groups do not depend on the weights."""
    return analyse(Bottleneck(0).eval(), pictures(0)[:1]).space


def pictures(seed: int) -> Tensor:
    return torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


def error(module: nn.Module, name: str, moments: Moments, kept: list[int]) -> float:
    """The squared error of the best weights of one layer on the `kept` inputs, as a share of its outputs' variance."""
    weight = module.get_submodule(name).get_parameter("weight").detach().double().numpy()
    flat = np.moveaxis(weight, 1, 0).reshape(CHANNELS, -1).T  # (outputs and kernel positions, inputs)
    covariance = moments.covariance.numpy()
    ridge = covariance + (RIDGE * covariance.diagonal().mean() + 1e-12) * np.eye(CHANNELS)
    best = flat @ ridge[:, kept] @ np.linalg.inv(ridge[np.ix_(kept, kept)])
    left = flat @ ridge @ flat.T - best @ ridge[kept] @ flat.T
    return float(np.trace(left) / np.trace(flat @ covariance @ flat.T))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_each_time_the_channel_goes_whose_removal_leaves_the_smallest_error(seed: int) -> None:
    module, space = Bottleneck(seed).eval(), space_of_all()
    reconstruction = start_reconstruction(module, space, [pictures(seed)])
    found = order_by_error(reconstruction, rank(module, space, "l2", ()))["a"]

    kept = list(range(CHANNELS))
    for gone in reversed(found[1:]):
        total = {
            channel: sum(
                error(module, name, reconstruction.moments[name], [each for each in kept if each != channel]) for name in "bc"
            )
            for channel in kept
        }
        before = sum(error(module, name, reconstruction.moments[name], kept) for name in "bc")
        assert total[gone] - before <= (min(total.values()) - before) * (1 + 1e-6) + 1e-9
        kept.remove(gone)


def test_of_two_equal_channels_with_large_weights_one_goes_first_and_the_other_one_stays() -> None:
    module = Bottleneck(0).eval()
    with torch.no_grad():
        for layer in (module.a.weight, module.a.bias):
            layer[4] = layer[1] = 5 * layer[1]
    space = space_of_all()
    by_size, by_error = (rank(module, space, kind, [(pictures(1), torch.zeros(8))])["a"] for kind in ("l2", "reconstruction"))

    assert set(by_size[:2]) == {1, 4}
    assert by_error[-1] in (1, 4)
    assert set(by_error[:3]) & {1, 4}


def test_a_pruned_network_is_closer_to_the_dense_one_than_with_the_channels_of_largest_weights() -> None:
    closer = []
    for seed in range(8):
        module = Bottleneck(seed).eval()
        space = space_of_all()
        reconstruction = start_reconstruction(module, space, [pictures(seed)])
        errors = []
        for kind in ("l2", "reconstruction"):
            kept = {"a": tuple(sorted(rank(module, space, kind, [(pictures(seed), torch.zeros(8))])["a"][:3]))}
            small = shrink(module, space, kept)
            reconstruction.apply(small, kept)
            with torch.no_grad():
                errors.append(float((small(pictures(seed)) - module(pictures(seed))).square().mean()))
        closer.append(errors[1] <= errors[0])

    assert sum(closer) >= 6


def test_inputs_that_do_not_vary_leave_the_order_by_size() -> None:
    module = Bottleneck(3).eval()
    space = space_of_all()
    constant = [(torch.ones(2, 4, 5, 5), torch.zeros(2))]

    assert sorted(rank(module, space, "reconstruction", constant)["a"]) == list(range(CHANNELS))
    assert rank(module, space, "reconstruction", [(torch.full((2, 4, 5, 5), float("nan")), torch.zeros(2))]) == rank(
        module, space, "l2", ()
    )
