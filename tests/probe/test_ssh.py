"""The device at the other end of a real OpenSSH connection: found, refused, lost, and back again."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.faults import can_mount
from helpers.graphs import INPUT, conv_net, graph, reference
from helpers.sshd import VCGENCMD, Board, needs_sshd
from helpers.workers import children_of, gone, until
from torch import nn

from pipeline.core.measurement import Failure, Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import Profile
from pipeline.errors import DeviceBusy, DeviceSoftware, DeviceUnreachable, HostKeyRefused, ProbeError, ThreadsError
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.probe.ssh import SshProbe

pytestmark = [pytest.mark.starts_first, needs_sshd]
NET = graph(conv_net(8))
QUICK = MeasurementOptions(1, memory=False)
SLOW = {"runs": 100_000, "time_limit_s": 1.5}
"""Time for whatever is to happen in the middle of a measurement."""

Connect = Callable[..., SshProbe]


@pytest.fixture
def told() -> list[str]:
    """What the user was told meanwhile."""
    return []


@pytest.fixture
def connect(board: Board, told: list[str]) -> Iterator[Connect]:
    started: list[SshProbe] = []

    def connect(profile: Profile | None = None, against: Reference | None = None) -> SshProbe:
        started.append(SshProbe(profile or board.profile(), against or reference(), told.append))
        return started[-1]

    yield connect
    for probe in started:
        probe.close()


def measured(found: Measurement | Failure) -> Measurement:
    assert isinstance(found, Measurement), found
    return found


def files_of(board: Board) -> list[str]:
    """What lies on the device, but for what was there before."""
    kept = [path for folder in (board.cache, board.tmp) for path in folder.rglob("*") if path.is_file()]
    return sorted(re.sub(r"[0-9a-f]{32}", "HASH", str(path.relative_to(board.home))) for path in kept)


def test_figures_over_ssh_are_the_device_s(connect: Connect) -> None:
    found = measured(connect().measure(NET, QUICK))

    assert found.fingerprint.mode == found.fingerprint.stamp == "device"
    assert found.before is not None
    assert found.before.load is not None


def test_nothing_of_this_machine_is_kept_free_for_it(connect: Connect) -> None:
    assert connect().busy_cores == ()


def test_the_worker_stays_under_the_name_of_its_content_and_nothing_else_does(board: Board, connect: Connect) -> None:
    for _ in range(2):
        probe = connect()
        probe.measure(NET, QUICK)
        probe.close()

    assert until(lambda: not board.workers())
    assert files_of(board) == ["cache/compress-probe/lock", "cache/compress-probe/worker-HASH.py"]


def test_one_connection_serves_a_whole_run(board: Board, connect: Connect) -> None:
    probe = connect()
    for width in (4, 8, 12):
        measured(probe.measure(graph(conv_net(width)), QUICK))

    assert len(board.connections()) == 1
    assert (board.folder / "sshd.log").read_text().count("Accepted publickey") == 1


# ---------------------------------------------------------------- those who may not, or cannot


def test_an_unknown_host_key_is_refused_with_what_to_do(board: Board, connect: Connect) -> None:
    board.known_hosts.write_text("")

    with pytest.raises(HostKeyRefused, match="its host key is unknown; connect once by hand"):
        connect()


def test_a_changed_host_key_is_refused_as_such(board: Board, connect: Connect) -> None:
    board.trust("user_key")

    with pytest.raises(HostKeyRefused, match="its host key has changed"):
        connect()


def test_host_keys_are_checked_whatever_the_user_s_configuration_says(board: Board, connect: Connect) -> None:
    board.config.write_text("StrictHostKeyChecking no\n" + board.config.read_text())
    board.known_hosts.write_text("")

    with pytest.raises(HostKeyRefused):
        connect()
    assert board.known_hosts.read_text() == ""


def test_a_configuration_for_sessions_by_hand_does_not_break_a_measurement(board: Board, connect: Connect) -> None:
    """a command, a terminal and a forwarded port of one's own"""
    board.config.write_text(
        "RemoteCommand tmux new -A\nRequestTTY force\nRemoteForward 1 localhost:1\nExitOnForwardFailure yes\n"
        + board.config.read_text()
    )

    assert connect().fingerprint.mode == "device"


def test_a_user_without_a_key_is_told_how_to_install_one(board: Board, connect: Connect) -> None:
    (board.folder / "authorized_keys").write_text("")

    with pytest.raises(DeviceUnreachable, match=r"accepts none of your ssh keys .*ssh-copy-id -F .*board.config board"):
        connect()


def test_a_device_that_is_off_cannot_be_reached(board: Board, connect: Connect) -> None:
    board.stop()

    with pytest.raises(DeviceUnreachable, match=r"cannot be reached \(.*[Cc]onnection refused"):
        connect()


def test_a_device_without_that_interpreter_is_told_apart(board: Board, connect: Connect) -> None:
    profile = board.profile().model_copy(update={"device": board.device(python="/opt/none/python3")})

    with pytest.raises(DeviceSoftware, match="no interpreter '/opt/none/python3' on the device"):
        connect(profile)


def test_a_device_without_onnxruntime_is_told_what_to_install(board: Board, connect: Connect) -> None:
    """-S: an interpreter without any installed package"""
    board.python.write_text(board.python.read_text().replace('"$@"', '-S "$@"'))
    (board.bin / "sitecustomize.py").write_text("")
    board.environment = {"PYTHONSTARTUP": "", "PYTHONPATH": str(board.folder / "empty")}
    (board.folder / "empty" / "numpy").mkdir(parents=True)
    (board.folder / "empty" / "numpy" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    board.write_python()

    with pytest.raises(
        DeviceSoftware, match=r"No module named 'numpy'; run on that machine: .* -m pip install numpy onnxruntime"
    ):
        connect()


@pytest.mark.parametrize(
    ("version", "named"),
    [("1.21.0", "(1.21.0, which does so on ARM cores before version 8.2"), ("1.30.2", "(1.30.2); run on that machine: ")],
)
def test_a_runtime_that_the_processor_cannot_run_is_named(board: Board, connect: Connect, version: str, named: str) -> None:
    """Importing it dies of an illegal instruction; its version is in what pip wrote beside it."""
    packages = board.folder / "broken"
    (packages / "onnxruntime").mkdir(parents=True)
    (packages / "onnxruntime" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    written = packages / f"onnxruntime-{version}.dist-info"
    written.mkdir()
    (written / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n")
    board.environment = {"PYTHONPATH": str(packages)}
    board.write_python()

    with pytest.raises(DeviceSoftware) as refused:
        connect()
    assert f"uses instructions that the processor lacks {named}" in str(refused.value)
    assert str(refused.value).endswith(" -m pip install --upgrade onnxruntime, or set device.python to another interpreter")


def test_a_shell_that_prints_at_login_is_named(board: Board, connect: Connect) -> None:
    board.python.write_text(board.python.read_text().replace("exec", "echo Welcome to this machine, enjoy your stay\nexec", 1))

    with pytest.raises(DeviceUnreachable, match="a shell start-up file"):
        connect()


def test_more_threads_than_the_device_lets_one_have_are_refused(board: Board, connect: Connect) -> None:
    """P5: a board that is said to have 64 cores, and has not"""
    runtime = board.profile().runtime.model_copy(update={"threads": 64})
    profile = board.profile().model_copy(update={"device": board.device(cores=64), "runtime": runtime})

    with pytest.raises(ThreadsError, match=r"runtime.threads is 64, but this user may use only"):
        connect(profile)


def test_two_jobs_do_not_measure_each_other(connect: Connect) -> None:
    first = connect()

    with pytest.raises(DeviceBusy, match="another job is measuring on this device"):
        connect()
    assert measured(first.measure(NET, QUICK))


@pytest.mark.parametrize("value", ["-oProxyCommand=touch x", "a b", "x\ny", ""])
def test_a_host_that_is_an_option_is_refused(board: Board, value: str) -> None:
    with pytest.raises(ValueError, match="host"):
        board.device(host=value)


@pytest.mark.parametrize("value", ["-c", "~/-c", "python3; touch x", "$(touch x)", "a\nb", "python3\n", "'", ""])
def test_an_interpreter_that_is_an_option_or_a_command_is_refused(board: Board, value: str) -> None:
    with pytest.raises(ValueError, match="python"):
        board.device(python=value)


# ---------------------------------------------------------------- what gets lost, and comes back


def in_the_middle(board: Board, probe: SshProbe, happens: Callable[[], None]) -> Measurement | Failure:
    """Measure, and have it happen when the device is at work."""
    (worker,) = board.workers()

    def strike() -> None:
        assert until(lambda: children_of(worker))
        time.sleep(0.5)
        happens()

    thread = threading.Thread(target=strike)
    thread.start()
    found = probe.measure(NET, QUICK)
    thread.join()
    return found


def kill(pids: list[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        os.kill(pid, number)


def test_a_dropped_connection_is_made_again_and_the_measurement_too(board: Board, connect: Connect) -> None:
    probe = connect(board.profile(**SLOW))

    assert measured(in_the_middle(board, probe, lambda: kill(board.connections())))
    assert until(lambda: len(board.workers()) == 1)


def test_a_killed_worker_is_started_again(board: Board, connect: Connect) -> None:
    probe = connect(board.profile(**SLOW))

    assert measured(in_the_middle(board, probe, lambda: kill(board.workers())))
    probe.close()
    assert until(lambda: not board.workers())


def test_a_device_that_reboots_is_waited_for(board: Board, connect: Connect, told: list[str]) -> None:
    """gone with all that ran on it, and back after a second"""
    probe = connect(board.profile(**SLOW))

    def reboot() -> None:
        board.stop()
        time.sleep(1)
        board.start()

    assert measured(in_the_middle(board, probe, reboot))
    assert re.match("lost the connection to board .*; waiting for it for up to 20 s", told[0])
    assert re.match("board is back after", told[-1])


def test_a_device_that_stays_away_ends_the_run_to_be_resumed(board: Board, connect: Connect) -> None:
    probe = connect(board.profile(**SLOW, reconnect_s=1))

    with pytest.raises(DeviceUnreachable, match="all finished trials are saved: run the same command again"):
        in_the_middle(board, probe, board.stop)


def test_a_hung_worker_is_noticed_and_replaced(board: Board, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """stopped, not dead: its connection stands and nothing comes"""
    monkeypatch.setattr("pipeline.probe.connection.SILENCE_S", 6.0)  # the worker says every five seconds that it is alive
    probe = connect(board.profile(**SLOW))
    hung: list[int] = []

    def stop() -> None:
        hung.extend(board.workers())
        kill(hung, signal.SIGSTOP)

    assert measured(in_the_middle(board, probe, stop))
    assert gone(hung)


def test_a_file_that_takes_the_device_down_every_time_is_a_failure(board: Board, connect: Connect) -> None:
    """and the next one is measured"""
    probe = connect(board.profile(**SLOW))
    guilty = True

    def executioner() -> None:
        while guilty:
            time.sleep(0.05)
            kill(board.measuring() if guilty else [])

    thread = threading.Thread(target=executioner)
    thread.start()
    try:
        failed = probe.measure(NET, QUICK)
    finally:
        guilty = False
        thread.join()

    assert isinstance(failed, Failure)
    assert failed.kind == "lost"
    assert "lost 3 times" in failed.detail
    assert measured(probe.measure(NET, QUICK))


def test_what_a_killed_worker_left_is_removed_by_the_next(board: Board, connect: Connect) -> None:
    connect()
    (left,) = board.tmp.iterdir()
    kill(board.workers())
    assert until(lambda: not board.workers())
    os.utime(left, (0, 0))
    connect()

    assert left not in list(board.tmp.iterdir())


# ---------------------------------------------------------------- full and read-only


@pytest.fixture
def small_disk(board: Board) -> Iterator[Path]:
    if (
        not can_mount()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(board.tmp)], check=False).returncode
    ):
        pytest.skip("this system does not let a process mount a small disk")
    yield board.tmp
    subprocess.run(["umount", "-l", str(board.tmp)], check=True)


def test_a_full_disk_is_named_and_the_search_stops_to_be_resumed(small_disk: Path, connect: Connect) -> None:
    probe = connect()

    with pytest.raises(ProbeError, match=r"board: cannot store a file .*No space left on device.*; free some space in"):
        probe.measure(graph(conv_net(512)), QUICK)
    assert measured(probe.measure(NET, QUICK))


def test_a_disk_that_is_full_when_slices_are_joined_is_named_too(small_disk: Path, connect: Connect, tmp_path: Path) -> None:
    """83 kB of weights, and a dense graph made of them; a third file of that size finds no room, one of half the channels does"""
    net = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2)
    )
    builder = start_builder(net.eval(), torch.from_numpy(INPUT), FileFormat(18, 9), PruningSettings(), tmp_path / "dense.onnx")
    dense, half = (builder.make(ChannelPlan.of(dict.fromkeys(("0", "2"), width))) for width in (48, 24))
    graphs = [Graph(lambda pruned=pruned: pruned.data, pruned.structure, None, pruned.weight_slices) for pruned in (dense, half)]
    probe = connect(against=Reference(graphs[0], INPUT))

    with pytest.raises(ProbeError, match=r"board: cannot store a file .*No space left on device.*; free some space in"):
        probe.measure(graphs[0], QUICK)
    assert measured(probe.measure(graphs[1], QUICK))


def test_a_cache_folder_that_cannot_be_written_is_done_without(board: Board, connect: Connect) -> None:
    """a file where the folder should be: not even root can write there"""
    board.cache.rmdir()
    board.cache.write_text("")
    probe = connect()

    assert measured(probe.measure(NET, QUICK))
    probe.close()
    assert until(lambda: not list(board.tmp.iterdir()))


# ---------------------------------------------------------------- hot


def test_a_throttled_measurement_is_discarded_and_repeated_when_the_device_has_cooled_down(
    board: Board, connect: Connect, told: list[str]
) -> None:
    """P12: bit 2, throttled now; bit 18, throttled since boot, which is no news afterwards"""
    board.program("vcgencmd", VCGENCMD)
    flags = board.bin / "flags"
    flags.write_text("0x40004\n")
    probe = connect(board.profile(retries=1, cooldown_s=30))
    threading.Timer(1.5, lambda: flags.write_text("0x40000\n")).start()
    found = measured(probe.measure(NET, QUICK))

    assert found.remarks == ()
    assert told == ["board: throttled: throttled; measured again after a pause of up to 30 s"]
    assert found.before is not None
    assert found.before.clock_mhz == pytest.approx(1500.398464)
    assert found.before.clock_measured


def test_a_device_that_stays_hot_is_measured_all_the_same_and_the_figure_says_so(board: Board, connect: Connect) -> None:
    board.program("vcgencmd", VCGENCMD)
    (board.bin / "flags").write_text("0x5\n")
    found = measured(connect(board.profile(retries=1, cooldown_s=0.1)).measure(NET, QUICK))

    assert found.remarks[0].text == "throttled: under-voltage, throttled"
