"""Checks that the probe's worker works on an aarch64 system and with an older onnxruntime. Run: sh benchmarks/aarch64.sh

All requests go through the project's own probe: straight to the worker, through `WorkerProbe`, and through `SshProbe` with an
OpenSSH server on a loopback port. Results are right or wrong. Nothing is timed, because an emulator's timings mean nothing.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest
import torch
from helpers.graphs import INPUT, answers_nan, conv_net, fails_when_run, graph, not_onnx, profile, unknown_op
from helpers.sshd import SSHD, Board
from helpers.workers import FOREVER, WORKER, Worker, alive, until
from numpy.typing import NDArray

from pipeline.core.measurement import Measurement
from pipeline.core.onnx_outputs import largest_difference, run_onnx
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan
from pipeline.errors import DeviceSoftware, ProbeError
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.pruned_model import PrunedModel, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.connection import CRASHING, Connection
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Reference
from pipeline.probe.ssh import SshProbe
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.remote.link import Link
from pipeline.training.load import find_model, load_model

CLOSE = 1e-4
"""Largest difference between two answers that counts as rounding, as a share of the largest output."""
QUICK = MeasurementOptions(1, memory=False)
PATIENT: dict[str, Any] = {"timeout_s": 300.0, "time_limit_s": 300.0}
OPTIONS: tuple[dict[str, Any], ...] = (
    *({"graph_optimization": level} for level in ("disabled", "basic", "extended", "all")),
    {"spinning": True, "threads": 2},
    {"arena": False, "memory_pattern": False},
    {"prepacking": False},
    {"blocked_layout": False},
    {"denormal_as_zero": True},
    {"cores": [min(os.sched_getaffinity(0))]},
)
"""The onnxruntime settings of a profile, one at a time."""
CRASHES = {signal.SIGKILL: "killed", signal.SIGILL: "illegal-instruction", signal.SIGSEGV: "segfault", signal.SIGABRT: "crashed"}


@dataclass(frozen=True)
class System:
    """The interpreter to be checked, and its packages."""

    python: str
    packages: Path
    version: str
    """Version of its onnxruntime."""
    prefix: Path | None
    """Folder in which the emulator finds the system's libraries."""
    folder: Path
    """An empty folder for this run."""

    @property
    def environment(self) -> dict[str, Any]:
        """Variables that are added to this process's environment."""
        emulator = {"QEMU_CPU": os.environ.get("QEMU_CPU", "max"), "QEMU_LD_PREFIX": str(self.prefix)} if self.prefix else {}
        return {"PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1", **emulator}

    def worker(self) -> Worker:
        """A new worker with a folder of its own."""
        return Worker(Path(tempfile.mkdtemp(dir=self.folder)), python=self.python, **self.environment)

    @property
    def example(self) -> torch.Tensor:
        """Input of the demo network."""
        return torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    @cached_property
    def builder(self) -> tuple[PrunedModel, PrunedModel]:
        """The demo network, dense and at random widths."""
        module = load_model(find_model("digits"), None, None)
        path = self.folder / "dense.onnx"
        builder = start_builder(module, self.example, FileFormat(18, 9), PruningSettings(), path)
        widths = {name: len(stays) for name, stays in random_kept(builder.space, seed=0).items()}
        return builder.make(builder.space.dense()), builder.make(ChannelPlan.of(widths))


@click.command()
@click.argument("python")
@click.argument("packages", type=click.Path(exists=True, path_type=Path))
@click.argument("version")
@click.option("--prefix", type=click.Path(exists=True, path_type=Path), help="The system's root, for qemu-aarch64.")
def main(python: str, packages: Path, version: str, prefix: Path | None) -> None:
    """PYTHON on aarch64, PACKAGES with numpy and onnxruntime VERSION for it: one line for each thing that was found right."""
    with tempfile.TemporaryDirectory() as folder:
        system = System(python, packages, version, prefix, Path(folder))
        sound = (says_what_it_is, measures, options, assembles, refuses, dies, ends, probed, over_ssh)
        for check in (is_refused,) if version in CRASHING else sound:
            print(f"{check.__name__.replace('_', ' ')}: {check(system)}", flush=True)


def says_what_it_is(system: System) -> str:
    """Architecture and versions are those of the other system."""
    worker = system.worker()
    said = worker.ask({"do": "hello"})
    assert worker.close() == 0
    assert (said["architecture"], said["onnxruntime"]) == ("aarch64", system.version), said
    assert (said["cores"], said["providers"][-1]) == (sorted(os.sched_getaffinity(0)), "CPUExecutionProvider"), said
    assert min(said["memory_bytes"], said["free_memory_bytes"], said["free_disk_bytes"]) > 0, said
    return f"{said['architecture']}, Python {said['python']}, numpy {said['numpy']}, onnxruntime {said['onnxruntime']}"


def is_refused(system: System) -> str:
    """A release that crashes on small boards does crash, and the error says what to install."""
    connection, _ = _connection(system)
    named = rf"instructions that the processor lacks \({re.escape(system.version)}, which .* pip install --upgrade onnxruntime"
    with pytest.raises(DeviceSoftware, match=named):
        WorkerProbe(profile(), None, connection, print)
    return f"onnxruntime {system.version} uses instructions that the processor lacks; the probe says so, and what to install"


def measures(system: System) -> str:
    """Two processes time a network and its reference, and one measures memory. Blocks and answer are as requested."""
    worker, net = system.worker(), conv_net(8)
    found = worker.measure(net, conv_net(16), processes=2, memory=True, runs=12, block_runs=4, **PATIENT)
    worker.close()
    assert "failure" not in found, found
    assert len(found["processes"]) == 2
    for process in found["processes"]:
        for kind in ("latency_ms", "reference_latency_ms"):
            assert np.shape(process[kind]) == (3, 4)
            assert np.min(process[kind]) > 0
        assert min(process["session_creation_ms"], process["first_run_ms"], process["cpu_ms_per_run"]) > 0
    assert min(found["memory"][f"{what}_bytes"] for what in ("baseline", "session", "peak")) > 0, found["memory"]
    off = max(_off(run_onnx(net, INPUT), process["answer"]) for process in found["processes"])
    return f"2 processes and 1 for memory, 3 blocks of 4 runs each of 2 networks; {_told(off)}"


def options(system: System) -> str:
    """Every setting of a profile is accepted, and none changes the answer."""
    worker, net = system.worker(), conv_net(16)
    off = 0.0
    for changes in OPTIONS:
        found = worker.measure(net, **PATIENT, **changes)
        assert "failure" not in found, (changes, found)
        off = max(off, _off(run_onnx(net, INPUT), found["processes"][0]["answer"]))
    worker.close()
    return f"{len(OPTIONS)} sets of them; {_told(off)}"


def assembles(system: System) -> str:
    """The worker builds the demo network's files, dense and narrowed, from weight slices. They give the right answers."""
    worker, example, (dense, small) = system.worker(), system.example.numpy(), system.builder
    assert small.weight_slices
    assert dense.weight_slices
    base = small.weight_slices.base
    assert worker.ask({"do": "base", "name": base.digest, "tensors": base.index}, base.data()) == {}
    name = dense.weight_slices.digest
    assert worker.ask({"do": "make", "name": name, "slices": dense.weight_slices.order}, dense.weight_slices.blob) == {}
    (made,) = worker.folder.glob(f"compress-probe-*/{name}")
    assert run_onnx(made.read_bytes(), example).tobytes() == run_onnx(dense.data, example).tobytes()
    inputs: dict[str, Any] = {"input": worker.put(example.tobytes()), "shape": example.shape}
    found = worker.measure(small.weight_slices.blob, slices=small.weight_slices.order, **inputs, **PATIENT)
    worker.close()
    assert "failure" not in found, found
    off = max(_off(expected, found["processes"][0]["answer"]) for expected in (run_onnx(small.data, example), small.answers[0]))
    return f"{len(small.weight_slices.blob)} bytes and a base of {len(base.data())} in place of {len(small.data)}; {_told(off)}"


def refuses(system: System) -> str:
    """Broken files get the same verdicts as on this machine."""
    broken = {"load-error": not_onnx, "load-error of its operator": unknown_op, "run-error": fails_when_run}
    broken["wrong-output"] = answers_nan
    worker = system.worker()
    for verdict, make in broken.items():
        found = worker.measure(make(), **PATIENT)
        assert found.get("failure", [None])[0] == verdict.split()[0], (verdict, found)
    assert worker.measure(conv_net(), **{**PATIENT, **FOREVER, "timeout_s": 5.0})["failure"][0] == "timeout"
    assert "failure" not in worker.measure(conv_net(), **PATIENT)
    worker.close()
    return f"{', '.join(broken)}, timeout; and a sound file after them is measured"


def dies(system: System) -> str:
    """Every way in which a process can die has a name, and the worker survives."""
    worker = system.worker()
    for number, verdict in CRASHES.items():
        with worker.measuring(conv_net(), **{**FOREVER, "timeout_s": 300.0}) as found:
            assert _at_work(worker)
            (child,) = worker.children
            os.kill(child, number)
        assert found.get("failure", [None])[0] == verdict, (verdict, found)
    assert worker.answers()
    worker.close()
    return ", ".join(f"{number.name} is {verdict}" for number, verdict in CRASHES.items())


def ends(system: System) -> str:
    """A worker that is closed leaves nothing. If it is killed during a measurement, its processes end too."""
    worker = system.worker()
    worker.measure(conv_net(), more=True, **PATIENT)
    assert list(worker.folder.iterdir())
    assert until(lambda: worker.children)
    waiting = worker.children
    assert worker.close() == 0
    assert list(worker.folder.iterdir()) == []
    assert until(lambda: not any(map(alive, waiting)))
    worker = system.worker()
    with worker.measuring(conv_net(), **{**FOREVER, "timeout_s": 300.0}):
        assert _at_work(worker)
        children = worker.children
        worker.process.kill()
    assert until(lambda: not any(map(alive, children)))
    return "no file and no process is left"


def probed(system: System) -> str:
    """The probe of a run: it starts processes in advance, and the worker builds the reference and every candidate."""
    connection, folder = _connection(system)
    probe = WorkerProbe(profile(**PATIENT), _reference(system), connection, print)
    try:
        found = _judged(probe, system.builder[1])
    finally:
        probe.close()
    assert (found.fingerprint.architecture, found.fingerprint.onnxruntime) == ("aarch64", system.version)
    assert list(folder.iterdir()) == []
    return "weight slices beside weight slices, with the right answer and a wrong one; broken files; nothing is left"


def over_ssh(system: System) -> str:
    """The same through a real OpenSSH server, with a connection that is cut and made again."""
    if SSHD is None or shutil.which("ssh") is None:
        return "left out, there is no OpenSSH server here"
    board = Board(system.folder / "board")
    board.environment = system.environment
    board.write_python()
    board.python.write_text(board.python.read_text().replace(sys.executable, system.python))
    board.start()
    try:
        probe = SshProbe(board.profile(**PATIENT), _reference(system))
        try:
            found = _judged(probe, system.builder[1])
            for pid in board.connections():
                os.kill(pid, signal.SIGKILL)
            assert isinstance(probe.measure(_graph(system.builder[1]), QUICK), Measurement)
        finally:
            probe.close()
        assert until(lambda: not board.workers())
    finally:
        board.stop()
    assert (found.fingerprint.architecture, found.fingerprint.stamp) == ("aarch64", "device")
    assert (board.folder / "sshd.log").read_text().count("Accepted publickey") == 2
    left = sorted(path.name[:7] for folder in (board.cache, board.tmp) for path in folder.rglob("*") if path.is_file())
    assert left == ["lock", "worker-"], left
    return "the same, and again after the connection was cut; the worker's own file is left, and its lock"


def _connection(system: System) -> tuple[Connection, Path]:
    """A connection to a worker on the other system, and the folder in which it keeps its files."""
    folder = Path(tempfile.mkdtemp(dir=system.folder))
    words = [f"{key}={value}" for key, value in {**system.environment, "TMPDIR": str(folder)}.items()]

    def start() -> Link:
        return Link(["env", *words, system.python, str(WORKER), "serve"])

    def told(text: str) -> None:
        raise AssertionError(text)

    return Connection("the other system", start, lambda loss: ProbeError(str(loss)), 20.0, told), folder


def _judged(probe: Probe, small: PrunedModel) -> Measurement:
    """The measurement of sound weight slices, after the failures that the probe must report."""
    unlike = Graph(lambda: small.data, small.structure, lambda: small.answers[0] + 1, small.weight_slices)
    verdicts = {"wrong-output": unlike, "load-error": graph(not_onnx())}
    for verdict, each in verdicts.items():
        failed = probe.measure(each, QUICK)
        assert getattr(failed, "kind", None) == verdict, failed
    found = probe.measure(_graph(small), MeasurementOptions(2))
    assert isinstance(found, Measurement), found
    assert (len(found.processes), found.relative_p50 is None, found.memory.peak_bytes is None) == (2, False, False)
    return found


def _graph(pruned: PrunedModel) -> Graph:
    return Graph(lambda: pruned.data, pruned.structure, lambda: pruned.answers, pruned.weight_slices)


def _reference(system: System) -> Reference:
    return Reference(_graph(system.builder[0]), system.example.numpy())


def _off(expected: NDArray[np.float32], found: list[float]) -> float:
    off = largest_difference(expected.ravel(), np.asarray(found, dtype=np.float32))
    assert off <= CLOSE, off
    return off


def _told(off: float) -> str:
    return f"answers are off by {off:.0e} of the largest output at most, against onnxruntime {onnxruntime.__version__} here"


def _at_work(worker: Worker) -> bool:
    """Wait until a process of the worker has had time to import onnxruntime and to load a small model."""
    found = until(lambda: any("onnxruntime_pybind11" in Path(f"/proc/{pid}/maps").read_text() for pid in worker.children), 120)
    time.sleep(3)
    return found


if __name__ == "__main__":
    main()
