"""The guards of a shipment, each at the moment for which it is there. The agent is real and local."""

import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.artifacts import NOW, TIMEOUTS, Maker
from helpers.workers import gone, until

from pipeline.core.profile import Profile
from pipeline.deploy.deliver import Delivered, deliver, roll_back
from pipeline.deploy.manifest import Trust
from pipeline.deploy.store import Timeouts
from pipeline.errors import CompressError, RolledBack, TransferCorrupt, Unhealthy


def ship(profile: Profile, maker: Maker, artifact: Path, timeouts: Timeouts = TIMEOUTS) -> Delivered:
    return deliver(profile, artifact, Trust(maker.trusted, NOW), timeouts=timeouts)


def processes(word: str, folder: Path) -> list[int]:
    """The agent's processes for that store: `watch` or `health`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if word in words and any(each.startswith(str(folder)) for each in words):
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CompressError]:
    """Ships, lets something happen at a point, goes on: how it ended."""

    def run(point: str, happens: Callable[[], object], action: Callable[[], object]) -> CompressError:
        pause = tmp_path / "pause"
        monkeypatch.setenv("COMPRESS_FAULT", f"{point}:pause={pause}")
        found: list[CompressError] = []

        def act() -> None:
            try:
                action()
            except CompressError as problem:
                found.append(problem)

        thread = threading.Thread(target=act)
        thread.start()
        assert until(lambda: pause.with_suffix(".reached").exists() or found), "it was not reached"
        happens()
        pause.with_suffix(".go").touch()
        thread.join(60)
        return found[0]

    return run


def test_a_release_whose_manifest_was_altered_is_not_gone_back_to(folder: Path, profile: Profile, maker: Maker) -> None:
    """its files are those of the altered manifest, so only the manifest's own hash tells"""
    old = ship(profile, maker, maker.make("old", profile, seed=1, version=1)).release
    ship(profile, maker, maker.make("new", profile, seed=2, version=2))
    shutil.copy(maker.folder / "new" / "serving.json", folder / "releases" / old / "serving.json")
    path = folder / "releases" / old / "manifest.json"
    content = json.loads(path.read_bytes())
    text = (folder / "releases" / old / "serving.json").read_bytes() + b" "
    (folder / "releases" / old / "serving.json").write_bytes(text)
    content["files"]["serving.json"] = {"sha256": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
    path.write_text(json.dumps(content))

    with pytest.raises(TransferCorrupt, match=f"the manifest of {old[:12]} differs from the one that was shipped"):
        roll_back(profile, timeouts=TIMEOUTS)


def test_a_commit_after_the_deadline_is_refused_though_the_watchdog_is_gone(
    folder: Path, profile: Profile, maker: Maker, paused: Callable[..., CompressError]
) -> None:
    """as on systems that end a user's processes at logout"""
    artifact = maker.make("new", profile)
    ended = threading.Event()

    def late() -> None:
        for pid in processes("watch", folder):
            os.kill(pid, signal.SIGKILL)
        ended.wait(4.5)  # past the deadline of four seconds

    found = paused("commit", late, lambda: ship(profile, maker, artifact, Timeouts(20, 60, commit_s=4)))

    assert isinstance(found, RolledBack), found
    assert not (folder / "current").is_symlink()


def test_a_commit_of_another_s_switch_is_refused(
    folder: Path, profile: Profile, maker: Maker, paused: Callable[..., CompressError]
) -> None:
    def other() -> None:
        content = json.loads((folder / "pending.json").read_bytes())
        (folder / "pending.json").write_text(json.dumps({**content, "token": "another"}))

    found = paused("commit", other, lambda: ship(profile, maker, maker.make("new", profile)))

    assert isinstance(found, RolledBack), found


def test_what_is_confirmed_is_what_current_leads_to(
    folder: Path, profile: Profile, maker: Maker, paused: Callable[..., CompressError]
) -> None:
    """somebody points it elsewhere between the switch and the check"""

    def elsewhere() -> None:
        (folder / "current").unlink()
        (folder / "current").symlink_to("releases")

    found = paused("confirm", elsewhere, lambda: ship(profile, maker, maker.make("new", profile)))

    assert isinstance(found, Unhealthy), found
    assert "`current` does not point to the release" in str(found)


def test_a_release_that_does_not_work_through_current_is_not_committed(folder: Path, profile: Profile, maker: Maker) -> None:
    """its infer.py does not bear the name of the link that everybody loads it by"""
    text = (Path(maker.make("sound", profile)) / "infer.py").read_text()
    text += "\n\nif Path(__file__).parent.name == 'current':\n    raise RuntimeError('not by that name')\n"
    artifact = maker.make("new", profile, changes={"infer.py": text.encode()})

    with pytest.raises(Unhealthy, match="confirm: load-error: RuntimeError: not by that name"):
        ship(profile, maker, artifact)
    assert not (folder / "current").is_symlink()


def test_a_health_check_ends_with_the_agent_that_asked_for_it(folder: Path, profile: Profile, maker: Maker) -> None:
    """a killed agent can end nothing; the kernel ends its child"""
    text = (Path(maker.make("sound", profile)) / "infer.py").read_text() + "\n\nimport time\ntime.sleep(600)\n"
    artifact = maker.make("new", profile, changes={"infer.py": text.encode()})

    def act() -> None:
        with suppress(CompressError):
            ship(profile, maker, artifact)

    thread = threading.Thread(target=act)
    thread.start()
    # it is in infer.py when it reads nothing more: numpy and onnxruntime are imported, and so the kernel has been asked
    assert until(lambda: any("onnxruntime" in Path(f"/proc/{pid}/maps").read_text() for pid in processes("health", folder)))
    children = processes("health", folder)
    for pid in children:
        os.kill(int(re.findall(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]), signal.SIGKILL)

    assert gone(children)
    thread.join(60)


@pytest.mark.parametrize("limit", ["NaN", "Infinity", '"fast"', "[]"])
def test_a_limit_that_nothing_exceeds_is_refused(profile: Profile, maker: Maker, limit: str) -> None:
    """signed, and still no figure to hold a release to"""
    text = f'{{"limits": {{"latency_p90_ms": {limit}}}, "tolerance": 0.01}}'

    with pytest.raises(Unhealthy, match=r"load-error: serving\.json is malformed"):
        ship(profile, maker, maker.make("new", profile, changes={"serving.json": text.encode()}))
