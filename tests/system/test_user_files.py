"""Whose a Python file is decides whose fault an error is, and which code a run remembers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline
from pipeline.system.user_files import is_users, own_line

SOURCES = sorted(Path(pipeline.__file__ or "").parent.rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.parent.name + "/" + file.name)
def test_no_file_of_this_program_is_the_users(file: Path) -> None:
    assert not is_users(file)


@pytest.mark.parametrize("file", [json.__file__, torch.__file__, np.__file__, "<string>", "<frozen importlib._bootstrap>"])
def test_libraries_and_generated_code_are_not_the_users(file: str) -> None:
    assert not is_users(file)


def test_a_file_of_ones_own_is_the_users(tmp_path: Path) -> None:
    assert is_users(tmp_path / "nets.py")
    assert is_users(__file__)


def test_a_defect_in_any_folder_of_this_program_is_not_blamed_on_the_network() -> None:
    from pipeline.graph.structure import load_graph

    with pytest.raises(Exception, match=r".*") as caught:
        load_graph(b"no graph")
    problem = caught.value
    assert problem.__traceback__ is not None
    inside = problem.with_traceback(problem.__traceback__.tb_next)  # without the frame of this test

    assert "graph/structure.py" in str(inside.__traceback__.tb_frame.f_code.co_filename)  # type: ignore[union-attr]
    assert own_line(inside) is None
