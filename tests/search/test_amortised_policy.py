"""The policy that is trained in advance: what it sees, what it proposes, and what it has learned."""

import math

import generated_spaces
import numpy as np
import pretrain_policy
import pytest
import torch

from pipeline.search.amortised_policy import CHECKPOINT, AmortisedPolicy, features_of, load_policy, path_of_policy
from pipeline.search.problem import Choice, Layer, SearchSpace
from pipeline.search.sensitivity import probing_plans

LAYER = Layer(inputs=32, kernel=(3, 3), stride=(2, 2))
SPACE = SearchSpace(tuple(Choice(f"group{n}", 64, tuple(range(4, 65, 4)), 0.1, 0.2, LAYER) for n in range(6)))
DISTANCES = {
    plan: (n + 1) * (1 - plan[name] / 64) ** 2 for n, (name, plans) in enumerate(probing_plans(SPACE).items()) for plan in plans
}


@pytest.fixture(scope="module")
def spaces() -> generated_spaces.Spaces:
    return generated_spaces.generate(40, seed=pretrain_policy.HELD_OUT_SEED + 1)


def test_the_checkpoint_has_less_than_one_megabyte() -> None:
    assert CHECKPOINT.stat().st_size < 1e6


def test_the_features_are_shares_shapes_and_distances_relative_to_the_other_groups() -> None:
    row = features_of(SPACE, DISTANCES)[0]
    others = np.log([n + 1 for n in range(6)]).mean()

    assert row == pytest.approx(
        (0, math.log(0.6), math.log(1.2), math.log(0.5), math.log(9), 1, 0.5 / 6, math.log(6 / 16), 1, -others, -others), abs=1e-6
    )
    assert not features_of(SPACE)[:, 8:].any()


def test_the_distance_of_a_dropped_block_is_a_feature_too() -> None:
    block = Choice("block", 1, (0, 1), 0.4, 0.4, LAYER, is_block=True, contents=("group0",))
    space = SearchSpace((block, SPACE.choices[0]))
    distances = {plan: 1.0 for plans in probing_plans(space).values() for plan in plans}

    assert features_of(space, distances)[:, 8].tolist() == [1, 1]


def test_the_path_ends_at_the_thinnest_and_at_the_dense_plan_and_keeps_more_for_more_latency() -> None:
    path = path_of_policy(SPACE, DISTANCES)
    sums = [sum(SPACE.widths_in(path(share))) for share in (0.1, 0.3, 0.5, 0.7)]

    assert (path(0), path(1)) == (SPACE.thinnest(), SPACE.dense())
    assert sums == sorted(set(sums))


def test_a_fragile_group_keeps_more_channels_than_an_equal_one_that_is_robust() -> None:
    widths = SPACE.widths_in(path_of_policy(SPACE, DISTANCES)(0.4))

    assert widths[5] > widths[0]


def test_rows_that_are_padding_do_not_change_a_proposal() -> None:
    features, budget = torch.from_numpy(features_of(SPACE))[None], torch.tensor([0.4])
    padded = torch.cat([features, torch.randn(1, 3, features.shape[2])], dim=1)
    absent = torch.arange(9)[None] >= 6

    assert torch.allclose(load_policy()(padded, budget, absent)[:, :6], load_policy()(features, budget), atol=1e-5)


def test_the_policy_beats_uniform_plans_on_generated_networks_that_it_has_not_seen(spaces: generated_spaces.Spaces) -> None:
    budget = torch.full((40,), 0.35)
    with torch.no_grad():
        odds = load_policy()(spaces.features, budget, spaces.absent)
    _, log_ratio, _ = pretrain_policy.objective(spaces, odds, budget)

    assert log_ratio < math.log(0.9)


def test_a_generated_network_has_the_latency_and_the_loss_of_its_dense_plan(spaces: generated_spaces.Spaces) -> None:
    whole = torch.ones_like(spaces.channels)

    assert torch.equal(spaces.latency(whole), torch.ones(40))
    assert torch.all(spaces.distance(whole) < 1e-3)
    assert torch.all(spaces.score(whole) > 89)


def test_the_multiplier_gives_the_slope_of_the_distance_along_the_budget(spaces: generated_spaces.Spaces) -> None:
    """The oracle is a difference: the plan is changed, moved to the budget again, and the distance is compared."""
    few = spaces.subset(torch.arange(4))
    double = generated_spaces.Spaces(
        **{name: value.double() if value.is_floating_point() else value for name, value in vars(few).items()}
    )
    budget, change = torch.full((4,), 0.4, dtype=torch.float64), torch.zeros_like(double.channels)
    change[:, 1] = 1e-2
    odds = torch.zeros_like(double.channels).requires_grad_()
    off = torch.log(double.latency(torch.sigmoid(odds), steps=False) / budget)
    loss = pretrain_policy.objective(double, odds, budget)[0] - 0.1 * off.square().mean()
    slope = float((torch.autograd.grad(loss, odds)[0] * change).sum())

    def log_distance(at: torch.Tensor) -> torch.Tensor:
        move = pretrain_policy.move_to(double, at, budget, halvings=50)
        return torch.log(double.distance(torch.sigmoid(at + move[:, None]))).mean()

    assert slope == pytest.approx(float(log_distance(change) - log_distance(-change)) / 2, rel=0.02)


def test_training_lowers_the_distance_of_the_proposals() -> None:
    torch.manual_seed(0)
    policy, few = AmortisedPolicy(), generated_spaces.generate(4, seed=0)
    budget = torch.full((4,), 0.4)

    def against_uniform() -> float:
        with torch.no_grad():
            odds = policy(few.features, budget, few.absent)
        return pretrain_policy.objective(few, odds, budget)[1]

    before = against_uniform()
    pretrain_policy.train(policy, few, steps=6, learning_rate=1e-2, seed=0)

    assert against_uniform() < before
