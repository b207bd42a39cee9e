"""Runs of the coverage benchmark: one process with limits for each network, and the raw lines. coverage.py uses them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from coverage_networks import Network

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "coverage.jsonl"
PAGE = ROOT / "docs" / "coverage.md"
ANALYSIS = ("pipeline/graph", "pipeline/core/plan.py")
"""What decides the result of a network, apart from the installed packages."""
PATIENCE = 8
"""A process may take this many times its processor time. Other programs may use the machine meanwhile."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one network may use."""

    processor_s: float
    memory_gib: float


def is_due(line: Line | None, revision: dict[str, str], failed: bool) -> bool:
    """Whether a network is to be examined again; `line` is its last one. With `failed`: if it was not proven."""
    if line is None:
        return True
    if failed:
        return bool(line["outcome"] != "proven")
    return bool(line["analysis"] != revision["analysis"])


def examined(network: Network, limits: Limits) -> Line:
    """The facts about one network, found by a process that cannot take more than `limits`."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as name:
        folder = Path(name)
        words = (network.name, folder, limits.processor_s, limits.memory_gib)
        command = [sys.executable, str(Path(__file__).with_name("coverage_child.py")), *map(str, words)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(folder), start_new_session=True
            )
            try:
                code = process.wait(PATIENCE * limits.processor_s)
            except subprocess.TimeoutExpired:
                code = -signal.SIGXCPU
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if (folder / "result.json").is_file():
            facts: Line = json.loads((folder / "result.json").read_text())
            return facts
        return ended_early(
            code,
            (folder / "phase").read_text() if (folder / "phase").is_file() else "start",
            (folder / "log").read_text("utf-8", "replace"),
        )


def ended_early(code: int, phase: str, log: str) -> Line:
    """What is known about a process that wrote no result."""
    if phase == "build":
        return {"outcome": "not built", "reason": f"building it ended with {code}"}
    place = re.search(r'File ".*?/(pipeline/[^"]+)", line (\d+) in (\w+)', log)
    where = f"in {place[1]}:{place[2]} {place[3]}" if place else "elsewhere"
    if code == -signal.SIGXCPU:
        return {"outcome": "too much time", "reason": f"stopped during {phase}, {where}"}
    if code == -signal.SIGKILL:
        return {"outcome": "too much memory", "reason": f"killed during {phase}"}
    last = (log.strip().splitlines() or ["it printed nothing"])[-1]
    return {"outcome": "traceback", "reason": f"ended with {code} during {phase}: {last[:200]}"}


def _environment(folder: Path) -> dict[str, str]:
    """One thread; this checkout's own pipeline; what libraries write about themselves goes to `folder`."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "1",
    }


def revision_of_analysis() -> dict[str, str]:
    """The last commit of the package, and the last one that changed the analysis; '+' stands for changes without a commit."""
    return {"commit": _last_commit("pipeline"), "analysis": _last_commit(*ANALYSIS)}


def _last_commit(*paths: str) -> str:
    changed = "+" if _git("status", "--porcelain", "--", *paths) else ""
    return _git("log", "-1", "--format=%h", "--abbrev=9", "--", *paths) + changed


def versions() -> dict[str, str]:
    """Installed versions of what decides the result."""
    found = {}
    for package in ("torch", "torchvision", "timm", "onnxscript"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def lines_of(results: Path) -> list[Line]:
    """All raw lines, the oldest first."""
    return [json.loads(text) for text in results.read_text().splitlines()] if results.is_file() else []


def append(results: Path, line: Line) -> None:
    """Add a raw line."""
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
