"""Jobs that may drop blocks: which calibrations they take, and which figures their plans have."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.analysed import builder_with_blocks
from helpers.toys import TOYS
from helpers.toys_depth import DeepToy

from pipeline.calibrate import plans_to_measure
from pipeline.core.candidate import Candidate
from pipeline.core.latency_predictor import LatencyPredictor, Point
from pipeline.errors import ProbeError
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.stages.job import Job
from pipeline.stages.probes import refuse_without_blocks
from pipeline.stages.reward import RewardFunction

PREDICTOR = LatencyPredictor({}, {}, "s", 1.0, None, (Point(1.0, 1.0), Point(0.5, 0.6)))


def test_a_calibration_measures_plans_without_some_of_their_blocks() -> None:
    space = DeepToy().space
    dense, thinnest, *others = plans_to_measure(space, 8, seed=0)
    dropped = [len(plan.dropped) for plan in others]

    assert (dense, thinnest) == (space.dense(), space.thinnest())
    assert 0 in dropped
    assert any(0 < count < 3 for count in dropped)


def test_a_calibration_of_a_network_without_blocks_measures_the_same_plans_as_before() -> None:
    space, generator = TOYS["chain"].space, np.random.default_rng(0)
    before = [space.plan(np.clip(generator.normal(level, 0.15, len(space.choices)), 0, 1).tolist()) for level in np.linspace(0.15, 0.85, 4)]  # fmt: skip

    assert list(plans_to_measure(space, 4, seed=0))[2:] == before


def test_a_calibration_without_such_plans_is_refused_where_blocks_may_leave() -> None:
    job = Job(target="raspberrypi", depth="auto", calibration=Path("board.json"))
    refuse_without_blocks(replace(PREDICTOR, depth=True), job)
    refuse_without_blocks(PREDICTOR, replace(job, depth="off"))

    with pytest.raises(ProbeError, match="compress calibrate --depth auto"):
        refuse_without_blocks(PREDICTOR, job)


def test_a_plan_without_a_block_has_no_kept_entropy_and_one_with_all_has() -> None:
    """A layer that is not there has no entropy. The user's own reward gets None, and not a share of 0."""
    builder = builder_with_blocks("resnet")
    inputs = torch.cat([builder.example, builder.example.flip(3)])
    spatial, channels = (
        start_spatial_entropy(builder.module, builder.space, inputs),
        start_channel_entropy(builder.module, inputs),
    )
    reward = RewardFunction(lambda candidate: candidate.entropy or 0.0, builder, spatial, channels)
    found = []
    for dropped in ((), ("body.1",)):
        pruned = builder.make(builder.space.plan(dict(builder.space.dense()), dropped))
        candidate = Candidate(pruned.plan, 1, 1, 1, "s", None, 50.0)
        found.append(reward.look(candidate, pruned.module))

    assert found[0].kept_entropy == pytest.approx(1.0)
    assert found[0].kept_channel_entropy == pytest.approx(1.0)
    assert (found[1].kept_entropy, found[1].kept_channel_entropy) == (None, None)
    assert found[1].entropy is not None
