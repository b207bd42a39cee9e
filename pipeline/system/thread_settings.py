"""Thread settings: how many threads compute, and how they wait. They are set before torch and its OpenMP runtime are loaded.

OpenMP's threads spin while they wait. Where other processes use the cores, a spinning thread takes the time of the thread that
it waits for, and two runs side by side do a fraction of the work of one.
"""

import math
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

__all__ = ["computing_threads", "core_quota", "original_environment", "settle_threads"]

WAITING = {"OMP_WAIT_POLICY": "passive"}
"""Threads sleep while they wait. Values that the user has set stay."""
_ROOT = Path("/")
_added: set[str] = set()


def settle_threads(environment: MutableMapping[str, str] = os.environ, root: Path = _ROOT) -> None:
    """Set in `environment` how OpenMP's threads wait, and their number where a control group allows fewer cores than there are.
    The runtime reads both once, when torch is imported. Variables that are already set stay.

    `root` is the folder that holds proc/ and sys/.
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
    """Return `environment` without the additions of `settle_threads`. Timed processes need it: only their profile sets them."""
    return {name: value for name, value in environment.items() if name not in _added}


def core_quota(root: Path = _ROOT) -> int | None:
    """Return how many cores of processor time this process's control groups allow, rounded up; None without a limit.

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
        # in a container the path can be the host's, which does not exist; the container's own group is then the mount itself
        groups = {mount, *(each for each in (folder, *folder.parents) if each.is_relative_to(mount))}
        shares += [share for group in groups if (share := read(group)) is not None]
    return max(1, math.ceil(min(shares))) if shares else None


def _version_2(group: Path) -> float | None:
    return _share(*_text(group / "cpu.max").split()[:2])


def _version_1(group: Path) -> float | None:
    return _share(_text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us").strip())


def _share(quota: str = "", period: str = "") -> float | None:
    """Divide the quota by the period, both in microseconds, to get cores; 'max' and -1 mean no limit."""
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def computing_threads() -> int:
    """Return the useful number of threads: the cores that this process may use, or fewer where a quota limits its time."""
    return min(_core_count(), core_quota() or _core_count())


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
