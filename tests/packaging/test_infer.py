"""infer.py, as a program on the device uses it: it follows `current` from one release to the next, without a run that fails."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.artifacts import INPUTS, NOW, Maker, answers
from helpers.graphs import conv_net
from helpers.sshd import Board, needs_sshd
from helpers.workers import until

from pipeline.core.profile import Profile
from pipeline.deploy.deliver import deliver, roll_back
from pipeline.deploy.manifest import Trust
from pipeline.packaging import infer

PROGRAM = """
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import numpy as np
from infer import Model

model, x = Model(sys.argv[1]), np.load(sys.argv[2])
while True:
    print(repr(float(model.run(x)[0, 0])), flush=True)
"""
"""A camera that never stops."""


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Profile]:
    """This machine, with a store of its own."""
    board = Board(tmp_path / "board")
    device = board.device(host=None, this_machine=True, store=str(tmp_path / "store"))
    yield board.profile().model_copy(update={"device": device})
    board.stop()


@needs_sshd
def test_a_program_that_runs_survives_a_switch_and_a_roll_back(tmp_path: Path, profile: Profile) -> None:
    maker, x = Maker(tmp_path / "artifacts"), tmp_path / "x.npy"
    np.save(x, INPUTS[:1])
    first = {seed: float(answers(conv_net(8, seed=seed))[0, 0]) for seed in (1, 2)}
    deliver(profile, maker.make("v1", profile, seed=1, version=1), Trust(maker.trusted, NOW))
    with (tmp_path / "said").open("w") as said, (tmp_path / "complaints").open("w") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "store" / "current"), str(x)], stdout=said, stderr=complaints
        )

        def answers_with(value: float) -> bool:
            lines = (tmp_path / "said").read_text().splitlines()
            return len(lines) > 1 and bool(np.isclose(float(lines[-2]), value, rtol=1e-4))

        try:
            assert until(lambda: answers_with(first[1]))
            deliver(profile, maker.make("v2", profile, seed=2, version=2), Trust(maker.trusted, NOW))
            assert until(lambda: answers_with(first[2]))
            roll_back(profile)
            assert until(lambda: answers_with(first[1]))
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()

    assert (tmp_path / "complaints").read_text() == ""
    seen = [float(line) for line in (tmp_path / "said").read_text().splitlines()[:-1]]
    changes = [seen[0], *(after for before, after in itertools.pairwise(seen) if after != before)]
    np.testing.assert_allclose(changes, [first[1], first[2], first[1]], rtol=1e-4)


def test_infer_is_short_enough_to_be_read() -> None:
    """without its first line, imports and docstrings, some forty lines"""
    lines = Path(infer.__file__).read_text().splitlines()

    assert len([line for line in lines if line.strip() and '"""' not in line]) <= 45
