"""The worker, started for real, with requests sent by hand."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.graphs import INPUT
from pipeline.probe import worker_probe
from pipeline.remote.link import Link, LinkLost
from pipeline.system.files import sha256_bytes

WORKER = worker_probe.WORKER
FOREVER: dict[str, Any] = {"runs": 10**9, "time_limit_s": 1e6}
"""Settings for a measurement that only a timeout, a signal or the end of the worker stops."""
SETTINGS = {
    "provider": "CPUExecutionProvider",
    "threads": 1,
    "cores": [],
    "graph_optimization": "all",
    "spinning": False,
    "arena": True,
    "memory_pattern": True,
    "prepacking": True,
    "blocked_layout": True,
    "denormal_as_zero": False,
    "warmup_runs": 2,
    "runs": 8,
    "block_runs": 4,
    "time_limit_s": 60.0,
    "timeout_s": 60.0,
    "period_ms": 0.0,
    "sustain_s": 0.0,
}

Answer = dict[str, Any]


class Worker:
    """`worker.py serve`, run by `python`, with its files below `folder`."""

    def __init__(self, folder: Path, *, before: tuple[str, ...] = (), python: str = sys.executable, **environment: str) -> None:
        self.folder = folder
        settings = {"TMPDIR": str(folder), **environment}
        self.link = Link(["env", *(f"{key}={value}" for key, value in settings.items()), *before, python, str(WORKER), "serve"])
        self.process = self.link._process

    def ask(self, message: Answer, blob: bytes = b"") -> Answer:
        return self.link.ask(message, blob)

    def put(self, data: bytes) -> str:
        name = sha256_bytes(data)
        assert self.ask({"do": "put", "name": name}, data) == {}
        return name

    def measure(self, model: bytes, reference: bytes | None = None, **changes: Any) -> Answer:
        """Measure with one latency process only, unless `changes` say otherwise. They may also change SETTINGS by name."""
        settings = {key: changes.pop(key, value) for key, value in SETTINGS.items()}
        request = {
            "do": "measure",
            "reference": self.put(reference) if reference else None,
            "input": self.put(INPUT.tobytes()),
            "shape": INPUT.shape,
            "slices": None,
            "processes": 1,
            "memory": False,
            "together": True,
            "settings": settings,
            "seed": 1,
            "answer": 100,
            "more": False,
        }
        return self.ask({**request, **changes}, model)

    @contextlib.contextmanager
    def measuring(self, model: bytes, **changes: Any) -> Iterator[Answer]:
        """Measure while the block runs. After the block, the dictionary holds the answer, if there is one."""
        found: Answer = {}

        def ask() -> None:
            with contextlib.suppress(LinkLost):
                found.update(self.measure(model, **changes))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield found
        finally:
            thread.join(60)

    @property
    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def answers(self) -> bool:
        return "onnxruntime" in self.ask({"do": "hello"})

    def close(self) -> int:
        """Close its input, and return its exit status."""
        self.link.close()
        return self.process.wait(30)


def children_of(parent: int) -> list[int]:
    """The processes that `parent` started and that are alive."""
    return [pid for pid, (state, ppid) in _processes().items() if ppid == parent and state not in "ZX"]


def alive(pid: int) -> bool:
    """Whether the process is alive, even if only some of its threads are left: until the last ends, it counts as running."""
    state, _ = _processes().get(pid, ("X", 0))
    if state not in "ZX":
        return True
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    return False


def gone(pids: Iterable[int]) -> bool:
    """Whether all of them end. The system takes some time to carry out a kill."""
    return until(lambda: not any(map(alive, pids)))


def _processes() -> dict[int, tuple[str, int]]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                found[int(folder.name)] = state, int(parent)
    return found


def until(happens: Callable[[], object], limit_s: float = 60.0) -> bool:
    """Wait for it, and return whether it happened."""
    deadline = time.monotonic() + limit_s
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
