"""Threads: how many compute, and how they wait for each other; decided before torch and its OpenMP runtime are loaded.

OpenMP's threads spin while they wait. Where another process wants the cores, a thread that spins takes the time that the thread
it waits for needs, and two runs side by side do a fraction of the work of one.
"""

import math
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

__all__ = ["computing_threads", "core_quota", "original_environment", "settle_threads"]

WAITING = {"OMP_WAIT_POLICY": "passive"}
"""Threads sleep while they wait. What the user has set stays."""
_ROOT = Path("/")
_added: set[str] = set()


def settle_threads(environment: MutableMapping[str, str] = os.environ, root: Path = _ROOT) -> None:
    """Write into `environment` how OpenMP's threads wait, and how many there are where a control group allows fewer than there
    are cores. The runtime reads both once, when torch is imported. Variables that are set already are left as they are.

    `root` holds proc/ and sys/.
    """
    wanted, quota = dict(WAITING), core_quota(root)
    if quota is not None and quota < _core_count():
        wanted["OMP_NUM_THREADS"] = str(quota)
    for name, value in wanted.items():
        if name not in environment:
            environment[name] = value
            if environment is os.environ:
                _added.add(name)


def original_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` without what `settle_threads` added to it: for processes that are timed, which only their profile sets."""
    return {name: value for name, value in environment.items() if name not in _added}


def core_quota(root: Path = _ROOT) -> int | None:
    """As many cores as this process's control groups give it time on, rounded up; None where they set no limit.

    Sources: the Linux kernel's documentation of control groups, version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`).
    """
    shares = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if number == "0" and not controllers:
            mount, read = root / "sys/fs/cgroup", _version_2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _version_1
        else:
            continue
        folder = mount / inside.strip("/")
        # in a container the path can be the host's, which is not there; its own group is then the mount itself
        groups = {mount, *(each for each in (folder, *folder.parents) if each.is_relative_to(mount))}
        shares += [share for group in groups if (share := read(group)) is not None]
    return max(1, math.ceil(min(shares))) if shares else None


def _version_2(group: Path) -> float | None:
    return _share(*_text(group / "cpu.max").split()[:2])


def _version_1(group: Path) -> float | None:
    return _share(_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip())


def _share(quota: str = "", period: str = "") -> float | None:
    """Microseconds of processor time in each period; 'max' and -1 are no limit."""
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def computing_threads() -> int:
    """Threads that are worth having: the cores that this process may run on, or fewer where it gets no time on all of them."""
    return min(_core_count(), core_quota() or _core_count())


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
