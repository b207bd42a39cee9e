"""Threads that wait do not spin, timed processes keep the user's environment, and a control group's quota is heeded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.thread_settings import core_quota, settle_threads

ROOT = Path(__file__).parents[2]
ANSWERS = """
import json, os, struct, sys
size, _ = struct.unpack(">IQ", sys.stdin.buffer.read(12))
sys.stdin.buffer.read(size)
text = json.dumps({"found": [os.environ.get("OMP_WAIT_POLICY"), os.environ.get("HOME")]}).encode()
sys.stdout.buffer.write(struct.pack(">IQ", len(text), 0) + text)
"""


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, begun with none of OpenMP's variables but those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_package_sets_the_waiting_policy_before_it_can_import_torch() -> None:
    code = "import os, sys, pipeline; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"

    assert python(code) == "passive False"


def test_a_policy_of_the_users_own_stays() -> None:
    assert python("import os, pipeline; print(os.environ['OMP_WAIT_POLICY'])", OMP_WAIT_POLICY="active") == "active"


def test_openmp_itself_says_that_its_threads_sleep() -> None:
    """GNU's runtime prints its settings when it is loaded; it says ACTIVE without the package."""
    code = "import pipeline, torch"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "true"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stderr
    if "OMP_WAIT_POLICY" not in told:
        pytest.skip("this build of torch has no OpenMP runtime that tells its settings")

    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told


def test_a_process_that_is_timed_gets_the_environment_that_the_user_gave() -> None:
    """The worker of the probe, and ssh, are started by a link; here it starts a program that answers with two variables."""
    code = f"""
import json, sys
from pipeline.remote.link import Link
link = Link([sys.executable, "-c", {ANSWERS!r}])
print(json.dumps(link.ask({{}}, limit_s=60)["found"]))
link.close()
"""

    assert json.loads(python(code, HOME="/somewhere")) == [None, "/somewhere"]
    assert json.loads(python(code, HOME="/somewhere", OMP_WAIT_POLICY="active")) == ["active", "/somewhere"]


def group(root: Path, line: str, **files: str) -> Path:
    """A /proc and /sys with one control group; 'a__b' names the file b in the folder a."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/", {"cpu_max": "200000 100000"}, 2),
        ("0::/", {"cpu_max": "150000 100000"}, 2),  # rounded up
        ("0::/", {"cpu_max": "10000 100000"}, 1),
        ("0::/", {"cpu_max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"a__cpu_max": "100000 100000", "a__b__cpu_max": "400000 100000"}, 1),  # the parent's is smaller
        ("0::/of/the/host", {"cpu_max": "300000 100000"}, 3),  # in a container
        ("0::/../..", {"cpu_max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/a", {"cpu__a__cpu_cfs_quota_us": "200000", "cpu__a__cpu_cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, None),
        ("nonsense", {"cpu_max": "garbage"}, None),
    ],
)
def test_a_control_groups_quota_is_the_cores_it_gives_time_for(
    tmp_path: Path, line: str, files: dict[str, str], cores: int | None
) -> None:
    assert core_quota(group(tmp_path, line, **files)) == cores


def test_with_a_quota_of_one_core_openmp_computes_with_one_thread_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    root = group(tmp_path, "0::/", cpu_max="100000 100000")
    quota: dict[str, str] = {}
    chosen = {"OMP_NUM_THREADS": "5"}
    settle_threads(quota, root)
    settle_threads(chosen, root)

    assert quota.get("OMP_NUM_THREADS") == ("1" if len(os.sched_getaffinity(0)) > 1 else None)
    assert chosen["OMP_NUM_THREADS"] == "5"
