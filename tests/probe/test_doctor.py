"""compress doctor: one page on a device, with what to do; here, and at the other end of a real OpenSSH connection."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.machines import MACHINE, QUIET, the_only
from helpers.profiles import command, here, there
from helpers.sshd import VCGENCMD, Board, needs_sshd
from helpers.workers import until

from pipeline.core.profile import Profile, load_profile
from pipeline.core.providers import OPENVINO
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.statistics import Estimate
from pipeline.doctor import _against_itself, _bench_net, _condition, _providers, _room, _software, examine
from pipeline.probe.interface import Reference
from pipeline.probe.ssh import SshProbe
from pipeline.stages.shared_device import connect

PAGE = ["reachable", "python", "onnxruntime", "cores", "free memory", "free disk", "governor", "throttling", "noise"]
"""What every system has a line for; temperature and load only where there is something to say."""


def pi() -> Profile:
    """The Raspberry Pi's profile, reached over ssh."""
    profile = load_profile("raspberrypi")
    return profile.model_copy(update={"device": profile.device.model_copy(update={"host": "pi@board"})})


# ---------------------------------------------------------------- this machine


def test_this_machine_gets_a_page_and_is_ready(tmp_path: Path) -> None:
    result = command("doctor", "--target", here(tmp_path))
    lines = [line for line in result.output.splitlines() if line.startswith(("ok", "WARN"))]

    assert result.exit_code == 0
    assert [what for what in PAGE if not any(line[5:].startswith(what) for line in lines)] == []
    assert result.output.endswith("\nready\n")
    assert "host key" not in result.output


def test_a_finding_that_is_not_well_says_what_to_do(tmp_path: Path) -> None:
    """noise without any is what no machine has"""
    result = command("doctor", "--target", here(tmp_path, noise_limit=1e-9))
    lines = result.output.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("WARN noise"))

    assert "noisy: the runs deviate from their median by" in lines[number + 1]
    assert result.exit_code == 0


def test_json_has_the_same_findings(tmp_path: Path) -> None:
    result = command("doctor", "--target", here(tmp_path), "--json")
    findings = json.loads(result.stdout)["findings"]

    assert result.exit_code == 0
    assert set(PAGE) <= {finding["what"] for finding in findings}
    assert {tuple(finding) for finding in findings} == {("what", "level", "found", "advice", "exit_code")}
    assert {finding["level"] for finding in findings} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("low", "high", "doubts", "level", "advice"),
    [
        (0.98, 1.03, (), "ok", ""),
        (1.01, 1.03, (), "warning", "other programs disturb the runs: end them"),
        (0.97, 0.99, (), "warning", "other programs disturb the runs: end them"),
        (
            0.5,
            1.8,
            (Remark(RemarkKind.QUOTA, "a limit stopped them"),),
            "warning",
            "a limit stopped them (raise the limit on processor",
        ),
    ],
)
def test_a_network_against_itself_is_judged_by_its_interval_and_by_what_forbids_a_verdict(
    low: float, high: float, doubts: tuple[Remark, ...], level: str, advice: str
) -> None:
    found = _against_itself(Estimate(1.0, low, high), doubts)

    assert found.level == level
    assert found.found == f"100.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert found.advice.startswith(advice)
    assert bool(found.advice) == bool(advice)


def test_this_machine_is_measured_against_itself(tmp_path: Path) -> None:
    """No level is expected, as other programs may run."""
    found = the_only(examine(load_profile(here(tmp_path))), "network against itself")

    assert " % [" in found.found
    assert (found.advice == "") == (found.level == "ok")


def test_providers_that_are_installed_but_unusable_are_named_with_the_reason(tmp_path: Path) -> None:
    """A plugin that found no device, and a provider that onnxruntime names although this build cannot create a session with it."""
    profile = load_profile(here(tmp_path))
    with closing(connect(profile, Reference(_bench_net(), np.zeros((1, 16, 32, 32), np.float32)))) as probe:
        probe.machine |= {
            "unusable": {OPENVINO: "it supports no processor of this machine"},
            "providers": ["AzureExecutionProvider", "CPUExecutionProvider", "CUDAExecutionProvider"],
        }
        usable, plugin, broken = _providers(profile, probe)

    assert usable.found == "CPUExecutionProvider (not used: AzureExecutionProvider, which sends inputs to a server)"
    assert plugin.found == f"{OPENVINO} is installed, but cannot be used: it supports no processor of this machine"
    assert broken.found.startswith("CUDAExecutionProvider is installed, but cannot be used: ")
    assert [each.level for each in (usable, plugin, broken)] == ["ok", "warning", "warning"]


def test_a_profile_that_does_not_exist_ends_with_10() -> None:
    assert command("doctor", "--target", "none.yaml").exit_code == 10


# ---------------------------------------------------------------- over ssh


@needs_sshd
def test_a_board_over_ssh_gets_a_page_and_nothing_but_the_worker_stays_there(tmp_path: Path, board: Board) -> None:
    result = command("doctor", "--target", there(tmp_path, board))

    assert result.exit_code == 0
    assert "ok   host key                  known and verified" in result.output
    assert f"{onnxruntime.__version__}\n" in result.output
    assert until(lambda: not board.workers())
    assert not list(board.tmp.iterdir())


def without_numpy(board: Board) -> None:
    package = board.folder / "empty" / "numpy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    board.environment = {"PYTHONPATH": str(package.parent)}
    board.write_python()


@needs_sshd
@pytest.mark.parametrize(
    ("happens", "code", "complaint"),
    [
        (lambda board: board.stop(), 41, "DeviceUnreachable: board: cannot be reached ("),
        (lambda board: board.known_hosts.write_text(""), 42, "HostKeyRefused: board: its host key is unknown;"),
        (lambda board: board.trust("user_key"), 42, "HostKeyRefused: board: its host key has changed ("),
        (without_numpy, 43, "DeviceSoftware: board: ModuleNotFoundError: No module named 'numpy'; run on that machine: "),
        (lambda board: board.python.unlink(), 43, "DeviceSoftware: board: no interpreter '"),
    ],
    ids=["off", "unknown host key", "changed host key", "no numpy", "no interpreter"],
)
def test_a_board_that_cannot_be_had_is_one_failure_with_its_exit_code_and_nothing_further(
    tmp_path: Path, board: Board, happens: Callable[[Board], object], code: int, complaint: str
) -> None:
    happens(board)
    page = command("doctor", "--target", there(tmp_path, board))
    (finding,) = json.loads(command("doctor", "--target", there(tmp_path, board), "--json").stdout)["findings"]

    assert page.exit_code == finding["exit_code"] == code
    assert page.output.endswith("\n1 failure\n")
    assert page.output.startswith(f"FAIL reachable                 {complaint}")
    assert (finding["what"], finding["level"]) == ("reachable", "failure")
    assert finding["found"].startswith(complaint)


@needs_sshd
def test_a_throttled_board_fails_with_what_slowed_it(tmp_path: Path, board: Board) -> None:
    """P12, as a Raspberry Pi's firmware tells it: under-voltage and throttled, now"""
    board.program("vcgencmd", VCGENCMD)
    (board.bin / "flags").write_text("0x50005\n")
    result = command("doctor", "--target", there(tmp_path, board))

    assert result.exit_code == 40
    assert "FAIL throttling                now: under-voltage, throttled, 1500 MHz measured\n" in result.output
    assert "cool the device, and give it a better power supply" in result.output


@needs_sshd
def test_a_board_that_was_throttled_before_is_looked_at(tmp_path: Path, board: Board) -> None:
    board.program("vcgencmd", VCGENCMD)
    (board.bin / "flags").write_text("0x50000\n")
    result = command("doctor", "--target", there(tmp_path, board))

    assert result.exit_code == 0
    assert "WARN throttling                not now, but at some time since boot, 1500 MHz measured\n" in result.output


@needs_sshd
def test_another_onnxruntime_than_the_profile_s_is_looked_at(tmp_path: Path, board: Board) -> None:
    result = command("doctor", "--target", there(tmp_path, board, runtime={"onnxruntime": "1.17.0"}))

    assert result.exit_code == 0
    assert f"WARN onnxruntime               {onnxruntime.__version__} on the device, 1.17.0 in the profile\n" in result.output
    assert f'write onnxruntime: "{onnxruntime.__version__}" in the profile, or install 1.17.0 on the device' in result.output


@needs_sshd
def test_a_board_that_another_job_measures_on_ends_with_44(tmp_path: Path, board: Board) -> None:
    first = SshProbe(board.profile())
    result = command("doctor", "--target", there(tmp_path, board))
    first.close()

    assert result.exit_code == 44
    assert result.output.startswith("FAIL reachable                 DeviceBusy: board: another job is measuring on this device")


@needs_sshd
def test_a_board_that_is_lost_meanwhile_is_a_failure(tmp_path: Path, board: Board) -> None:
    found = []
    for finding in examine(load_profile(there(tmp_path, board))):
        found.append(finding)
        if finding.what == "free disk":
            board.stop()

    assert (found[-1].what, found[-1].level, found[-1].exit_code) == ("measuring", "failure", 41)
    assert found[-1].found.startswith("lost the connection to board: ")


# ---------------------------------------------------------------- boards that are told of


@pytest.mark.parametrize(
    "changes", [{"onnxruntime": "1.22.1"}, {"architecture": "x86_64", "onnxruntime": "1.22.1"}], ids=["sound", "x86"]
)
def test_the_profile_s_own_release_is_well(changes: dict[str, str]) -> None:
    assert the_only(_software(pi(), {**MACHINE, **changes}), "onnxruntime").level == "ok"


def test_here_in_the_device_s_stead_another_release_is_only_said() -> None:
    found = the_only(_software(load_profile("raspberrypi"), {**MACHINE, "onnxruntime": "1.30.0"}), "onnxruntime")

    assert found.level == "ok"
    assert found.found.startswith("1.30.0 on this machine, in place of the device's 1.22.1")


@pytest.mark.parametrize(
    ("changes", "what", "said"),
    [
        ({"cores": [0, 1]}, "cores", "2 for 4 threads"),
        ({"free_memory_bytes": 2**20}, "free memory", "1.0 MiB"),
        ({"free_disk_bytes": 2**20}, "free disk", "1.0 MiB"),
        ({"free_memory_bytes": None}, "free memory", "not known"),
    ],
)
def test_too_little_of_anything_is_looked_at(changes: dict[str, Any], what: str, said: str) -> None:
    found = the_only(_room(pi(), {**MACHINE, **changes}), what)

    assert found.level == "warning"
    assert found.found.startswith(said)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"governor": "ondemand"}, "governor"), ({"temperature_c": 81.0}, "temperature"), ({"load": 3.0}, "load")],
)
def test_a_board_that_is_not_at_rest_is_looked_at(changes: dict[str, Any], what: str) -> None:
    found = the_only(_condition(replace(QUIET, **changes)), what)

    assert found.level == "warning"
    assert found.advice


def test_a_quiet_board_is_well_in_all() -> None:
    found = [*_software(pi(), MACHINE), *_room(pi(), MACHINE), *_condition(QUIET)]

    assert {finding.level for finding in found} == {"ok"}
    assert {finding.advice for finding in found} == {""}
