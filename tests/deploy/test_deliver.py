"""An artifact on its way to a device, at the other end of a real OpenSSH connection."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.artifacts import INPUTS, NOW, TIMEOUTS, Maker, answers, serves, store_of
from helpers.graphs import conv_net
from helpers.sshd import Board, needs_sshd

from pipeline.core.profile import Profile
from pipeline.deploy.deliver import Delivered, deliver, look, roll_back
from pipeline.deploy.manifest import Trust
from pipeline.deploy.store import Store
from pipeline.errors import DeliveryError, DeviceStorage, NoPrevious, OlderVersion, OtherDevice, Unhealthy
from pipeline.packaging.serving import SERVED_FILES

pytestmark = needs_sshd
OLD, NEW = answers(conv_net(8, seed=1)), answers(conv_net(8, seed=2))


@pytest.fixture
def profile(board: Board) -> Profile:
    return board.profile()


def ship(profile: Profile, maker: Maker, folder: Path, *, budget: bool = True) -> Delivered:
    return deliver(profile, folder, Trust(maker.trusted, NOW), timeouts=TIMEOUTS, budget=budget)


def whole(store: Path) -> bool:
    """Nothing that arrives or leaves, and each release has all its files."""
    files = {"model.onnx", "serving.json", "infer.py", "golden-inputs.npy", "golden-outputs.npy", "manifest.json", "manifest.sig"}
    kept = (".current-back", ".compress-store")
    leftovers = [path for path in store.iterdir() if path.name.startswith(".") and path.name not in kept]
    return all({path.name for path in release.iterdir()} == files for release in (store / "releases").iterdir()) and not leftovers


def test_an_artifact_is_placed_and_serves(board: Board, profile: Profile, maker: Maker) -> None:
    artifact = maker.make("new", profile, seed=2)
    done = ship(profile, maker, artifact)

    assert done.changed
    assert done.health is not None
    assert done.health.golden_inputs == 3
    np.testing.assert_allclose(serves(store_of(board)), NEW, rtol=1e-5)
    assert str((store_of(board) / "current").readlink()) == f"releases/{done.release}"
    assert whole(store_of(board))
    assert not (store_of(board) / "current" / "weights.safetensors").exists()


def test_shipping_it_again_changes_nothing(profile: Profile, maker: Maker) -> None:
    artifact = maker.make("new", profile)
    first, before = ship(profile, maker, artifact), look(profile)
    again = ship(profile, maker, artifact)

    assert again == Delivered("board", first.release, 1, changed=False, sent_bytes=0)
    assert replace(look(profile), free_bytes=0) == replace(before, free_bytes=0)


def test_the_release_before_stays_and_can_be_gone_back_to(board: Board, profile: Profile, maker: Maker) -> None:
    old = ship(profile, maker, maker.make("old", profile, seed=1))
    ship(profile, maker, maker.make("new", profile, seed=2))
    back = roll_back(profile, timeouts=TIMEOUTS)

    assert back.release == old.release
    np.testing.assert_allclose(serves(store_of(board)), OLD, rtol=1e-5)
    with pytest.raises(NoPrevious, match="board: previous: there is no release before the active one; ship an artifact first"):
        roll_back(profile, timeouts=TIMEOUTS)


def test_two_releases_are_kept(board: Board, profile: Profile, maker: Maker) -> None:
    shipped = [ship(profile, maker, maker.make(f"v{i}", profile, seed=i, version=i)).release for i in (1, 2, 3)]

    assert sorted(path.name for path in (store_of(board) / "releases").iterdir()) == sorted(shipped[1:])


def test_an_older_version_is_refused(board: Board, profile: Profile, maker: Maker) -> None:
    ship(profile, maker, maker.make("new", profile, seed=2, version=8))

    with pytest.raises(OlderVersion, match=r"begin: version 7 is older than the active version 8; .*`compress sign --version 9`"):
        ship(profile, maker, maker.make("old", profile, seed=1, version=7))
    assert whole(store_of(board))


def test_a_device_of_another_architecture_is_refused(board: Board, maker: Maker) -> None:
    """the profile says aarch64, and so does the manifest; the board is none"""
    other = board.profile().model_copy(update={"device": board.device(architecture="aarch64")})
    artifact = maker.make("new", other, architecture="aarch64")

    with pytest.raises(OtherDevice, match="board: architecture x86_64, but the profile says aarch64; nothing was sent"):
        ship(other, maker, artifact)
    assert not list((store_of(board) / "incoming").iterdir())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.onnx": conv_net(8, seed=3)}, r"wrong-output: golden input 0 is off by [\d.]+ % of the largest output"),
        ({"model.onnx": b"<html>404</html>"}, "load-error: InvalidProtobuf"),
        pytest.param(
            {"infer.py": b"import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"},
            "illegal-instruction: it ended with SIGILL",
            marks=pytest.mark.slow,  # a cell of the fault matrix
        ),
        ({"infer.py": b"import os\nos._exit(3)\n"}, "crashed: it ended with status 3"),
        ({"serving.json": b'{"limits": {"latency_p90_ms": "fast"}}'}, "load-error: serving.json is malformed"),
        pytest.param({"golden-outputs.npy": b"\x93NUMPY no such thing"}, "crashed: ValueError: ", marks=pytest.mark.slow),
    ],
    ids=["other weights", "no model", "illegal instruction", "exit", "serving", "golden outputs"],
)
def test_a_release_that_is_not_healthy_never_serves(
    board: Board, profile: Profile, maker: Maker, changes: dict[str, bytes], named: str
) -> None:
    ship(profile, maker, maker.make("old", profile, seed=1))

    with pytest.raises(Unhealthy, match=f"board: check: {named}.*; the old release stays active"):
        ship(profile, maker, maker.make("new", profile, seed=2, changes=changes))
    np.testing.assert_allclose(serves(store_of(board)), OLD, rtol=1e-5)
    assert len(list((store_of(board) / "releases").iterdir())) == 1


def test_what_python_compiles_on_the_way_does_no_harm(board: Board, profile: Profile, maker: Maker) -> None:
    """a program that imports infer.py from `current` leaves a folder there"""
    for name, seed in (("old", 1), ("new", 2)):
        ship(profile, maker, maker.make(name, profile, seed=seed))
        subprocess.run([sys.executable, "-c", "import infer"], cwd=store_of(board) / "current", env={}, check=True)

    assert (store_of(board) / "current" / "__pycache__").is_dir()
    assert not ship(profile, maker, maker.folder / "new").changed
    assert roll_back(profile, timeouts=TIMEOUTS).changed


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"latency_p90_ms": 1e-6}, "latency_p90_ms is .*, but the budget is 1e-06"),
        ({"peak_memory_bytes": 1000}, "peak_memory_bytes is .*, but the budget is 1000"),
    ],
)
def test_a_release_that_misses_its_budget_there_is_refused_unless_one_insists(
    profile: Profile, maker: Maker, limits: dict[str, float], named: str
) -> None:
    artifact = maker.make("new", profile, limits=limits)

    with pytest.raises(Unhealthy, match=f"over-budget: {named}"):
        ship(profile, maker, artifact)
    assert ship(profile, maker, artifact, budget=False).changed


def test_what_arrived_before_is_not_sent_again(board: Board, profile: Profile, maker: Maker) -> None:
    """half of the model lies there, and the golden inputs, one byte of which is wrong"""
    artifact = maker.make("new", profile)
    model, inputs = (artifact / "model.onnx").read_bytes(), bytearray((artifact / "golden-inputs.npy").read_bytes())
    inputs[-1] ^= 1
    with Store(profile, TIMEOUTS, write=True, make=True):
        left = store_of(board) / "incoming" / "0123456789abcdef"
        left.mkdir()
    (left / "model.onnx").write_bytes(model[: len(model) // 2])
    (left / "golden-inputs.npy").write_bytes(inputs)
    done = ship(profile, maker, artifact)

    sizes = json.loads((artifact / "manifest.json").read_bytes())["files"]
    whole_bytes = sum(facts["size_bytes"] for name, facts in sizes.items() if name != "weights.safetensors")
    assert done.sent_bytes == whole_bytes - len(model) // 2


def test_an_artifact_without_golden_inputs_is_refused_with_what_to_do(profile: Profile, maker: Maker) -> None:
    artifact = maker.make("new", profile)
    (artifact / "golden-inputs.npy").unlink()
    maker.sign(artifact)

    with pytest.raises(
        DeliveryError, match=r"golden-inputs.npy is missing, because an older version wrote this artifact; run `compress` again"
    ):
        ship(profile, maker, artifact)


def test_a_profile_without_a_host_has_nothing_to_ship_to(board: Board, maker: Maker) -> None:
    profile = board.profile()
    nowhere = profile.model_copy(update={"device": board.device(host=None)})

    with pytest.raises(DeliveryError, match=re.escape("device.host is not set")):
        ship(nowhere, maker, maker.make("new", profile))


def test_this_machine_is_a_device_too(tmp_path: Path, board: Board, maker: Maker) -> None:
    profile = board.profile()
    device = board.device(host=None, this_machine=True, store=str(tmp_path / "store"))
    here = profile.model_copy(update={"device": device})
    ship(here, maker, maker.make("new", profile, seed=2))

    np.testing.assert_allclose(serves(tmp_path / "store"), NEW, rtol=1e-5)
    assert INPUTS.shape == (3, 3, 16, 16)


def test_a_release_that_was_damaged_where_it_serves_is_replaced(board: Board, profile: Profile, maker: Maker) -> None:
    artifact = maker.make("new", profile, seed=2)
    ship(profile, maker, artifact)
    (store_of(board) / "current" / "golden-outputs.npy").write_bytes(b"worn out")
    done = ship(profile, maker, artifact)

    assert done.changed
    assert (store_of(board) / "current" / "golden-outputs.npy").read_bytes() == (artifact / "golden-outputs.npy").read_bytes()
    assert whole(store_of(board))


def test_when_what_serves_was_deleted_the_release_before_serves(board: Board, profile: Profile, maker: Maker) -> None:
    ship(profile, maker, maker.make("old", profile, seed=1))
    done = ship(profile, maker, maker.make("new", profile, seed=2))
    shutil.rmtree(store_of(board) / "releases" / done.release)
    assert look(profile).current is None
    with Store(profile, TIMEOUTS, write=True) as store:
        assert store.status.recovered == "`current` did not point to the committed release and was repaired"

    np.testing.assert_allclose(serves(store_of(board)), OLD, rtol=1e-5)


def test_a_folder_where_the_link_should_be_is_not_touched(board: Board, profile: Profile, maker: Maker) -> None:
    with Store(profile, TIMEOUTS, write=True, make=True):
        (store_of(board) / "current").mkdir()
        (store_of(board) / "current" / "mine").write_text("precious")

    with pytest.raises(DeliveryError, match="current is a folder, not a link; move it away"):
        ship(profile, maker, maker.make("new", profile))
    assert (store_of(board) / "current" / "mine").read_text() == "precious"


def test_looking_at_a_device_that_nothing_was_shipped_to_leaves_nothing_there(board: Board, profile: Profile) -> None:
    found = look(profile)

    assert (found.current, found.history, found.releases) == (None, (), ())
    assert not store_of(board).exists()


def test_a_first_release_that_is_not_committed_leaves_nothing_that_serves(board: Board, profile: Profile, maker: Maker) -> None:
    board.environment["COMPRESS_FAULT"] = "confirm:error=EIO"
    board.write_python()
    artifact = maker.make("new", profile)
    with pytest.raises(DeviceStorage, match="board: confirm: Input/output error"):
        ship(profile, maker, artifact)
    assert not (store_of(board) / "current").is_symlink()

    board.environment.clear()
    board.write_python()
    assert ship(profile, maker, artifact).changed


# ---------------------------------------------------------------- in which order things reach the disk


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here to record system calls: apt-get install strace")
def test_what_a_name_leads_to_is_on_the_disk_before_the_name_is(board: Board, profile: Profile, maker: Maker) -> None:
    """A power cut cannot be had in a test; the order of system calls can.

    Every file of the release is flushed before the release has its name, the folder of that name before `current` leads to it,
    and the record of a switch before the switch, the switch before the commit. A first attempt is not committed: that `current`
    is gone again is on the disk before the record of the switch is.
    """
    trace, undone = board.folder / "trace", board.folder / "undone"
    options = ("-f", "-y", "-qq", "-e", "trace=fsync,rename,unlink,symlink", "-o")
    board.environment["COMPRESS_FAULT"] = "confirm:error=EIO"
    board.write_python("strace", *options, str(undone))
    with pytest.raises(DeviceStorage):
        ship(profile, maker, maker.make("new", profile))
    kept = [line for line in undone.read_text().splitlines() if "unlink(" in line or "fsync(" in line]
    gone = next(index for index, line in enumerate(kept) if f'unlink("{store_of(board)}/current")' in line)
    assert f"{store_of(board)}>" in kept[gone + 1]
    assert "fsync(" in kept[gone + 1]

    board.environment.clear()
    shutil.rmtree(store_of(board))
    board.write_python("strace", *options, str(trace))
    done = ship(profile, maker, maker.folder / "new")
    store, release = str(store_of(board)), f"releases/{done.release}"
    calls = [line.partition(" ")[2].strip() for line in trace.read_text().splitlines()]

    def at(*words: str) -> int:
        """The first call with all of the words."""
        return next(index for index, call in enumerate(calls) if all(word in call for word in words))

    flushed = [at("fsync(", f"/{name}>") for name in (*SERVED_FILES, "manifest.json", "manifest.sig")]
    order = [
        max(flushed),
        next(index for index, call in enumerate(calls) if re.search(r"fsync\(.*/incoming/[0-9a-f]{16}>", call)),
        at("rename(", release),
        at("fsync(", f"{store}/releases>"),
        at("rename(", "/pending.json"),
        at("rename(", f'"{store}/current"'),
        at("rename(", "/state.json"),
        at("unlink(", "/pending.json"),
    ]
    assert order == sorted(order)
    for record in ("/pending.json", "/state.json", "/.compress-store"):
        renamed = at("rename(", record)
        assert "fsync(" in calls[renamed - 1], calls[renamed - 1 : renamed + 1]
        assert "/.writing-" in calls[renamed - 1]
    for renamed in order[4:8]:
        assert "fsync(" in calls[renamed + 1], calls[renamed : renamed + 2]
        assert f"{store}>" in calls[renamed + 1]


def test_a_device_without_numpy_is_told_so_by_the_health_check(board: Board, profile: Profile, maker: Maker) -> None:
    """placing needs the standard library alone; without numpy and onnxruntime, the health check says what is missing"""
    empty = board.folder / "empty"
    (empty / "numpy").mkdir(parents=True)
    (empty / "numpy" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")")
    board.environment["PYTHONPATH"] = str(empty)
    board.write_python()

    with pytest.raises(Unhealthy, match="board: check: load-error: ModuleNotFoundError: No module named 'numpy'"):
        ship(profile, maker, maker.make("new", profile))
