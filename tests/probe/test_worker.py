"""The worker, spoken to through its pipes: files in, figures out."""

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.graphs import INPUT, TWO_INPUTS, conv_net, two_by_two
from helpers.workers import FOREVER, WORKER, Worker, gone, until

from pipeline.core.onnx_outputs import all_outputs
from pipeline.system.files import sha256_bytes

NET, OTHER = conv_net(8), conv_net(16)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.close()


def test_it_says_what_the_machine_is(worker: Worker) -> None:
    said = worker.ask({"do": "hello"})

    assert said["cores"] == sorted(os.sched_getaffinity(0))
    assert said["onnxruntime"] == onnxruntime.__version__
    assert said["providers"] == onnxruntime.get_available_providers()
    assert said["architecture"] == os.uname().machine
    assert said["memory_bytes"] > 2**20
    assert said["wheel"] is None or os.uname().machine in said["wheel"]


WITHOUT_PAUSES = """
import runpy, sys
worker = runpy.run_path(sys.argv[1])
worker["serve"].__globals__["BEAT_S"] = 0.0
worker["serve"]()
"""
"""The worker, which says how many bytes have arrived not every five seconds, but after every piece."""


@pytest.mark.parametrize("request_", [{"do": "put"}, {"do": "base", "tensors": []}, {"do": "make", "slices": {}}])
def test_it_says_how_much_of_a_blob_has_arrived(request_: dict[str, object], tmp_path: Path) -> None:
    """3 MB, in pieces of at most one"""
    blob = os.urandom(3 * 2**20)
    text = json.dumps({**request_, "name": sha256_bytes(blob)}).encode()
    sent = struct.pack(">IQ", len(text), len(blob)) + text + blob
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_PAUSES, str(WORKER)]
    told = subprocess.run(command, input=sent, stdout=subprocess.PIPE, env=environment, check=True).stdout
    messages = []
    while told:
        size, _ = struct.unpack(">IQ", told[:12])
        messages.append(json.loads(told[12 : 12 + size]))
        told = told[12 + size :]
    received = [message.pop("received") for message in messages[:-1]]

    assert len(received) >= 2
    assert received == sorted(set(received))
    assert 0 < received[0] <= 2**20
    assert received[-1] < len(blob)
    assert all(message == {"alive": True} for message in messages[:-1])


def kept(worker: Worker) -> list[Path]:
    """All files but the one that says that the folder is in use."""
    return [path for path in worker.folder.glob("*/*") if path.name != "held"]


def test_a_file_is_kept_under_its_hash(worker: Worker) -> None:
    name = worker.put(NET)

    assert {path.name: path.read_bytes() for path in kept(worker)} == {name: NET}


@pytest.mark.parametrize("name", [sha256_bytes(OTHER), "../../evil", "", "A" * 64, "/etc/passwd"])
def test_bytes_that_do_not_match_their_name_are_not_kept(worker: Worker, name: str) -> None:
    """nor is a name that is no hash a path to anywhere; and the next request is found behind the bytes"""
    answer = worker.ask({"do": "put", "name": name}, NET)

    assert answer == {"failure": ["run-error", "the bytes do not match their SHA-256"]}
    assert kept(worker) == []
    assert worker.answers()


def test_an_unknown_request_is_answered(worker: Worker) -> None:
    assert worker.ask({"do": "dance"}) == {"failure": ["run-error", "unknown request 'dance'"]}
    assert worker.answers()


def test_runs_come_in_blocks_of_the_model_and_of_the_reference(worker: Worker) -> None:
    """2 processes x 3 blocks x 4 runs of each"""
    answer = worker.measure(NET, OTHER, processes=2, runs=12, block_runs=4)

    for process in answer["processes"]:
        assert np.shape(process["latency_ms"]) == (3, 4)
        assert np.shape(process["reference_latency_ms"]) == (3, 4)
        assert np.min(process["latency_ms"]) > 0
        assert process["cpu_ms_per_run"] > 0
        assert process["preemptions"] >= 0
    assert len(answer["processes"]) == 2
    assert answer["memory"] is None


def test_without_a_reference_only_the_model_is_run(worker: Worker) -> None:
    (process,) = worker.measure(NET)["processes"]

    assert np.shape(process["latency_ms"]) == (2, 4)
    assert process["reference_latency_ms"] == []


def test_session_creation_and_first_run_are_told_apart_from_the_timed_runs(worker: Worker) -> None:
    """P6, steady state: neither they nor the warm-up are among the eight runs asked for."""
    for together in (True, False):
        for process in worker.measure(NET, processes=2, warmup_runs=5, together=together)["processes"]:
            assert process["session_creation_ms"] > 0
            assert process["first_run_ms"] > 0
            assert np.size(process["latency_ms"]) == 8


@pytest.mark.parametrize("threads", [1, 2])
def test_runs_that_share_their_core_say_how_much_of_them_was_lost(worker: Worker, threads: int) -> None:
    """a network of some milliseconds, on one core with three programs that compute without end; none loses more than itself"""
    core = min(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(3)]
    try:
        assert until(lambda: all(os.sched_getaffinity(each.pid) == {core} for each in loops))
        (process,) = worker.measure(conv_net(256), OTHER, cores=[core], threads=threads, runs=64)["processes"]
    finally:
        for each in loops:
            each.kill()
            each.wait()
    runs, lost = np.array(process["latency_ms"]), np.array(process["lost_ms"])

    assert np.shape(process["reference_lost_ms"]) == np.shape(process["reference_latency_ms"])
    assert lost.sum() > 0
    assert (lost >= 0).all()
    assert (lost <= runs).all()


def test_the_output_comes_back_where_it_is_small_enough(worker: Worker) -> None:
    session = onnxruntime.InferenceSession(NET, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": INPUT})[0].ravel()
    answered, silent = (worker.measure(NET, answer=limit)["processes"][0]["answer"] for limit in (5, 4))

    np.testing.assert_allclose(answered, expected, rtol=1e-5)
    assert silent is None


def test_several_inputs_are_fed_in_their_order_and_all_outputs_come_back(worker: Worker) -> None:
    """picture (float32) and count (int64) -> map and scaled; the values of the outputs follow each other"""
    sent = [{"name": worker.put(each.tobytes()), "dtype": each.dtype.name, "shape": each.shape} for each in TWO_INPUTS]
    answer = worker.measure(two_by_two(), two_by_two(16), inputs=sent, answer=2000, memory=True)
    expected = all_outputs(two_by_two(), TWO_INPUTS)

    (process,) = answer["processes"]
    np.testing.assert_allclose(process["answer"], np.concatenate([each.ravel() for each in expected]), rtol=1e-4, atol=1e-5)
    assert np.shape(process["reference_latency_ms"]) == np.shape(process["latency_ms"])
    assert answer["memory"]["peak_bytes"] > 0


def test_another_number_of_inputs_is_a_failure_of_the_file(worker: Worker) -> None:
    assert worker.measure(two_by_two()) == {"failure": ["run-error", "the model has 2 inputs (picture, count), got 1"]}
    assert worker.answers()


def test_the_time_limit_ends_the_runs_with_those_there_are(worker: Worker) -> None:
    (process,) = worker.measure(NET, OTHER, runs=10**9, time_limit_s=1e-6)["processes"]

    assert np.shape(process["latency_ms"]) == (1, 4)
    assert np.shape(process["reference_latency_ms"]) == (1, 4)


def test_runs_keep_to_their_cores_and_threads(worker: Worker) -> None:
    """P5 and P15, threads explicit and affinity only: a session of two threads has one more than a session of one."""
    core = min(os.sched_getaffinity(0))
    threads = []
    for count in (1, 2):
        with worker.measuring(NET, cores=[core], threads=count, **FOREVER):
            assert until(lambda: worker.children and os.sched_getaffinity(worker.children[0]) == {core})
            (child,) = worker.children
            wait_until_loaded(child)
            threads.append(len(list(Path(f"/proc/{child}/task").iterdir())))
            os.kill(child, signal.SIGKILL)

    assert threads[1] - threads[0] == 1


def wait_until_loaded(pid: int) -> None:
    """A process that has read nothing for half a second has imported all it needs, and its model; one with several threads reads
    on, how long they waited for a core."""
    read = [0, 1]
    while len(set(read[-10:])) > 1 and "schedstat" not in open_files(pid):
        time.sleep(0.05)
        read.append(int(Path(f"/proc/{pid}/io").read_text().split()[1]))


def open_files(pid: int) -> set[str]:
    """Names of the files that a process has open. One that is closed while this reads the list is left out."""
    names = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(each.readlink().name)
    return names


def test_the_runtime_reports_to_nobody(tmp_path: Path) -> None:
    """Newer ones send telemetry unless told not to, and keep an identifier in both of these folders."""
    home, files = tmp_path / "home", tmp_path / "files"
    home.mkdir()
    files.mkdir()
    worker = Worker(files, HOME=str(home), XDG_CACHE_HOME=str(home), CI="")
    worker.answers()
    worker.measure(NET, OTHER, memory=True)
    worker.close()

    assert list(home.iterdir()) + list(files.iterdir()) == []


def test_no_process_ever_runs_two_models(worker: Worker) -> None:
    """Those for the next one are started after each answer, and are all new."""
    used: set[int] = set()

    def three_new_ones() -> bool:
        return len(set(worker.children) - used) == 3

    for model in (NET, OTHER, NET):
        worker.measure(model, NET, processes=2, memory=True, more=True)
        assert until(three_new_ones)
        used |= set(worker.children)


def those_who_wait(worker: Worker, count: int) -> list[int]:
    """For the next measurement; those of the last one may still be on their way out."""
    seen: list[list[int]] = [[], []]

    def settled() -> bool:
        seen.append(worker.children)
        time.sleep(0.3)
        return len(seen[-1]) == count and seen[-1] == seen[-2]

    assert until(settled)
    return seen[-1]


def test_those_who_wait_for_another_kind_of_measurement_are_ended(worker: Worker) -> None:
    worker.measure(NET, processes=2, more=True)
    waiting = those_who_wait(worker, 2)
    answer = worker.measure(NET, processes=1, runs=4)

    assert np.size(answer["processes"][0]["latency_ms"]) == 4
    assert gone(waiting)


def test_one_that_dies_while_it_waits_is_replaced(worker: Worker) -> None:
    """It had not seen the model yet, so the model is not to blame."""
    worker.measure(NET, processes=2, more=True)
    victim = those_who_wait(worker, 2)[0]
    os.kill(victim, signal.SIGKILL)
    assert gone([victim])

    assert len(worker.measure(NET, processes=2)["processes"]) == 2
