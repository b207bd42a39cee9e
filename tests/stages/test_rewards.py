"""Rewards: what a search makes large, through the whole walk; and what agents are told of a layer."""

import math
import runpy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from helpers.nets import EXAMPLE, Chain, build
from helpers.small_net import SMALL_NET

from pipeline.cli.main import compress as command
from pipeline.compress import compress
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan
from pipeline.core.run import Trial, read_trials
from pipeline.errors import ModelError
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.search.problem import NAMED_REWARDS, Layer, Reward
from pipeline.search.searchers import SEARCHERS
from pipeline.stages.job import Job
from pipeline.stages.reward import RewardFunction
from pipeline.stages.search_space import search_space
from pipeline.training.settings import FinetuneSettings

pytestmark = pytest.mark.starts_first


def job(out: Path, **changes: object) -> Job:
    settings = {
        "target": "raspberrypi",
        "model": SMALL_NET,
        "budget": {"latency_p50": "80%", "accuracy_drop": 100.0},
        "dry_run": True,
        "trials": 12,
        "supernet_steps": 4,
        "finetuning": FinetuneSettings(epochs=0),
        "out": out,
    }
    return Job(**{**settings, "searcher": "random", **changes})  # type: ignore[arg-type]


def within(trial: Trial) -> bool:
    relative = trial.candidate.measurement and trial.candidate.measurement.relative_p50
    return bool(relative and relative.high <= 0.8)


WORTH = {
    "accuracy-entropy": lambda candidate: candidate.score / 100 * candidate.kept_entropy,
    "channel-entropy": lambda candidate: candidate.kept_channel_entropy,
    "spatial-entropy": lambda candidate: candidate.kept_entropy,
    "least-entropy": lambda candidate: 1 - candidate.entropy,
}


@pytest.mark.parametrize(
    ("reward", "worth"),
    [
        ("accuracy", 80.0),
        ("accuracy-entropy", 72.0),
        ("channel-entropy", 60.0),
        ("spatial-entropy", 90.0),
        ("least-entropy", 30.0),
    ],
)
def test_each_reward_is_made_of_its_own_figures(reward: Reward, worth: float) -> None:
    candidate = Candidate(ChannelPlan((("conv", 4),)), 0, 0, 0, "", None, 80.0)
    looked_at = replace(candidate, entropy=0.7, kept_entropy=0.9, kept_channel_entropy=0.6)

    assert RewardFunction(reward, None, None, None).reward_of(looked_at) == pytest.approx(worth)  # type: ignore[arg-type]


def few(*rewards: str, of: Iterable[str]) -> list[object]:
    """A whole run with each of these in the default tests, with all others in the slow tests."""
    return [each if each in rewards else pytest.param(each, marks=pytest.mark.slow) for each in of]


@pytest.mark.parametrize("reward", few("accuracy-entropy", "channel-entropy", of=WORTH))
def test_under_entropy_the_plan_that_keeps_most_or_has_least_is_shipped(tmp_path: Path, reward: str) -> None:
    artifact = compress(job(tmp_path / "run", reward=reward)).artifact
    trials = [trial for trial in read_trials(tmp_path / "run") if trial.role in ("dense", "thinnest", "search")]
    reward_of = {trial: WORTH[reward](trial.candidate) for trial in trials}

    assert all(0 <= each <= 1 for each in reward_of.values())
    assert all(each > 0 for trial, each in reward_of.items() if trial.role == "search")
    if reward in ("channel-entropy", "spatial-entropy"):
        assert next(each for trial, each in reward_of.items() if trial.role == "dense") == pytest.approx(1.0, abs=0.02)
        assert all(each < 1 for trial, each in reward_of.items() if trial.role != "dense")
    assert all(trial.candidate.score is not None for trial in trials)
    looked_at = {(trial.candidate.kept_entropy is not None, trial.candidate.kept_channel_entropy is not None) for trial in trials}
    assert looked_at == {(reward != "channel-entropy", reward == "channel-entropy")}  # only what is rewarded
    assert artifact.shipped.plan == max(filter(within, trials), key=lambda trial: reward_of[trial]).candidate.plan


def test_of_scores_below_zero_entropy_makes_none_better() -> None:
    """A loss with its sign changed: -2 and -3, of which the worse one keeps less."""
    rewarding = RewardFunction("accuracy-entropy", None, None, None)  # type: ignore[arg-type]
    plan = ChannelPlan((("conv", 4),))
    better, worse, best = (
        replace(Candidate(plan, 0, 0, 0, "", None, score), kept_entropy=kept)
        for score, kept in ((-2.0, 0.9), (-3.0, 0.1), (1.0, 0.5))
    )

    assert [rewarding.reward_of(each) for each in (worse, better, best)] == [-3.0, -2.0, 0.5]


def test_a_reward_or_a_searcher_that_is_none_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown reward 'entropy'; choose one of accuracy, accuracy-entropy, channel-entropy"):
        job(tmp_path / "run", reward="entropy")
    with pytest.raises(ModelError, match="unknown searcher 'best'; choose one of ddpg-entropy, evolution, greedy"):
        Job(target="raspberrypi", searcher="best")


def test_the_command_line_offers_every_reward() -> None:
    (offered,) = (each.type for each in command.params if each.name == "reward")

    assert isinstance(offered, click.Choice)
    assert tuple(sorted(offered.choices)) == tuple(sorted(NAMED_REWARDS))


@pytest.mark.parametrize("reward", NAMED_REWARDS)
def test_a_plan_that_failed_is_worth_nothing_also_when_it_was_scored_meanwhile(reward: Reward) -> None:
    """On a machine with a free core it is scored while it is measured, on others not: both must search alike."""
    rewarding = RewardFunction(reward, None, None, None)  # type: ignore[arg-type]
    failed = Candidate(ChannelPlan((("conv", 4),)), 0, 0, 0, "", None, 80.0, Failure("timeout", "no answer"))

    assert rewarding.reward_of(failed) is None


def test_a_reward_of_ones_own_decides_what_is_shipped(tmp_path: Path) -> None:
    def middling(candidate: Candidate) -> float:
        assert candidate.measurement
        assert candidate.entropy
        assert candidate.kept_channel_entropy
        return 100 / (1 + abs(candidate.params - 12_000))

    artifact = compress(job(tmp_path / "run", reward=middling)).artifact
    trials = [
        trial.candidate for trial in read_trials(tmp_path / "run") if trial.role in ("thinnest", "search") and within(trial)
    ]
    best = max(trials, key=middling)

    assert artifact.shipped.plan == best.plan
    assert min(c.params for c in trials) < best.params < max(c.params for c in trials)
    assert artifact.job["reward"].endswith("middling")


def test_where_all_rewards_are_below_zero_a_plan_without_one_is_not_the_best(tmp_path: Path) -> None:
    def near_to(candidate: Candidate) -> float:
        return math.nan if 10_000 < candidate.params < 15_000 else -abs(candidate.params - 9_000)

    artifact = compress(job(tmp_path / "run", reward=near_to)).artifact
    trials = [
        trial.candidate for trial in read_trials(tmp_path / "run") if trial.role in ("thinnest", "search") and within(trial)
    ]
    reward_of = {each: near_to(each) for each in trials}
    best = max((each for each in trials if not math.isnan(reward_of[each])), key=lambda each: reward_of[each])

    assert any(map(math.isnan, reward_of.values()))
    assert reward_of[best] < 0
    assert artifact.shipped.plan == best.plan


@pytest.mark.parametrize("reward", few("spatial-entropy", "channel-entropy", of=WORTH))
def test_where_no_map_has_two_pixels_there_is_no_entropy_to_look_for(tmp_path: Path, reward: str) -> None:
    """8x8 -> conv 8x8 -> 1x1 -> conv 1x1 -> classes"""
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 16, 8), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))\n"
    )
    torch.save(runpy.run_path(str(net))["make"]().state_dict(), tmp_path / "net.pt")

    with pytest.raises(ModelError, match="this network has no entropy"):
        compress(job(tmp_path / "run", model=f"{net}:make", weights=tmp_path / "net.pt", data="digits", reward=reward))


@pytest.mark.parametrize("name", SEARCHERS)
def test_each_searcher_has_the_reward_it_was_made_for_unless_told_otherwise(name: str) -> None:
    assert Job("local", searcher=name).search_reward() == ("spatial-entropy" if name == "ddpg-entropy" else "accuracy")
    assert Job("local", searcher=name, reward="channel-entropy").search_reward() == "channel-entropy"


def test_agents_are_told_the_shape_of_a_groups_first_layer(tmp_path: Path) -> None:
    """x -> conv 3x3 (8) -> conv 3x3 (12) -> mean -> linear(5)"""
    net = build(Chain)
    builder = start_builder(net, EXAMPLE, FileFormat(18, 9), PruningSettings(), tmp_path / "dense.onnx")

    assert [choice.layer for choice in search_space(builder, 4).choices] == [
        Layer(3, (3, 3), (1, 1), (1, 1)),
        Layer(8, (3, 3), (1, 1), (1, 1)),
    ]
