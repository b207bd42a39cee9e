"""Clear losers: a plan that scores far less than the best one is scored on fewer images, and the journal says so."""

from pathlib import Path

import pytest
import torch
from helpers.analysed import builder_of
from helpers.nets import Chain

from pipeline.core.profile import load_profile
from pipeline.core.progress import Notices, NullCallback
from pipeline.core.run import open_run, read_trials
from pipeline.data.folder import memory_fetch
from pipeline.data.images import Splits
from pipeline.data.preprocessing import Preprocessing
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.stages.probe_adapter import reference_of
from pipeline.stages.reward import RewardFunction
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

IMAGES = 600


@pytest.fixture(scope="module")
def task() -> Classification:
    """600 images of 8x8 with the whole network's own answers as labels, so that it scores nearly 100 %."""
    pixels = torch.randint(256, (IMAGES, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        labels = builder_of(Chain).module.eval()(pixels.float() / 255).argmax(1)
    everything = torch.arange(IMAGES)
    splits = Splits.of(memory_fetch(pixels), labels, (everything,) * 3, Preprocessing(), ["a"] * 5, "noise")
    return Classification(splits, FinetuneSettings(recover="none"), 0)


@pytest.mark.parametrize(("to_beat", "scored"), [(None, None), (101.0, 512), (0.0, None)])
def test_the_journal_says_on_how_many_images_a_clear_loser_was_scored(
    tmp_path: Path, task: Classification, to_beat: float | None, scored: int | None
) -> None:
    """Batches of 256: the first look is after 512 of 600 images."""
    builder, profile = builder_of(Chain), load_profile("raspberrypi")
    with open_run(tmp_path / "run", {"job": "1"}) as run:
        callback = NullCallback()
        context = RunContext(run, builder, task, profile, (), callback, Notices(callback), Provenance((), {}, ""))
        measurer = PlanMeasurer(
            context, SimulatedProbe(profile, reference_of(builder)), RewardFunction("accuracy", builder, None, None)
        )
        reconstruction = start_reconstruction(builder.module, builder.space, (inputs for inputs, _ in task.calibration()))
        plan = builder.space.plan({group.name: 2 for group in builder.space.groups})
        found = measurer.trial(plan, 1, InitialWeights(context, reconstruction), to_beat)
    (kept,) = read_trials(tmp_path / "run")

    assert found.score is not None
    assert (found.scored_images, kept.candidate) == (scored, found)


def test_a_score_from_fewer_images_is_that_of_the_first_of_them(task: Classification) -> None:
    module = (
        builder_of(Chain).make(builder_of(Chain).space.plan({group.name: 2 for group in builder_of(Chain).space.groups})).module
    )
    found = task.score_against(module, 101.0)
    with torch.no_grad():
        right = torch.cat([module(pixels).argmax(1) == labels for pixels, labels in task._scoring_images().batches()])

    assert found.images == 512
    assert found.value == pytest.approx(100 * float(right[:512].float().mean()), abs=0.5)  # bfloat16 may decide one of them
    assert task.score(module) == pytest.approx(100 * float(right.float().mean()), abs=0.5)
