"""The journal, whatever was done to it: no damaged line is believed, no undamaged one is lost, and nothing ends in a traceback."""

import fcntl
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import JOB, MEASURED, journal, trial
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.journal import Journal, read_journal, sealed
from pipeline.core.measurement import Memory, TimedProcess
from pipeline.core.run import Run, Trial, open_run, read_trials
from pipeline.errors import OtherJob, RunError, RunLocked

PROCESS = MEASURED.processes[0]
TRIALS = 4


def written(folder: Path, job: dict[str, Any] = JOB, count: int = TRIALS) -> bytes:
    """The journal of a run of `count` trials, the second of which took 2 s, and so on."""
    with open_run(folder, job) as run:
        run.bind("inputs", {"weights": "abc"})
        with run.phase("search"):
            for number in range(1, count + 1):
                run.record(replace(trial(number), seconds=float(number)))
    return journal(folder).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("whole"))


def as_before(data: bytes) -> bytes:
    """The same journal as an earlier version wrote it: without checksums, and without what a trial is bound to."""
    lines = []
    for line in data.splitlines():
        value = json.loads(line)
        lines.append({key: value[key] for key in value if key not in ("checksum", "bound")})
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def trial_lines(data: bytes) -> list[bytes]:
    return [line for line in data.splitlines() if line.startswith(b'{"kind":"trial"')]


def reopened(folder: Path, data: bytes, job: dict[str, Any] = JOB) -> tuple[list[Trial], tuple[str, ...]]:
    """The trials and notices of the run with this journal."""
    journal(folder).write_bytes(data)
    with open_run(folder, job) as run:
        return run.trials, run.notices


def test_a_journal_without_checksums_is_read(tmp_path: Path, whole: bytes) -> None:
    trials, notices = reopened(tmp_path, as_before(whole))

    assert [each.number for each in trials] == [1, 2, 3, 4]
    assert notices == ()
    with open_run(tmp_path, JOB) as run:
        run.record(trial(5))
    assert [each.number for each in read_trials(tmp_path)] == [1, 2, 3, 4, 5]


LINES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one digit": (lambda line: line.replace(b"1.25", b"1.35"), "its checksum is wrong"),
    "foreign": (lambda line: b'{"level":"info","text":"hello"}', "this program did not write it"),
    "blank": (lambda line: b"", "it is blank"),
    "zeros": (lambda line: b"\0" * len(line), "it is blank"),
    "torn": (lambda line: line[:100], "it is not JSON"),
    "no object": (lambda line: b"[1]", "this program did not write it"),
    "nested without end": (lambda line: b"[" * 100_000, "it is not JSON"),
    "no checksum": (lambda line: as_before(line + b"\n").rstrip(), "it has no checksum"),
    "a number of many digits": (lambda line: b'{"kind":"phase","name":"x","seconds":' + b"9" * 5000 + b"}", "it is not JSON"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_damaged_line_is_set_aside_and_named_and_all_others_are_read(tmp_path: Path, whole: bytes, case: str) -> None:
    """the line of trial 2; the notice comes once"""
    change, reason = LINES[case]
    second = trial_lines(whole)[1]
    number = whole[: whole.index(second)].count(b"\n") + 1
    damaged = change(second)
    trials, notices = reopened(tmp_path, whole.replace(second, damaged))

    assert [each.number for each in trials] == [1, 3, 4]
    assert notices == (
        f"{journal(tmp_path)}: 1 damaged line was moved to journal.damaged (line {number}: {reason}); their trials are measured again",
    )
    assert (tmp_path / "journal.damaged").read_bytes() == damaged + b"\n"
    assert journal(tmp_path).read_bytes() == whole.replace(second + b"\n", b"")
    with open_run(tmp_path, JOB) as run:
        assert run.notices == ()
        run.record(replace(trial(2), seconds=2.0))
        assert [each.number for each in run.trials] == [1, 2, 3, 4]
    assert [each.number for each in read_trials(tmp_path)] == [1, 2, 3, 4]


def test_a_run_whose_journal_was_repaired_is_locked_like_any_other(tmp_path: Path, whole: bytes) -> None:
    """the repaired journal is another file than the one that was locked first"""
    journal(tmp_path).write_bytes(whole.replace(b"1.25", b"1.35", 1))
    with open_run(tmp_path, JOB) as run:
        assert run.notices
        with pytest.raises(RunLocked), open_run(tmp_path, JOB):
            pass


def test_a_process_that_waited_while_the_journal_was_repaired_takes_the_repaired_one(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """between its opening the file and its locking it, another process put a repaired one in its place"""
    journal(tmp_path).write_bytes(whole)
    (tmp_path / "repaired").write_bytes(whole)
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if (tmp_path / "repaired").exists():
            (tmp_path / "repaired").replace(journal(tmp_path))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_run(tmp_path, JOB) as run:
        run.record(trial(5))

    assert [each.number for each in read_trials(tmp_path)] == [1, 2, 3, 4, 5]


def changed(**changes: Any) -> Trial:
    """A trial whose measurement differs so."""
    return trial(2, measurement=replace(MEASURED, **changes))


def timed(**changes: Any) -> Trial:
    return changed(processes=(replace(PROCESS, **changes),))


SENSELESS: dict[str, tuple[Trial, str]] = {
    "no process": (changed(processes=()), "no process was timed"),
    "no block": (timed(latency_ms=()), "a block holds no runs"),
    "an empty block": (timed(latency_ms=((1.0,), ())), "a block holds no runs"),
    "an empty block of the reference": (timed(reference_latency_ms=((1.0,), ())), "a block of the reference holds no runs"),
    "negative latency": (timed(latency_ms=((-1.0,),)), "a latency is not a finite number above zero"),
    "zero latency": (timed(latency_ms=((0.0,),)), "a latency is not a finite number above zero"),
    "endless latency": (timed(reference_latency_ms=((1e999,),)), "it is not JSON"),
    "a latency of centuries": (timed(latency_ms=((1e13,),)), "a latency is not a finite number above zero, or out of range"),
    "more parameters than any disk holds": (trial(2, params=2**61), "params is out of range"),
    "a width beyond all numbers": (trial(2, plan={"conv1": 10**400}), "conv1 is out of range"),
    "negative time": (timed(first_run_ms=-1.0), "a time is not a finite number, or below zero"),
    "negative memory": (changed(memory=Memory(-1, None, 3)), "a memory figure is below zero"),
    "NaN score": (trial(2, score=math.nan), "it is not JSON"),
    "a score beyond all numbers": (trial(2, score=1e999), "it is not JSON"),
    "negative parameters": (trial(2, params=-1), "params is below zero"),
    "no width": (trial(2, plan={"conv1": 0}), "a width is below one"),
    "negative entropy": (trial(2, entropy=-0.5), "an entropy is not a finite number, or below zero"),
    "neither measured nor failed": (trial(2, measurement=None), "it has neither a measurement nor a failure"),
    "number zero": (trial(0), "its number or its duration is invalid"),
    "negative seconds": (replace(trial(2), seconds=-1.0), "its number or its duration is invalid"),
}


@pytest.mark.parametrize("with_checksum", [True, False])
@pytest.mark.parametrize("case", SENSELESS)
def test_figures_that_cannot_be_are_not_believed(tmp_path: Path, case: str, with_checksum: bool) -> None:
    """also where their line has its checksum"""
    senseless, reason = SENSELESS[case]
    with open_run(tmp_path, JOB) as run:
        run.record(trial(1))
        run.record(senseless)
    data = journal(tmp_path).read_bytes()
    trials, notices = reopened(tmp_path, data if with_checksum else as_before(data))

    assert trials == [trial(1)]
    assert f"line 3: {reason}" in notices[0]


def test_a_number_beyond_all_numbers_is_not_believed(tmp_path: Path, whole: bytes) -> None:
    """JSON has no Infinity, and 1e999 becomes one"""
    second = trial_lines(as_before(whole))[1]
    trials, notices = reopened(tmp_path, as_before(whole).replace(second, second.replace(b"97.5", b"1e999")))

    assert [each.number for each in trials] == [1, 3, 4]
    assert "the score is not a finite number" in notices[0]


def test_lines_that_ran_into_each_other_are_told_apart_by_their_checksums(tmp_path: Path, whole: bytes) -> None:
    """the newline after trial 1 is lost, zeros stand before trial 3, and the newline after the last line is gone"""
    first, _, third, _ = trial_lines(whole)
    data = whole.replace(first + b"\n", first).replace(third, b"\0" * 512 + third)
    trials, notices = reopened(tmp_path, data[:-1])

    assert [each.number for each in trials] == [1, 2, 3, 4]
    assert "2 damaged lines were moved" in notices[0]
    assert journal(tmp_path).read_bytes() == whole


def test_a_last_line_that_lacks_only_its_newline_is_read(tmp_path: Path, whole: bytes) -> None:
    *others, last = whole.splitlines()
    trials, notices = reopened(tmp_path, b"\n".join([*others, last]))

    assert (len(trials), notices) == (4, ())
    assert journal(tmp_path).read_bytes() == whole


def test_the_trials_of_another_run_are_set_aside(tmp_path: Path, whole: bytes) -> None:
    """three lines of a run of another network, pasted into the middle"""
    other = trial_lines(written(tmp_path / "other", {"model": "vgg"}, count=7))[4:]
    at = whole.index(trial_lines(whole)[1])
    trials, notices = reopened(tmp_path, whole[:at] + b"\n".join(other) + b"\n" + whole[at:])

    assert [each.number for each in trials] == [1, 2, 3, 4]
    assert "3 damaged lines were moved" in notices[0]
    assert "it belongs to another run" in notices[0]


@pytest.mark.parametrize("kind", ["job", "inputs"])
def test_a_run_whose_line_of_facts_is_damaged_still_knows_what_it_is_tied_to(tmp_path: Path, whole: bytes, kind: str) -> None:
    """the same facts are taken, and their line is written again; others are refused"""
    line = next(line for line in whole.splitlines() if line.startswith(b'{"kind":"%s"' % kind.encode()))
    data = whole.replace(line, line[:-30])
    facts = {"job": JOB, "inputs": {"weights": "abc"}}
    for other in (True, False):
        journal(tmp_path).write_bytes(data)
        given = facts | ({kind: {"another": 1}} if other else {})
        if other:
            with pytest.raises(OtherJob, match=f"'{kind}' differs"), open_run(tmp_path, given["job"]) as run:
                run.bind("inputs", given["inputs"])
        else:
            with open_run(tmp_path, given["job"]) as run:
                run.bind("inputs", given["inputs"])
                assert len(run.trials) == TRIALS
    assert read_journal(journal(tmp_path).read_bytes()).facts[kind] == facts[kind]


def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    data = b'{"level":"info"}\n\n{"level":"error"}\n'
    journal(tmp_path).write_bytes(data)

    with (
        pytest.raises(RunError, match=r":1: not a journal line of this program \(this program did not write it\)"),
        open_run(tmp_path, JOB),
    ):
        pass
    assert journal(tmp_path).read_bytes() == data
    assert not (tmp_path / "journal.damaged").exists()


def test_two_results_of_one_trial_are_not_both_believed(tmp_path: Path, whole: bytes) -> None:
    line = json.loads(trial_lines(whole)[1])
    del line["checksum"]
    line["trial"]["candidate"]["score"] = 1.0
    trials, notices = reopened(tmp_path, whole + sealed(line))

    assert [each.candidate.score for each in trials] == [97.5] * 4
    assert "search trial 2 occurs before it with other results" in notices[0]


@st.composite
def damages(draw: st.DrawFn, data: bytes) -> bytes:
    """Some of: bytes overwritten, removed or put in; lines removed, doubled, moved, torn; zeros; an end cut off."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 2, 16, 300, 5000]))
        filling = draw(
            st.one_of(st.binary(max_size=12), st.sampled_from([b"\n", b"\0" * 512, b"\r\n", b'"}', b"1e999", b"NaN", b"-"]))
        )
        lines = data.split(b"\n")
        one, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["overwrite", "insert", "remove", "swap", "double", "cut", "number"])):
            case "overwrite":
                data = data[:start] + filling + data[start + len(filling) :]
            case "insert":
                data = data[:start] + filling + data[start:]
            case "remove":
                data = data[:start] + data[start + length :]
            case "swap":
                lines[one], lines[other] = lines[other], lines[one]
                data = b"\n".join(lines)
            case "double":
                data = b"\n".join([*lines[:one], lines[other], *lines[one:]])
            case "cut":
                data = data[:start]
            case "number":
                data = data.replace(b"97.5", draw(st.sampled_from([b"99.5", b"-1", b"1e999"])), 1)
    return data


@settings(max_examples=300)
@given(st.data())
def test_no_damage_loses_an_undamaged_trial_and_none_is_believed(whole: bytes, data: st.DataObject) -> None:
    """of a journal with checksums; a trial is undamaged when its line stands somewhere in the file"""
    known = {each.number: each for each in read_journal(whole).trials}
    damaged = data.draw(damages(whole))
    found = read_journal(damaged)

    undamaged = {json.loads(line)["trial"]["number"] for line in trial_lines(whole) if line in damaged}
    assert {each.number for each in found.trials} >= undamaged
    assert all(each == known[each.number] for each in found.trials)


@settings(max_examples=150)
@given(st.data())
def test_a_run_is_opened_or_refused_whatever_was_done_to_its_journal(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """with checksums or without; what is opened is sound from then on, and its notice does not come again"""
    folder = tmp_path_factory.mktemp("run")
    journal(folder).write_bytes(data.draw(damages(data.draw(st.sampled_from([whole, as_before(whole)])))))
    before = journal(folder).read_bytes()
    try:
        with open_run(folder, JOB) as run:
            first = run.trials
    except (RunError, OtherJob):
        assert journal(folder).read_bytes() == before
        return
    with open_run(folder, JOB) as again:
        assert (again.trials, again.notices) == (first, ())
    assert read_trials(folder) == first


def test_the_reader_is_not_slowed_down_by_a_line_of_nothing_but_beginnings() -> None:
    found = read_journal(b'{"kind":"trial"' * 20_000 + b',"checksum":"0123456789abcdef"}' * 20_000 + b"\n")

    assert isinstance(found, Journal)
    assert len(found.damage) == 1


def test_a_process_that_was_timed_without_a_reference_makes_sense(tmp_path: Path) -> None:
    without = timed(reference_latency_ms=((), ()))
    assert isinstance(without.candidate.measurement.processes[0], TimedProcess)  # type: ignore[union-attr]
    with open_run(tmp_path, JOB) as run:
        assert isinstance(run, Run)
        run.record(without)

    assert read_trials(tmp_path) == [without]


def test_a_sound_journal_is_not_touched_when_its_run_is_opened(tmp_path: Path, whole: bytes) -> None:
    journal(tmp_path).write_bytes(whole)
    os.utime(journal(tmp_path), (0, 0))
    with open_run(tmp_path, JOB):
        pass

    assert journal(tmp_path).stat().st_mtime_ns == 0
