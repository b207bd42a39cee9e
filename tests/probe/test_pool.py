"""A pool of boards: who measures a plan, what happens to a lost board, and which boards are not pooled."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.candidates import FINGERPRINT
from helpers.graphs import conv_net, graph, profile, reference
from helpers.sshd import Board as SshBoard
from helpers.sshd import needs_sshd, pool_profile
from helpers.workers import until

from pipeline.core.measurement import Failure, Measurement
from pipeline.doctor import examine
from pipeline.errors import DeviceUnreachable, ProbeError
from pipeline.probe import pool as pool_module
from pipeline.probe.interface import Graph, MeasurementOptions, Workload
from pipeline.probe.pool import Board, PoolProbe, refused_boards
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.board_pool import connect_boards, pool_probe

QUICK = MeasurementOptions(1, memory=False, fresh=False)
FINAL = MeasurementOptions(1, memory=False, every_board=True)
NET = graph(conv_net(4))


class Slow(SimulatedProbe):
    """A simulated board that waits before it measures, or that loses its connection."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        super().__init__(profile(), reference())
        self.wait, self.measured, self.active, self.at_once = wait, 0, 0, 0

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        self.active += 1
        self.at_once = max(self.at_once, self.active)
        try:
            self.wait()
            self.measured += 1
            return super().measure(graph, options, load)
        finally:
            self.active -= 1


def pool_of_probes(
    probes: dict[str, Slow],
    notices: list[str] | None = None,
    patience_s: float = 10.0,
    reconnect: Callable[[], None] = lambda: None,
) -> PoolProbe:
    boards = [Board(name, probe, reconnect) for name, probe in probes.items()]
    notify = (notices if notices is not None else []).append
    return PoolProbe(boards, every_board=False, patience_s=patience_s, notify=notify)


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RETRY_S", 0.02)


def board_of(found: Measurement | Failure) -> str:
    assert isinstance(found, Measurement), found
    return found.board


def test_one_caller_measures_on_the_first_board() -> None:
    """so what compares times without a reference compares those of one board"""
    with closing(pool_of_probes({"a": Slow(), "b": Slow()})) as pool:
        assert [board_of(pool.measure(NET, QUICK)) for _ in range(3)] == ["a", "a", "a"]


def test_each_board_measures_one_plan_at_a_time_and_a_slow_one_slows_only_itself() -> None:
    """The slow board ends its first plan only when the other has measured five"""
    fast = Slow()
    slow = Slow(lambda: until(lambda: fast.measured >= 5))
    with closing(pool_of_probes({"slow": slow, "fast": fast})) as pool, ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: board_of(pool.measure(NET, QUICK)), range(6)))

    assert sorted(found) == ["fast"] * 5 + ["slow"]
    assert (slow.at_once, fast.at_once) == (1, 1)


def test_the_plan_of_a_lost_board_is_measured_on_another_one_and_never_on_two_at_once() -> None:
    notices: list[str] = []
    active: list[str] = []
    twice: list[str] = []

    def lost() -> None:
        active.append("bad")
        twice.extend(active[:-1])
        active.remove("bad")
        raise DeviceUnreachable("bad: no route to host")

    def fine() -> None:
        active.append("good")
        twice.extend(active[:-1])
        active.remove("good")

    def gone() -> None:
        raise DeviceUnreachable("bad: still no route to host")

    good = Slow(fine)
    with closing(pool_of_probes({"bad": Slow(lost), "good": good}, notices, reconnect=gone)) as pool:
        assert [board_of(pool.measure(NET, QUICK)) for _ in range(3)] == ["good"] * 3

    assert (good.measured, twice) == (3, [])
    assert notices == ["bad is lost (bad: no route to host); its plan is measured on another board"]


def test_a_lost_board_that_answers_again_is_back_in_the_pool() -> None:
    failures = iter([True])
    notices: list[str] = []

    def once() -> None:
        if next(failures, False):
            raise ProbeError("a: the link was lost")

    with closing(pool_of_probes({"a": Slow(once), "b": Slow()}, notices)) as pool:
        assert board_of(pool.measure(NET, QUICK)) == "b"
        assert until(lambda: "a is back in the pool" in notices)
        assert until(lambda: board_of(pool.measure(NET, QUICK)) == "a")


def test_a_verdict_is_measured_on_every_board_and_waits_for_two() -> None:
    """One of the two is lost at first; then it is back, and the other has not measured twice"""
    failures = iter([True])

    def once() -> None:
        if next(failures, False):
            raise ProbeError("b: the link was lost")

    steady = Slow()
    with closing(pool_of_probes({"a": steady, "b": Slow(once)})) as pool:
        found = pool.measure(NET, FINAL)

    assert isinstance(found, Measurement)
    assert [each.board for each in found.boards] == ["a", "b"]
    assert steady.measured == 1


def test_a_pool_without_enough_boards_ends_the_run_with_what_to_do() -> None:
    def lost() -> None:
        raise DeviceUnreachable("no route to host")

    with (
        closing(pool_of_probes({"a": Slow(), "b": Slow(lost)}, patience_s=0.05, reconnect=lost)) as pool,
        pytest.raises(
            DeviceUnreachable, match=r"1 of 2 boards can be reached, and at least 2 must measure \(b: no route to host\)"
        ),
    ):
        pool.measure(NET, FINAL)


def test_a_file_that_fails_fails_on_every_board() -> None:
    with closing(pool_of_probes({"a": Slow(), "b": Slow()})) as pool:
        assert isinstance(pool.measure(replace(graph(conv_net(4)), source=b"no ONNX file"), FINAL), Failure)


def test_closing_the_pool_ends_a_caller_that_waits_for_a_board() -> None:
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait(10)

    pool = pool_of_probes({"a": Slow(hold), "b": Slow(hold)})
    with ThreadPoolExecutor(3) as callers:
        waiting = [callers.submit(pool.measure, NET, QUICK) for _ in range(3)]
        assert started.wait(10)
        assert until(lambda: sum(board.probe.active for board in pool.boards) == 2)  # type: ignore[attr-defined]
        pool.close()
        go.set()
        failed = [each.exception(10) for each in waiting]

    assert sum(isinstance(each, ProbeError) for each in failed) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"onnxruntime": "1.20.1"}, "b: onnxruntime 1.20.1, but a has 1.22.0; it is left out of the pool"),
        ({"machine": "Cortex-A53"}, "b: the processor Cortex-A53, but a has cpu; it is left out of the pool"),
        ({"identity": "another", "system": "Linux 6.1"}, None),
    ],
)
def test_a_board_with_another_runtime_or_processor_is_refused_in_one_line(changes: dict[str, str], reason: str | None) -> None:
    refused = refused_boards([("a", FINGERPRINT), ("b", replace(FINGERPRINT, **changes)), ("c", FINGERPRINT)], None)

    assert list(refused) == (["b"] if reason else [])
    assert not reason or refused["b"].startswith(reason)
    assert not reason or "\n" not in refused["b"]


def test_the_version_of_the_profile_decides_who_is_refused() -> None:
    refused = refused_boards([("a", replace(FINGERPRINT, onnxruntime="1.20.1")), ("b", FINGERPRINT)], "1.22.0")

    assert list(refused) == ["a"]


# ---------------------------------------------------------------- over ssh


@pytest.fixture
def two(tmp_path: Path) -> Iterator[dict[str, SshBoard]]:
    boards = {name: SshBoard(tmp_path / name) for name in ("left", "right")}
    for board in boards.values():
        board.start()
    yield boards
    for board in boards.values():
        board.stop()


@needs_sshd
def test_two_boards_over_ssh_measure_a_verdict_and_one_of_them_may_vanish(tmp_path: Path, two: dict[str, SshBoard]) -> None:
    """Both answer; the server of one is stopped; the other measures alone; it is started again, and both measure"""
    notices: list[str] = []
    pooled = pool_profile(two, tmp_path)
    with closing(pool_probe(pooled, connect_boards(pooled, notices.append), reference(), notices.append)) as pool:
        first = pool.measure(NET, FINAL)
        two["left"].stop()
        alone = board_of(pool.measure(graph(conv_net(5)), QUICK))
        two["left"].start()
        assert until(lambda: "left is back in the pool" in notices)
        again = pool.measure(NET, FINAL)

    assert isinstance(first, Measurement)
    assert isinstance(again, Measurement)
    assert [[each.board for each in found.boards] for found in (first, again)] == [["left", "right"]] * 2
    assert alone == "right"


@needs_sshd
def test_doctor_examines_each_board_and_then_the_pool(tmp_path: Path) -> None:
    """Neither server runs"""
    boards = {name: SshBoard(tmp_path / name) for name in ("left", "right")}
    found = list(examine(pool_profile(boards, tmp_path)))

    assert [(each.what, each.level) for each in found] == [
        ("left: reachable", "failure"),
        ("right: reachable", "failure"),
        ("pool", "failure"),
    ]
    assert "0 of 2 boards can be used" in found[-1].found


@needs_sshd
def test_a_board_that_cannot_be_reached_leaves_too_few(tmp_path: Path, two: dict[str, SshBoard]) -> None:
    two["right"].stop()

    with pytest.raises(ProbeError, match=r"device.hosts: 1 of 2 boards can be used, and a pool needs at least 2: .*right"):
        connect_boards(pool_profile(two, tmp_path), print)
