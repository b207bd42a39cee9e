"""How long the file that ships is measured. Nothing is timed: the cost model answers, and the limit is on a figure whose interval
gets narrower with the square root of the number of processes.
"""

import math

import onnx
import pytest
import torch
from helpers.graphs import conv_net, profile, reference
from torch import nn

from pipeline.core.budget import Constraint, Metric, Verdict
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.progress import NullCallback
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.statistics import Estimate
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.sequential_measurement import candidate_of, measure_again, measure_longer


class Said(NullCallback):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def say(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        self.counts.append((done, total))


def limited(value: float, half_width: float, doubts: tuple[Remark, ...] = ()) -> Constraint:
    """A limit of 1 on a figure that is `value` ± `half_width` after 2 processes."""

    def figure(candidate: Candidate, dense: Candidate) -> Estimate:
        assert candidate.measurement
        half = half_width / math.sqrt(len(candidate.measurement.processes) / 2)
        return Estimate(value, value - half, value + half)

    metric = Metric("figure", "figure", "count", absolute=figure, relative=None, doubts=lambda measured: doubts)
    return Constraint(metric, 1.0, relative=False)


def measured_file() -> PrunedModel:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    return PrunedModel(ChannelPlan.of({"0": 8}), onnx.load_model_from_string(conv_net()), torch.zeros(1, 3, 8, 8), lambda: net)


def ended(value: float, half_width: float, said: Said | None = None) -> tuple[int, Verdict, list[str]]:
    """The processes that were timed, the verdict, and what was said. A measurement has 2 processes."""
    limit, file = limited(value, half_width), measured_file()
    dense = candidate_of(file, None, None)
    said = said or Said()
    measured = measure_longer(SimulatedProbe(profile(), reference()), file, 2, (limit,), dense, said)
    found = candidate_of(file, measured, None)
    assert found.measurement
    return len(found.measurement.processes), limit.verdict(found, dense), said.texts


@pytest.mark.parametrize(
    ("value", "half_width", "processes", "verdict"),
    [
        (0.90, 0.05, 2, "within"),
        (0.90, 0.15, 6, "within"),
        (0.90, 0.22, 20, "within"),  # after 8 processes it is 0.11 wide: 9.7 are enough, and twice as many are timed
        (0.90, 0.30, 24, "within"),
        (0.90, 0.40, 24, "undecided"),
        (1.00, 0.01, 24, "undecided"),
        (1.10, 0.22, 20, "over"),
        (1.10, 0.05, 2, "over"),
    ],
)
def test_the_shipped_file_is_measured_until_its_interval_leaves_the_limit_up_to_a_bound(
    value: float, half_width: float, processes: int, verdict: Verdict
) -> None:
    assert ended(value, half_width)[:2] == (processes, verdict)


def test_measuring_longer_is_said_with_its_bound() -> None:
    assert ended(0.90, 0.15)[2] == []
    assert ended(0.90, 0.22)[2] == [
        "the limit is inside the interval after 8 processes; 12 more are timed, so that there are 20 of at most 24"
    ]


def test_each_measurement_is_counted_and_longer_measuring_has_a_new_total() -> None:
    """four measurements at most, and then ten in all"""
    said = Said()
    ended(0.90, 0.22, said)

    assert said.counts == [(0, 4), (1, 4), (2, 4), (3, 4), *((done, 10) for done in range(4, 10))]


BUSY = Remark(RemarkKind.PREEMPTED, "other programs ran")


@pytest.mark.parametrize("doubts", [(), (BUSY,)], ids=["quiet", "busy"])
@pytest.mark.parametrize(
    ("value", "half_width", "measurements"),
    [(0.90, 0.05, 2), (1.10, 0.05, 2), (0.90, 0.12, 3), (0.90, 0.15, 4), (0.90, 0.195, 5), (1.00, 0.01, 4)],
)
def test_a_plan_is_measured_again_until_two_successive_intervals_agree_however_busy_the_machine_is(
    value: float, half_width: float, measurements: int, doubts: tuple[Remark, ...]
) -> None:
    """the interval leaves the limit after half_width^2 / 0.01 measurements"""
    begun: list[int] = []
    file = measured_file()
    limits = (limited(value, half_width, doubts),)
    measure_again(SimulatedProbe(profile(), reference()), file, 2, limits, candidate_of(file, None, None), begun.append)

    assert begun == list(range(1, measurements + 1))
