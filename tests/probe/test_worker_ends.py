"""However a measured process ends, the worker names it and goes on; however the worker ends, nothing of it is left."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.graphs import answers_nan, conv_net, fails_when_run, not_onnx, unknown_op
from helpers.workers import FOREVER, WORKER, Worker, children_of, gone, until

NET = conv_net()

# Python runs this before anything else where it finds it: each measured process starts another one that keeps its output.
GRANDCHILD = """
import os, subprocess, sys
if "child" in sys.orig_argv:
    process = subprocess.Popen(["sleep", "1000"])
    with open(os.environ["PIDS"], "a") as file:
        file.write(f"{process.pid}\\n")
"""

# Asks for a measurement without end and waits for its answer, as a run does.
ASKING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.workers import FOREVER, Worker
from helpers.graphs import conv_net
worker = Worker(Path(sys.argv[1]))
print(worker.process.pid, flush=True)
worker.measure(conv_net(), processes=2, memory=True, **FOREVER)
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.process.terminate()
    worker.close()


def nothing_is_left(worker_pid: int, children: list[int], folder: Path) -> bool:
    """No process of it, and no file."""
    return gone([worker_pid, *children]) and not list(folder.iterdir())


def busy(worker: Worker) -> bool:
    """One process computes already."""
    return any(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) > 30 for pid in worker.children)


@pytest.mark.parametrize(
    ("model", "kind", "detail"),
    [
        (not_onnx(), "load-error", "INVALID_PROTOBUF"),
        (b"", "load-error", ""),
        (unknown_op(), "load-error", "Frobnicate"),
        (fails_when_run(), "run-error", "Reshape"),
        (answers_nan(), "wrong-output", "the output is not finite"),
    ],
    ids=["no ONNX", "empty", "unknown op", "fails when run", "NaN"],
)
@pytest.mark.parametrize("options", [{"processes": 1}, {"processes": 0, "memory": True}], ids=["timed", "weighed"])
def test_a_file_that_cannot_be_measured_is_told_why_and_the_next_one_is_measured(
    worker: Worker, model: bytes, kind: str, detail: str, options: dict[str, int]
) -> None:
    """P17: load error, run error and bad output are verdicts of their own"""
    failed = worker.measure(model, **options, more=True)["failure"]

    assert failed[0] == kind
    assert detail in failed[1]
    assert "\n" not in failed[1]
    assert len(failed[1]) <= 20_000
    assert "failure" not in worker.measure(NET, **options)


@pytest.mark.parametrize(
    ("number", "failure"),
    [
        (signal.SIGKILL, ["killed", "killed by the system, most likely for lack of memory"]),
        (signal.SIGILL, ["illegal-instruction", "this build of onnxruntime uses instructions that the processor lacks"]),
        (signal.SIGSEGV, ["segfault", "segmentation fault"]),
        pytest.param(signal.SIGBUS, ["segfault", "segmentation fault"], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ["crashed", "exit status -15"], marks=pytest.mark.slow),
    ],
)
def test_a_process_that_a_signal_ends_is_told_by_its_signal(worker: Worker, number: int, failure: list[str]) -> None:
    """P17: out of memory, illegal instruction and crash are verdicts of their own"""
    with worker.measuring(NET, processes=2, **FOREVER) as found:
        assert until(lambda: busy(worker))
        victims = worker.children
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):  # when one is gone the worker ends the other
                os.kill(victim, number)

    assert found == {"failure": failure}
    assert worker.answers()
    assert gone(victims)
    assert "failure" not in worker.measure(NET)


def test_a_process_that_does_not_answer_is_ended(worker: Worker) -> None:
    """P17: a timeout is a verdict of its own"""
    failed = worker.measure(NET, processes=2, timeout_s=0.5, **FOREVER)["failure"]

    assert failed == ["timeout", "no answer after 0.5 s"]
    assert worker.answers()
    assert until(lambda: not worker.children)
    assert "failure" not in worker.measure(NET)


def test_a_reference_that_does_not_load_is_named(worker: Worker) -> None:
    kind, detail = worker.measure(NET, not_onnx())["failure"]

    assert kind == "load-error"
    assert detail.startswith("the reference: ")
    assert "INVALID_PROTOBUF" in detail
    assert worker.answers()


def test_a_hung_process_is_ended_though_another_holds_its_output(tmp_path: Path) -> None:
    """P16: measured process -> sleep 1000, which has inherited stdin and stdout; both are gone when the verdict is in"""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(GRANDCHILD)
    files, pids = tmp_path / "files", tmp_path / "pids"
    files.mkdir()
    worker = Worker(files, PYTHONPATH=str(tmp_path / "early"), PIDS=str(pids))
    failed = worker.measure(NET, timeout_s=0.5, **FOREVER)["failure"]
    grandchildren = [int(line) for line in pids.read_text().split()]

    assert failed[0] == "timeout"
    assert worker.answers()
    assert len(grandchildren) == 1
    assert gone(grandchildren)
    assert worker.close() == 0
    assert nothing_is_left(worker.process.pid, grandchildren, files)


def test_when_its_input_closes_nothing_is_left(worker: Worker) -> None:
    """two processes wait for a next model that never comes"""
    worker.measure(NET, processes=2, more=True)
    assert until(lambda: len(worker.children) == 2)
    waiting = worker.children

    assert worker.close() == 0
    assert nothing_is_left(worker.process.pid, waiting, worker.folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_is_for_the_one_who_asked_and_sigterm_ends_it_in_the_midst(worker: Worker, number: int) -> None:
    """the first finishes what it does; the second kills what runs, and cleans up"""
    with worker.measuring(NET, processes=2, **({"runs": 400} if number == signal.SIGINT else FOREVER)) as found:
        assert until(lambda: len(worker.children) == 2)
        children = worker.children
        worker.process.send_signal(number)
        if number == signal.SIGTERM:
            assert nothing_is_left(worker.process.pid, children, worker.folder)

    assert len(found.get("processes", ())) == (2 if number == signal.SIGINT else 0)


def test_when_the_one_who_asked_is_killed_in_the_midst_nothing_is_left(tmp_path: Path) -> None:
    """SIGKILL leaves no time for good-byes: the worker finds its input closed, though a measurement goes on"""
    files = tmp_path / "files"
    files.mkdir()
    asking = subprocess.Popen([sys.executable, "-c", ASKING, str(files), str(Path(__file__).parents[1])], stdout=subprocess.PIPE)
    assert asking.stdout is not None
    worker = int(asking.stdout.readline())
    assert until(lambda: len(children_of(worker)) == 3)
    children = children_of(worker)
    asking.kill()
    asking.communicate()

    assert nothing_is_left(worker, children, files)


def test_when_the_worker_is_killed_in_the_midst_its_processes_end_with_it(worker: Worker) -> None:
    """SIGKILL, while a process computes and reads no input: only the kernel can tell it"""
    with worker.measuring(NET, processes=2, **FOREVER):
        assert until(lambda: busy(worker))
        children = worker.children
        worker.process.kill()
        try:
            assert gone(children)
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 5,
        b"",
        struct.pack(">IQ", 4, 0) + b"nope",
        struct.pack(">IQ", 2, 0) + b"{}",
        struct.pack(">IQ", 16, 1000) + b'{"do":"put"    }' + b"short",
    ],
    ids=["another protocol", "torn header", "nothing", "no JSON", "no request", "torn file"],
)
def test_after_garbage_it_ends_and_leaves_nothing(worker: Worker, garbage: bytes) -> None:
    worker.process.communicate(garbage, timeout=30)

    assert nothing_is_left(worker.process.pid, [], worker.folder)


def test_it_says_how_it_is_used() -> None:
    for arguments in ([], ["child"], ["child", "both"], ["place"]):
        done = subprocess.run([sys.executable, str(WORKER), *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "usage: worker.py serve\n")
