"""Several devices: canaries first, no more after too many failures, and nobody harmed by another's."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.artifacts import Maker, answers, serves, store_of
from helpers.graphs import conv_net
from helpers.profiles import command
from helpers.sshd import Board, needs_sshd

from pipeline.deploy.deliver import Delivered
from pipeline.deploy.fleet import Outcome, Rollout, Target, roll_out
from pipeline.deploy.inventory import read_inventory
from pipeline.deploy.manifest import Trust
from pipeline.errors import DeviceUnreachable, ProfileError

SOUND = Delivered("", "0" * 64, 1, True, 0)
Fleet = Callable[[int], list[Board]]


def targets(count: int) -> tuple[Target, ...]:
    from helpers.graphs import profile

    return tuple(Target(f"d{i}", profile()) for i in range(count))


def broken(*names: str) -> Callable[[Target], Delivered]:
    """An action that fails on those."""

    def action(target: Target) -> Delivered:
        if target.name in names:
            raise DeviceUnreachable(f"{target.name}: off")
        return SOUND

    return action


def results(outcomes: tuple[Outcome, ...]) -> dict[str, str]:
    return {outcome.name: outcome.result for outcome in outcomes}


def test_no_other_device_is_touched_when_the_canary_fails() -> None:
    found = roll_out(targets(4), broken("d0"), Rollout(canary=1))

    assert results(found) == {"d0": "failed", "d1": "not tried", "d2": "not tried", "d3": "not tried"}
    assert found[0] == Outcome("d0", "failed", None, "DeviceUnreachable", "d0: off", 41)


def test_a_failure_stops_nobody_while_failures_are_few() -> None:
    found = roll_out(targets(4), broken("d2"), Rollout(max_failures=0.25))

    assert results(found) == {"d0": "shipped", "d1": "shipped", "d2": "failed", "d3": "shipped"}


def test_no_further_device_is_begun_when_too_many_failed() -> None:
    found = roll_out(targets(10), broken("d2", "d4", "d5"), Rollout(parallel=1, max_failures=0.1))

    assert [name for name, result in results(found).items() if result == "not tried"] == ["d5", "d6", "d7", "d8", "d9"]


def test_not_one_failure_is_taken_at_zero_percent() -> None:
    found = roll_out(targets(3), broken("d1"), Rollout(parallel=1, max_failures=0.0))

    assert results(found) == {"d0": "shipped", "d1": "failed", "d2": "not tried"}


def test_so_many_are_under_way_at_a_time_and_no_more() -> None:
    here, most, lock, full = set[str](), 0, threading.Lock(), threading.Barrier(3)

    def action(target: Target) -> Delivered:
        nonlocal most
        with lock:
            here.add(target.name)
            most = max(most, len(here))
        full.wait(20)  # three are here at once, or this breaks
        with lock:
            here.discard(target.name)
        return SOUND

    found = roll_out(targets(6), action, Rollout(parallel=3, canary=0))

    assert set(results(found).values()) == {"shipped"}
    assert most == 3


def test_a_defect_met_on_one_device_is_that_device_s() -> None:
    def action(target: Target) -> Delivered:
        if target.name == "d1":
            raise ZeroDivisionError
        return SOUND

    found = roll_out(targets(4), action, Rollout())

    assert results(found) == {"d0": "shipped", "d1": "failed", "d2": "shipped", "d3": "shipped"}
    assert found[1].exit_code == 1


# ---------------------------------------------------------------- the inventory


def inventory(folder: Path, content: object) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_an_inventory_gives_each_device_its_profile_and_host(tmp_path: Path) -> None:
    path = inventory(
        tmp_path,
        {
            "devices": [
                {"name": "kitchen", "profile": "raspberrypi", "host": "pi@kitchen"},
                {"name": "hall", "profile": "raspberrypi5", "host": "pi@hall"},
            ],
            "groups": {"upstairs": ["hall"]},
        },
    )

    assert [(each.name, each.profile.device.host) for each in read_inventory(path)] == [
        ("kitchen", "pi@kitchen"),
        ("hall", "pi@hall"),
    ]
    assert [each.profile.device.name for each in read_inventory(path, "upstairs")] == ["Raspberry Pi 5 (8 GB)"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"devices": []}, "devices"),
        ({"devices": [{"name": "a", "profile": "local"}, {"name": "a", "profile": "local"}]}, "two devices have the name 'a'"),
        ({"devices": [{"name": "a", "profile": "local"}], "groups": {"g": ["b"]}}, "group 'g' has no device 'b'"),
        ({"devices": [{"name": "a", "profile": "local"}], "groups": {"g": []}}, "group 'g' names no device"),
        ({"devices": [{"name": "a;b", "profile": "local"}]}, "name"),
        ({"devices": [{"name": "a", "profile": "none such"}]}, "unknown profile 'none such'"),
        ({"devices": [{"name": "a", "profile": "raspberrypi", "host": "-oProxyCommand=x"}]}, "expected user@name"),
        ({"devices": [{"name": "a", "profile": "local", "port": 22}]}, "port"),
    ],
)
def test_a_malformed_inventory_is_refused(tmp_path: Path, content: object, complaint: str) -> None:
    with pytest.raises(ProfileError, match=complaint):
        read_inventory(inventory(tmp_path, content))


def test_an_unknown_group_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = inventory(tmp_path, {"devices": [{"name": "a", "profile": "local"}], "groups": {"g": ["a"]}})

    with pytest.raises(ProfileError, match=r"no group 'h' \(known groups: g\)"):
        read_inventory(path, "h")


# ---------------------------------------------------------------- on the command line, with real devices


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    boards: list[Board] = []

    def start(count: int) -> list[Board]:
        for index in range(count):
            boards.append(Board(tmp_path / f"board{index}"))
            boards[-1].start()
        return boards

    yield start
    for board in boards:
        board.stop()


def written(boards: list[Board], folder: Path) -> Path:
    """An inventory of `boards`, each with a profile of its own beside it."""
    for index, board in enumerate(boards):
        data = board.profile().model_dump(mode="json")
        data["device"]["memory"] = "1 GiB"
        (folder / f"board{index}.yaml").write_text(yaml.safe_dump(data))
    return inventory(folder, {"devices": [{"name": f"d{i}", "profile": f"board{i}.yaml"} for i in range(len(boards))]})


@needs_sshd
def test_a_bad_device_corrupts_no_other(tmp_path: Path, fleet: Fleet) -> None:
    """the third of four is off; then it is on, and the same command sees to it alone"""
    boards = fleet(4)
    maker = Maker(tmp_path / "artifacts")
    artifact = maker.make("new", boards[0].profile(), seed=2, days=36500)
    boards[2].stop()
    words = ("ship", "--inventory", written(boards, tmp_path), "--keys", maker.keys, "--json", artifact)
    failed = command(*words, "--results", tmp_path / "results.jsonl")

    assert failed.exit_code == 86
    assert "compress: 1 of 4 devices failed and 0 were not tried" in failed.stderr
    found = {each["name"]: each for each in json.loads(failed.stdout)["devices"]}
    assert [found[name]["result"] for name in ("d0", "d1", "d2", "d3")] == ["shipped", "shipped", "failed", "shipped"]
    assert (found["d2"]["error"], found["d2"]["exit_code"]) == ("DeviceUnreachable", 41)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == ["d0", "d1", "d2", "d3"]
    for board in (boards[0], boards[1], boards[3]):
        np.testing.assert_allclose(serves(store_of(board)), answers(conv_net(8, seed=2)), rtol=1e-5)

    boards[2].start()
    again = command(*words)

    assert again.exit_code == 0
    assert [each["result"] for each in json.loads(again.stdout)["devices"]] == ["unchanged", "unchanged", "shipped", "unchanged"]


@needs_sshd
def test_ship_status_rollback_on_the_command_line(tmp_path: Path, fleet: Fleet) -> None:
    (board,) = fleet(1)
    written([board], tmp_path)
    maker, target = Maker(tmp_path / "artifacts"), ("--target", tmp_path / "board0.yaml")
    for version in (1, 2):
        artifact = maker.make(f"v{version}", board.profile(), seed=version, version=version, days=36500)
        shipped = command("ship", *target, "--keys", maker.keys, artifact)
        assert shipped.exit_code == 0, shipped.output
        assert "shipped" in shipped.stdout
        assert f"version {version}" in shipped.stdout
    shown = command("status", *target)
    back = command("rollback", *target)
    after = json.loads(command("status", *target, "--json").stdout)["devices"][0]

    assert shown.exit_code == back.exit_code == 0
    assert "net version 2" in shown.stdout
    assert [each["version"] for each in after["history"]] == [1]
    once_more = command("rollback", *target)
    assert once_more.exit_code == 85
    assert once_more.stderr == "compress: board: previous: there is no release before the active one; ship an artifact first\n"


@pytest.mark.parametrize(
    "words",
    [
        ("ship", "artifact"),
        ("ship", "--target", "local", "--inventory", "x.yaml", "artifact"),
        ("status", "--target", "local", "--group", "g"),
        ("rollback", "--target", "local", "--target", "local"),
        ("rollback", "--target", "local", "--max-failures", "many"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_right(words: tuple[str, ...]) -> None:
    assert command(*words).exit_code == 2


@needs_sshd
def test_devices_do_not_wait_for_each_other_s_lock(tmp_path: Path, fleet: Fleet) -> None:
    """two stores on one host are two devices"""
    (board,) = fleet(1)
    maker = Maker(tmp_path / "artifacts")
    artifact = maker.make("new", board.profile(), seed=2)
    from helpers.artifacts import NOW

    from pipeline.deploy.deliver import deliver

    profiles = [
        board.profile().model_copy(update={"device": board.device(store=str(board.home / f"store{index}"))}) for index in range(2)
    ]
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda profile: deliver(profile, artifact, Trust(maker.trusted, NOW)), profiles))

    assert all(each.changed for each in done)
