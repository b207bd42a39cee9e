"""What the worker says of memory: the model's own, whoever asks, and null where the system keeps no count."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.graphs import INPUT, conv_net, heavy_net
from helpers.workers import SETTINGS, WORKER, Worker

MIB = 2**20

# Imports the worker and supervises a measurement itself, as a process that holds so many MiB.
BIG_PARENT = """
import importlib.util, json, os, sys
held = b"x" * (int(sys.argv[1]) << 20)
spec = importlib.util.spec_from_file_location("worker", sys.argv[2])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
supervisor = worker.Supervisor(sys.argv[3])
try:
    with open(sys.argv[3] + "/net.onnx", "rb") as net:
        size = os.fstat(net.fileno()).st_size
        print(supervisor.measure(json.loads(sys.argv[4]), net, size)["memory"]["peak_bytes"])
finally:
    supervisor.stop()
"""


def peak_seen_by_a_parent_of(megabytes: int, folder: Path) -> int:
    (folder / "net.onnx").write_bytes(conv_net())
    (folder / ("2" * 64)).write_bytes(INPUT.tobytes())
    request = {"reference": None, "slices": None, "input": "2" * 64, "shape": INPUT.shape, "processes": 0, "memory": True}
    request |= {"together": True, "settings": SETTINGS, "seed": 0, "answer": 0}
    command = [sys.executable, "-c", BIG_PARENT, str(megabytes), str(WORKER), str(folder), json.dumps(request)]
    return int(subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout)


def test_the_memory_of_who_asks_is_not_counted(tmp_path: Path) -> None:
    """P1: a parent that holds 600 MiB moves the peak by less than 2 MiB."""
    small, big = (min(peak_seen_by_a_parent_of(megabytes, tmp_path) for _ in range(2)) for megabytes in (1, 600))

    assert abs(big - small) < 2 * MIB


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.close()


def test_memory_grows_from_the_baseline_to_the_peak(worker: Worker) -> None:
    """P2: before the model, with the model, at the highest; and what smaps_rollup says agrees"""
    memory = worker.measure(heavy_net(32), processes=0, memory=True)["memory"]

    assert 10 * MIB < memory["baseline_bytes"] < memory["session_bytes"] <= memory["peak_bytes"]
    assert memory["session_bytes"] - memory["baseline_bytes"] > 32 * MIB
    assert abs(memory["rss_bytes"] - memory["session_bytes"]) < 8 * MIB


def test_memory_comes_from_a_process_that_times_nothing(worker: Worker) -> None:
    """P3: the timed process holds a reference of 64 MiB, and the weighed one never sees it."""
    alone = worker.measure(conv_net(), processes=0, memory=True)["memory"]
    answer = worker.measure(conv_net(), heavy_net(64), processes=1, memory=True)

    assert abs(answer["memory"]["peak_bytes"] - alone["peak_bytes"]) < 4 * MIB
    assert len(answer["processes"]) == 1


def test_where_the_system_counts_nothing_the_figures_are_null(tmp_path: Path) -> None:
    """P13: /proc is hidden under an empty folder, as on a system that has none; latency is there all the same."""
    hidden = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")
    if subprocess.run([*hidden, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a process hide /proc from itself")
    worker = Worker(tmp_path, before=hidden)
    machine, answer = worker.ask({"do": "hello"}), worker.measure(conv_net(), processes=1, memory=True)
    worker.close()

    assert machine["memory_bytes"] is None
    assert machine["cpu"]
    assert answer["memory"] == {"baseline_bytes": None, "session_bytes": None, "peak_bytes": None, "rss_bytes": None}
    assert answer["processes"][0]["latency_ms"]
