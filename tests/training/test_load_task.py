"""Tasks of the user's own, by file and function."""

import re
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.training.load import load_task

TASKS = """
import torch
from pipeline import OwnTask

INPUTS = torch.rand(8, 3, 32, 32)

def plain():
    return OwnTask(INPUTS, evaluate=lambda module: 90.0, train=lambda module: module)

def described():
    return OwnTask(INPUTS, evaluate=lambda module: 90.0, train=lambda module: module, description="boxes of cats")

def number():
    return 90.0

def fails():
    raise FileNotFoundError("no scenes.zip")

def greedy(folder):
    return plain()
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    return tmp_path / "tasks.py"


def test_a_task_is_described_by_where_it_comes_from_or_as_it_says(tasks: Path) -> None:
    descriptions = [load_task(f"{tasks}:{name}").description for name in ("plain", "described")]

    assert descriptions == [f"{tasks}:plain", "boxes of cats"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("boxes", "task 'boxes': give file.py:factory or package.module:factory, a function that returns an OwnTask"),
        ("{tasks}:absent", "{tasks}: no function 'absent' in this file or module; give --task file.py:factory or"),
        ("{tasks}:number", "{tasks}:number: the factory returned float; it must return a pipeline.OwnTask"),
        ("{tasks}:fails", "{tasks}:fails: the factory failed with FileNotFoundError: no scenes.zip (at {tasks}:17)"),
        ("{tasks}:greedy", "{tasks}:greedy: the factory failed with TypeError: greedy() missing 1 required positional argument"),
    ],
)
def test_a_spec_that_leads_to_no_task_is_refused(tasks: Path, spec: str, complaint: str) -> None:
    with pytest.raises(DataError, match=re.escape(complaint.format(tasks=tasks))):
        load_task(spec.format(tasks=tasks))
