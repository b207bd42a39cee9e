"""Limits on processor time, as control groups tell them, and what doctor says of them."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.machines import MACHINE, QUIET, the_only
from helpers.workers import Worker, until

from pipeline.core.device_state import DeviceState, stopped_by_quota
from pipeline.core.profile import load_profile
from pipeline.doctor import _quota, _room
from pipeline.probe import worker


def system(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> str:
    """A machine's /proc and /sys below `root`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mounts)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"


def test_the_smallest_quota_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    """version 2: 0.5 cores in the slice, 2 in the service, none for its worker; stopped 7 times in the slice and 1 in the service"""
    root = system(
        tmp_path,
        "0::/a.slice/b.service/worker\n",
        V2.format(top="/"),
        {
            "sys/fs/cgroup/a.slice/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/a.slice/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 7\nthrottled_usec 40000\n",
            "sys/fs/cgroup/a.slice/b.service/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/a.slice/b.service/cpu.stat": "nr_throttled 1\nthrottled_usec 2000\n",
            "sys/fs/cgroup/a.slice/b.service/worker/cpu.max": "max 100000\n",
            "sys/fs/cgroup/other/cpu.max": "1000 100000\n",
        },
    )

    assert worker.processor_limits(root) == {"quota_cores": 0.5, "quota_stops": 8, "quota_stopped_ms": 42.0}


def test_a_container_finds_its_quota_at_the_top_of_its_mount(tmp_path: Path) -> None:
    """version 2, with a namespace of its own: the path is /, and the limit stands in the mount itself"""
    root = system(
        tmp_path,
        "0::/\n",
        V2.format(top="/"),
        {"sys/fs/cgroup/cpu.max": "40000 100000\n", "sys/fs/cgroup/cpu.stat": "nr_throttled 3\nthrottled_usec 1000\n"},
    )

    assert worker.processor_limits(root) == {"quota_cores": 0.4, "quota_stops": 3, "quota_stopped_ms": 1.0}


@pytest.mark.parametrize("path", ["/docker/abc", "/docker/abc/", "/elsewhere/that/is/not/mounted"])
def test_version_1_has_its_quota_in_two_files_and_counts_in_nanoseconds(tmp_path: Path, path: str) -> None:
    """a container, whose mount begins at its own group; told from inside, or by a path that leads nowhere here"""
    root = system(
        tmp_path,
        f"12:memory:{path}\n4:cpu,cpuacct:{path}\n0::/\n",
        V1.format(top="/docker/abc"),
        {
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 5000000\n",
        },
    )

    assert worker.processor_limits(root) == {"quota_cores": 1.5, "quota_stops": 4, "quota_stopped_ms": 5.0}


@pytest.mark.parametrize("quota", ["-1\n", "", "rubbish\n"])
def test_without_a_quota_there_is_no_limit(tmp_path: Path, quota: str) -> None:
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    root = system(tmp_path, "4:cpu:/\n", V1.format(top="/"), files)

    assert worker.processor_limits(root) == {"quota_cores": None, "quota_stops": None, "quota_stopped_ms": None}


def test_a_system_without_control_groups_tells_nothing(tmp_path: Path) -> None:
    assert worker.processor_limits(str(tmp_path)) == {"quota_cores": None, "quota_stops": None, "quota_stopped_ms": None}


def test_doctor_fails_under_a_quota_below_the_threads_and_says_what_to_do() -> None:
    """0.4 cores for one thread"""
    limited = replace(QUIET, quota_cores=0.4, quota_stops=12)
    finding = the_only(_quota(load_profile("local"), limited), "processor time")
    threads = load_profile("local").threads

    assert finding.level == "failure"
    assert finding.found == f"a control group allows 0.4 cores for {threads} threads, which stopped processes 12 times so far"
    assert "docker run --cpus" in finding.advice


def test_doctor_is_content_with_a_quota_that_is_large_enough_and_silent_without_one() -> None:
    assert the_only(_quota(load_profile("local"), replace(QUIET, quota_cores=64.0)), "processor time").level == "ok"
    assert list(_quota(load_profile("local"), QUIET)) == []


def test_doctor_says_when_a_cpuset_keeps_cores_away() -> None:
    """4 cores of 16"""
    found = the_only(_room(load_profile("raspberrypi"), {**MACHINE, "machine_cores": 16}), "cores")

    assert found.found == "4 of 16; this user may not use the others (cpuset, taskset); an inference uses 4"


@contextlib.contextmanager
def control_group(quota_cores: float) -> Iterator[Path]:
    """A real one, below the one that this process is in; skips where this user may not make any."""
    for folder, version in worker.control_groups():
        made = Path(folder, f"compress-test-{os.getpid()}")
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            if version == 2:
                (made / "cpu.max").write_text(f"{int(1e5 * quota_cores)} 100000")
            else:
                (made / "cpu.cfs_quota_us").write_text(str(int(1e5 * quota_cores)))
        except OSError:
            made.rmdir()
            continue
        try:
            yield made
        finally:
            procs = made / "cgroup.procs"
            assert until(lambda procs=procs: not procs.read_text())
            made.rmdir()
        return
    pytest.skip("no control group with a processor limit can be made here")


def test_a_real_quota_is_seen_and_its_stops_are_counted(tmp_path: Path) -> None:
    """a fiftieth of a core for a worker that is asked again and again; other programs leave it that much even on a busy machine"""
    with control_group(0.02) as group, contextlib.closing(Worker(tmp_path)) as supervisor:
        (group / "cgroup.procs").write_text(str(supervisor.process.pid))
        before = supervisor.ask({"do": "state"})
        until(lambda: supervisor.ask({"do": "state"})["quota_stops"] > before["quota_stops"])
        after = supervisor.ask({"do": "state"})
        (group.parent / "cgroup.procs").write_text(str(supervisor.process.pid))  # or it would take seconds to end

    assert after["quota_cores"] == 0.02
    assert after["quota_stops"] > before["quota_stops"]
    assert after["quota_stopped_ms"] > before["quota_stopped_ms"]
    assert stopped_by_quota(DeviceState(**before), DeviceState(**after))
