"""A whole run on two boards over real ssh connections."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.profiles import QUICK
from helpers.small_net import SMALL_NET
from helpers.sshd import Board, needs_sshd, pool_profile

from pipeline.compress import compress
from pipeline.core.run import read_trials
from pipeline.stages.job import Job
from pipeline.training.settings import FinetuneSettings

pytestmark = [pytest.mark.slow, needs_sshd]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[dict[str, Board]]:
    boards = {name: Board(tmp_path / name) for name in ("left", "right")}
    for board in boards.values():
        board.start()
    yield boards
    for board in boards.values():
        board.stop()


def test_a_run_on_two_boards_measures_its_file_on_both_and_says_how_they_differ(tmp_path: Path, two: dict[str, Board]) -> None:
    device = pool_profile(two, tmp_path).device.model_dump(mode="json", exclude_none=True) | {"memory": "1 GiB"}
    runtime = {"threads": 1, "channel_step": 16}
    target = tmp_path / "pool.yaml"
    target.write_text(yaml.safe_dump({"device": device, "runtime": runtime, "probe": {**QUICK, "reconnect_s": 20}}))
    job = Job(
        target=str(target),
        model=SMALL_NET,
        budget={"latency_p50": "90 %"},
        searcher="random",
        trials=8,
        supernet_steps=0,
        finetuning=FinetuneSettings(epochs=0),
        out=tmp_path / "run",
    )
    artifact = compress(job).artifact
    trials = [trial for trial in read_trials(tmp_path / "run") if trial.role == "search"]
    measured = artifact.shipped.measurement

    assert measured is not None
    assert [each.board for each in (measured, *measured.others)] == ["left", "right"]
    assert {trial.candidate.measurement.board for trial in trials if trial.candidate.measurement} == {"left", "right"}
    assert any("left " in notice and "right " in notice and "two boards" in notice for notice in artifact.notices)
    assert compress(job).artifact == artifact  # the finished run is read again
