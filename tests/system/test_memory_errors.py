"""A command that gets no more memory, or whose user has no home folder, ends with one line that says so."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import Place

from pipeline.core.profile import load_profile
from pipeline.errors import KeysError, OutOfMemory, ProfileError
from pipeline.system.memory_errors import out_of_memory

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from pipeline.cli.main import main; main()")
DRY = ("--target", "raspberrypi", "--dry-run", "--trials", "1", "--supernet", "0", "--epochs", "1", "--searcher", "random")


def limited(mib: int, *command: str) -> "subprocess.CompletedProcess[str]":
    """`command` with so much address space."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit, cwd=ROOT)


@pytest.mark.parametrize("mib", [500, 1500])
def test_too_little_address_space_is_one_line(tmp_path: Path, mib: int) -> None:
    done = limited(mib, *COMMAND, *DRY, "--out", str(tmp_path / "run"))

    assert done.returncode == OutOfMemory.exit_code, done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"compress: there is not enough memory: this process may use {mib} MiB of address space; raise the limit (ulimit -v)"
    )
    assert "Traceback" not in done.stderr


ENDS = """
import os, sys
from pipeline.system.memory_errors import watch_limited
sys.exit(watch_limited(lambda: {body}))
"""


@pytest.mark.parametrize(
    ("body", "code"), [("7", 7), ("os.abort()", OutOfMemory.exit_code), ("os.kill(os.getpid(), 9)", 137), ("sys.exit(3)", 3)]
)
def test_a_library_that_ends_the_process_for_want_of_memory_is_named_and_other_ends_are_handed_on(body: str, code: int) -> None:
    done = limited(500, sys.executable, "-c", ENDS.format(body=body))

    assert done.returncode == code
    assert ("not enough memory" in done.stderr) == (code == OutOfMemory.exit_code)


def test_without_a_limit_nothing_is_started(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(body="print(os.getppid()) or 0")], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert int(done.stdout) == os.getpid()


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_want_of_memory_is_known_by_what_libraries_say(problem: Exception) -> None:
    assert isinstance(out_of_memory(problem), OutOfMemory)


@pytest.mark.parametrize("problem", [RuntimeError("a size does not fit"), OSError(2, "No such file"), ValueError("bad_alloc")])
def test_another_error_is_not_taken_for_it(problem: Exception) -> None:
    assert out_of_memory(problem) is None


def homeless(*command: str) -> "subprocess.CompletedProcess[str]":
    """`command` of a user that no list of users knows, without HOME."""
    before = ("unshare", "--user", "--map-user=54321", "env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "COMPRESS_CACHE_DIR")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody be another user")
    return subprocess.run([*before, *command], capture_output=True, text=True, check=False, cwd=ROOT)


CACHED = """
from pathlib import Path
from pipeline.probe.cached import CachedProbe, cache_folder
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe
from helpers.graphs import conv_net, graph, profile, reference
probe = CachedProbe(SimulatedProbe(profile(), reference()), reference(), cache_folder())
first = probe.measure(graph(conv_net()), MeasurementOptions(1))
print(first == probe.measure(graph(conv_net()), MeasurementOptions(1)))
"""


def test_a_user_without_a_home_folder_measures_without_a_cache() -> None:
    done = homeless("env", f"PYTHONPATH={ROOT}:{ROOT / 'tests'}", sys.executable, "-c", CACHED)

    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_user_without_a_home_folder_is_told_to_name_the_folder_of_keys() -> None:
    done = homeless(*COMMAND, "keys", "list")

    assert done.returncode == KeysError.exit_code, done.stderr
    assert done.stderr == (
        "compress: the folder of keys is unknown, because this user has no home folder; give --keys or set HOME\n"
    )


def test_a_home_folder_that_is_not_known_is_named_in_a_profile(place: Place) -> None:
    path = place.profile(was="cores: 4", becomes="cores: 4\n  ssh_config: ~nobody-of-this-name/ssh_config")

    with pytest.raises(ProfileError, match="home folder in '~nobody-of-this-name/ssh_config' is unknown; write the full path"):
        load_profile(str(path))
