"""What a worker answers: figures that cannot be true, and failures that nobody knows, are an error of that device, by name."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.readers import ANSWERS, json_lines, read_answers
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.measurement import FailureKind
from pipeline.errors import ProbeError
from pipeline.probe.protocol import FileFailureKind, checked

MEASURED: dict[str, Any] = ANSWERS[3]


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    answer = copy.deepcopy(MEASURED)
    change(answer)
    return answer


def set_all_latencies(answer: dict[str, Any], value: object) -> None:
    answer["processes"][0]["latency_ms"] = [[value, value], [value, value]]
    answer["processes"][0]["reference_latency_ms"] = [[value, value], [value, value]]


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: set_all_latencies(answer, 0.0),
        lambda answer: set_all_latencies(answer, -1.0),
        lambda answer: set_all_latencies(answer, float("nan")),
        lambda answer: set_all_latencies(answer, float("inf")),
        lambda answer: set_all_latencies(answer, 1e300),
        lambda answer: set_all_latencies(answer, 2**62),
        lambda answer: answer["processes"].clear(),
        lambda answer: answer["processes"][0]["latency_ms"].clear(),
        lambda answer: answer["processes"][0]["latency_ms"][1].clear(),
        lambda answer: answer["processes"][0].update(answer=[float("nan")]),
        lambda answer: answer["processes"][0].update(preemptions=-1),
        lambda answer: answer["memory"].update(peak_bytes=2**62),
        lambda answer: answer["before"].update(temperature_c=1e9),
    ],
)
def test_figures_that_cannot_be_true_are_refused_with_the_device_s_name(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ProbeError, match="board: invalid answer"):
        checked(changed(change), "measure", "board")


@pytest.mark.parametrize(
    "answer",
    [
        {"failure": ["a kind of the future", "?"]},
        {"failure": ["lost", "a worker cannot know that"]},
        {"failure": ["crashed"]},
        {"failure": ["illegal-instruction", "it died"], "onnxruntime": ["1.21.0"]},
        {"failure": ["not-installed", "no numpy"], "interpreter": {"a": 1}},
    ],
)
def test_a_failure_that_no_worker_of_ours_tells_is_refused_and_never_a_candidate_s(answer: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match="board: invalid answer"):
        checked(answer, "measure", "board")


def test_every_failure_that_a_worker_may_tell_of_a_file_can_stand_in_a_journal() -> None:
    assert set(get_args(FileFailureKind)) <= set(get_args(FailureKind))


@given(kind=st.sampled_from(get_args(FileFailureKind)), detail=st.text(max_size=30))
def test_a_failure_of_a_known_kind_is_taken(kind: str, detail: str) -> None:
    answer = {"failure": [kind, detail]}

    assert checked(answer, "measure", "board") == answer


def test_what_a_device_says_is_an_error_of_that_device_also_over_a_real_link(tmp_path: Path) -> None:
    """zero for every latency; 5 MB of text that would clear the screen; another number of processes"""
    zero = changed(lambda answer: set_all_latencies(answer, 0.0))
    twice = changed(lambda answer: answer["processes"].append(answer["processes"][0]))
    loud = {"failure": ["run-error\x1b[2J", "\x1b]0;title\x07" * 500_000]}
    said = []
    for number, last in enumerate((zero, twice, loud)):
        path = tmp_path / str(number) / "answers"
        path.parent.mkdir()
        path.write_bytes(json_lines([*ANSWERS[:3], last]))
        with pytest.raises(ProbeError, match="board: ") as refused:
            read_answers(path)
        said.append(str(refused.value))

    assert all(text.isprintable() and len(text) < 1000 for text in said)
    assert "timed 2 processes instead of 1" in said[1]


def test_a_text_of_an_answer_reaches_the_probe_cleaned(tmp_path: Path) -> None:
    """the name of the processor, which stands in every fingerprint"""
    hello = {**ANSWERS[0], "cpu": "a\x1b[2J processor \ud800"}
    path = tmp_path / "answers"
    path.write_bytes(json_lines([hello, {}, {}, {"failure": ["crashed", "x" * 5000 + " out of memory"]}]))

    found = read_answers(path)

    assert json.dumps(found) == json.dumps({"machine": r"a\x1b[2J processor \ud800", "ends": "out of memory", "length": 400})
