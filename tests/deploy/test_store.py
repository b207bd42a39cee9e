"""The store on a device: whose folder it is, what is removed from it, and what looking at it changes. The agent is real and local."""

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.artifacts import NOW, TIMEOUTS, Maker, profile_of
from helpers.faults import tree

from pipeline.core.profile import Profile
from pipeline.deploy.deliver import deliver, look, roll_back
from pipeline.deploy.manifest import Trust
from pipeline.deploy.protocol import Begun, StoreStatus
from pipeline.deploy.store import AGENT, Store
from pipeline.errors import CompressError, DeliveryError, NoPrevious

MARKER = ".compress-store"
FILES = {"infer.py": {"sha256": "0" * 64, "size_bytes": 4000}}


def opened(profile: Profile) -> StoreStatus:
    """What a shipment finds; it makes the store, or recovers what is half done there."""
    with Store(profile, TIMEOUTS, write=True, make=True) as store:
        return store.status


def manifest_of(version: int, name: str = "net") -> tuple[str, bytes]:
    text = json.dumps({"name": name, "version": version, "files": FILES}).encode()
    return hashlib.sha256(text).hexdigest(), text


def place(folder: Path, version: int) -> str:
    """A release as a shipment leaves it, as far as its hash goes."""
    release, text = manifest_of(version)
    (folder / "releases" / release).mkdir(parents=True)
    (folder / "releases" / release / "manifest.json").write_bytes(text)
    return release


def record(folder: Path, *releases: str) -> None:
    """What was committed, newest first."""
    history = [{"release": each, "name": "net", "version": 1, "at": "2026-06-01"} for each in releases]
    (folder / "state.json").write_text(json.dumps({"format": 1, "history": history, "last": "committed"}))


def store_of_an_older_version(folder: Path) -> str:
    """Without the marker; one release is committed and serves."""
    release = place(folder, 1)
    (folder / "incoming").mkdir()
    record(folder, release)
    (folder / "current").symlink_to(f"releases/{release}")
    return release


def begin(store: Store, version: int) -> Begun:
    """The first step of a shipment, which makes room."""
    release, text = manifest_of(version)
    order = {"do": "begin", "release": release, "names": list(FILES), "envelope": [["manifest.json", len(text)]]}
    return store.ask(order, Begun, text)


# ---------------------------------------------------------------- whose folder it is


def web_site(folder: Path) -> None:
    """The layout of common deployment tools, which looks much like a store."""
    for path in ("releases/20260101/index.html", "incoming/upload.part", "state.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("precious")
    (folder / "current").symlink_to("releases/20260101")


def one_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")


def record_of_another_program(folder: Path) -> None:
    """It reads as ours, and no release has the hash that it is called by."""
    store_of_an_older_version(folder)
    for path in (folder / "releases").glob("*/manifest.json"):
        path.write_text("{}")


@pytest.mark.parametrize("fill", [web_site, one_file, record_of_another_program])
@pytest.mark.parametrize("command", ["ship", "status", "rollback"])
def test_a_folder_that_is_no_store_is_refused_and_left_as_it_is(
    folder: Path, profile: Profile, maker: Maker, fill: Callable[[Path], None], command: str
) -> None:
    fill(folder)
    before = tree(folder)
    actions = {
        "ship": lambda: deliver(profile, maker.make("new", profile), Trust(maker.trusted, NOW), timeouts=TIMEOUTS),
        "status": lambda: look(profile, TIMEOUTS),
        "rollback": lambda: roll_back(profile, timeouts=TIMEOUTS),
    }

    with pytest.raises(DeliveryError, match="is not empty, and this program did not create it; nothing was changed"):
        actions[command]()
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("~/.", "without . and .. in it"),
        ("~/models/..", "without . and .. in it"),
        ("/../../x", "without . and .. in it"),
        ("~/./models", "without . and .. in it"),
        ("//", "without . and .. in it"),
        ("HOME", "is or contains the home folder"),
        ("HOME/", "is or contains the home folder"),
        ("PARENT", "is or contains the home folder"),
        ("~/linked/compress", "is a link; write the folder it points to: PARENT/real/compress"),
        ("~/linked", "is a link; write the folder it points to: PARENT/real"),
        ("~/file/compress", "file is not a folder"),
    ],
)
def test_a_path_that_is_not_plainly_a_folder_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, reason: str
) -> None:
    home = tmp_path / "home"
    for each in (home, tmp_path / "real"):
        each.mkdir()
    (home / "linked").symlink_to(tmp_path / "real")
    (home / "file").write_text("precious")
    monkeypatch.setenv("HOME", str(home))
    before = tree(tmp_path)

    def named(text: str) -> str:
        return text.replace("HOME", str(home)).replace("PARENT", str(tmp_path))

    for write in (True, False):
        with pytest.raises(DeliveryError) as refused:
            Store(profile_of(named(store)), TIMEOUTS, write=write, make=write)
        assert named(reason) in str(refused.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("below", ["", "compress"], ids=["it", "a new one in it"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, below: str) -> None:
    """As root any folder could be written to; nobody else can give a folder away, and so takes one of root's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if os.geteuid() == 0:
        os.chown(theirs, 65534, -1)
    elif below:
        pytest.skip("only root can make a folder of another user")
    else:
        theirs = Path("/usr")

    with pytest.raises(DeliveryError, match=r"belongs to another user, .*; choose a folder of your own"):
        opened(profile_of(theirs / below))
    assert not (theirs / "compress").exists()


def test_a_new_store_is_marked_and_an_empty_folder_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/store", "empty"):
        opened(profile_of(tmp_path / name))

        assert json.loads((tmp_path / name / MARKER).read_text()) == {"made_by": "edge-compress", "format": 1}
        assert look(profile_of(tmp_path / name)).foreign == ()


def test_making_a_store_that_was_cut_off_is_gone_on_with(folder: Path, profile: Profile) -> None:
    """killed between the writing of the marker and its rename"""
    folder.mkdir()
    (folder / ".writing-abcdefgh").write_text("{")

    assert opened(profile).history == ()
    assert {path.name for path in folder.iterdir()} == {MARKER, "lock", "incoming", "releases"}


@pytest.mark.parametrize("witness", ["state.json", "pending.json"])
def test_a_store_of_an_older_version_is_taken_and_marked(folder: Path, profile: Profile, witness: str) -> None:
    release = store_of_an_older_version(folder)
    if witness == "pending.json":
        (folder / "state.json").unlink()
        (folder / witness).write_text(json.dumps({"format": 1, "token": "t", "to": "0" * 64, "from": release}))
    before = tree(folder)

    assert look(profile).current == release
    assert tree(folder) == before
    assert opened(profile).current == release
    assert (folder / MARKER).is_file()


def test_a_store_of_a_newer_version_is_refused(folder: Path, profile: Profile) -> None:
    opened(profile)
    (folder / MARKER).write_text(json.dumps({"made_by": "edge-compress", "format": 2}))

    with pytest.raises(DeliveryError, match="was created by a newer version of compress; update compress"):
        look(profile)


def test_going_back_makes_no_store(folder: Path, profile: Profile) -> None:
    with pytest.raises(NoPrevious, match="nothing was shipped to"):
        roll_back(profile, timeouts=TIMEOUTS)
    assert not folder.exists()


# ---------------------------------------------------------------- what is removed


def test_only_what_was_shipped_is_removed(folder: Path, profile: Profile) -> None:
    """Three old releases make room: one as it was shipped, one with notes in it, one whose manifest is another's."""
    opened(profile)
    serving, sound, noted, other = (place(folder, version) for version in (1, 2, 3, 4))
    record(folder, serving)
    (folder / "current").symlink_to(f"releases/{serving}")
    (folder / "releases" / noted / "notes.txt").write_text("precious")
    (folder / "releases" / other / "manifest.json").write_text("precious")
    for path in ("releases/2026-01/index.html", "incoming/upload.part/data", "incoming/0123456789abcdef/data", "notes.txt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("precious")
    with Store(profile, TIMEOUTS, write=True) as store:
        begin(store, 5)

    assert {path.name for path in (folder / "releases").iterdir()} == {serving, noted, other, "2026-01"}
    assert not (folder / "releases" / sound).exists()
    assert "upload.part" in {path.name for path in (folder / "incoming").iterdir()}
    assert not (folder / "incoming" / "0123456789abcdef").exists()
    assert sorted(look(profile).foreign) == sorted(
        ["notes.txt", "releases/2026-01/", f"releases/{noted}/notes.txt", f"releases/{other}/", "incoming/upload.part"]
    )


def test_a_damaged_release_with_a_foreign_file_in_it_is_not_replaced(folder: Path, profile: Profile) -> None:
    opened(profile)
    release = place(folder, 1)
    (folder / "releases" / release / "notes.txt").write_text("precious")

    with (
        Store(profile, TIMEOUTS, write=True) as store,
        pytest.raises(DeliveryError, match=r"contains notes\.txt, which was not shipped; move it away"),
    ):
        begin(store, 1)
    assert (folder / "releases" / release / "notes.txt").read_text() == "precious"


def test_a_file_where_the_link_should_be_is_not_replaced(folder: Path, profile: Profile) -> None:
    opened(profile)
    record(folder, place(folder, 1))
    (folder / "current").write_text("precious")

    with pytest.raises(DeliveryError, match="current is a file, not a link; move it away"):
        opened(profile)
    assert (folder / "current").read_text() == "precious"


# ---------------------------------------------------------------- looking changes nothing


def names_nothing(folder: Path, release: str) -> None:
    record(folder, "0" * 64)


def not_committed(folder: Path, release: str) -> None:
    new = place(folder, 2)
    (folder / "pending.json").write_text(json.dumps({"format": 1, "token": "t", "to": new, "from": release}))
    (folder / "current").unlink()
    (folder / "current").symlink_to(f"releases/{new}")


def cut_off(folder: Path, release: str) -> None:
    (folder / "state.json").write_text('{"format": 1, "hist')


def led_elsewhere(folder: Path, release: str) -> None:
    (folder / "current").unlink()
    (folder / "current").symlink_to("/nowhere")


def left_behind(folder: Path, release: str) -> None:
    (folder / ".writing-abcdefgh").write_text("{")
    (folder / "incoming").rmdir()
    (folder / "lock").unlink()


def odd_version(folder: Path, release: str) -> None:
    """A record that parses, with figures of the wrong kind in it."""
    text = json.dumps({"format": 1, "history": [{"release": release, "version": "seven"}], "last": ["\x1b[2J"]})
    (folder / "state.json").write_text(text)


DAMAGES = [names_nothing, not_committed, cut_off, led_elsewhere, left_behind, odd_version]


@pytest.mark.parametrize("damage", DAMAGES)
def test_looking_changes_nothing_and_the_next_shipment_repairs(
    folder: Path, profile: Profile, damage: Callable[[Path, str], None]
) -> None:
    opened(profile)
    release = store_of_an_older_version_in(folder)
    damage(folder, release)
    before = tree(folder)
    look(profile)

    assert tree(folder) == before
    found = opened(profile)
    assert (found.current, found.history[0].release, found.pending) == (release, release, None)
    assert (folder / "current").resolve() == folder / "releases" / release


def store_of_an_older_version_in(folder: Path) -> str:
    (folder / "incoming").rmdir()
    return store_of_an_older_version(folder)


# ---------------------------------------------------------------- what is no regular file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def second_name(path: Path) -> None:
    (path.parent.parent / "elsewhere").write_text("precious")
    path.hardlink_to(path.parent.parent / "elsewhere")


def directory(path: Path) -> None:
    path.mkdir()


def device_node(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("this system lets nobody make a device node")


@pytest.mark.parametrize("put", [fifo, link, second_name, directory, device_node])
@pytest.mark.parametrize("name", ["state.json", "pending.json", "lock"])
def test_a_record_that_is_no_regular_file_is_refused_and_nobody_waits(
    folder: Path, profile: Profile, put: Callable[[Path], None], name: str
) -> None:
    opened(profile)
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    before = tree(folder)

    for write in (False, True):
        with pytest.raises(DeliveryError, match=rf"{name} is not a regular file.*; move {folder}/{name} away"):
            Store(profile, TIMEOUTS, write=write)
    changed = {path for path, facts in tree(folder).items() if facts != before.get(path)}
    assert changed <= ({str(folder / "lock")} if name != "lock" else set())


@pytest.mark.parametrize("put", [fifo, link, directory, device_node])
def test_a_marker_that_is_no_regular_file_marks_nothing(folder: Path, profile: Profile, put: Callable[[Path], None]) -> None:
    opened(profile)
    (folder / MARKER).unlink()
    put(folder / MARKER)

    with pytest.raises(DeliveryError, match="this program did not create it"):
        look(profile)


@pytest.mark.parametrize("name", ["incoming", "releases"])
def test_a_folder_of_the_store_that_is_none_is_refused(folder: Path, profile: Profile, tmp_path: Path, name: str) -> None:
    opened(profile)
    (folder / name).rmdir()
    (folder / name).symlink_to(tmp_path)

    with pytest.raises(DeliveryError, match=f"{name} is not a folder; move it away"):
        opened(profile)


def test_a_record_of_many_megabytes_is_set_aside(folder: Path, profile: Profile) -> None:
    opened(profile)
    release = store_of_an_older_version_in(folder)
    with (folder / "state.json").open("ab") as file:
        file.write(b" " * 2**21)

    assert opened(profile).current == release
    assert len(list(folder.glob("state.json.*.broken"))) == 1


# ---------------------------------------------------------------- who may read it


@pytest.fixture
def private_umask() -> Iterator[None]:
    """Of devices that keep their users from each other; the agent inherits it."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in paths}


def readable_by_all(folder: Path) -> dict[str, str]:
    """Folders can be entered, files read; the lock is its user's, since whoever can open it can hold it."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return {path.name: "600" if path.name == "lock" else "755" if path.is_dir() else "644" for path in paths}


@pytest.mark.usefixtures("private_umask")
def test_another_user_s_program_can_read_what_serves_whatever_the_umask(tmp_path: Path, maker: Maker) -> None:
    profile = profile_of(tmp_path / "above" / "store")
    deliver(profile, maker.make("new", profile), Trust(maker.trusted, NOW), timeouts=TIMEOUTS)

    assert modes(tmp_path / "above") == readable_by_all(tmp_path / "above")


@pytest.mark.usefixtures("private_umask")
def test_a_store_that_an_older_version_made_unreadable_is_opened_to_all(folder: Path, profile: Profile) -> None:
    release = store_of_an_older_version(folder)
    foreign = folder / "releases" / release / "notes.txt"
    foreign.write_text("precious")
    opened(profile)

    not_opened = {foreign.name: "600", "state.json": "600"}  # the record is no part of what serves
    assert modes(folder) == {**readable_by_all(folder), **not_opened}


# ---------------------------------------------------------------- a slow link


def frame(message: dict[str, Any], blob_bytes: int) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack(">IQ", len(text), blob_bytes) + text


def test_what_arrived_of_a_block_is_kept_when_the_connection_is_lost(folder: Path, profile: Profile) -> None:
    """1,000 of 4,000 bytes arrive; the next shipment is told so"""
    release, text = manifest_of(1)
    agent = subprocess.Popen([sys.executable, str(AGENT), "serve", "x"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert agent.stdin
    for request, blob in (
        ({"do": "open", "store": str(folder), "silence_s": 20, "write": True, "make": True}, b""),
        ({"do": "begin", "release": release, "names": ["infer.py"], "envelope": [["manifest.json", len(text)]]}, text),
    ):
        agent.stdin.write(frame(request, len(blob)) + blob)
    agent.stdin.write(frame({"do": "put", "name": "infer.py", "offset": 0}, 4000) + b"#" * 1000)
    agent.stdin.close()
    assert agent.wait(20) == 0

    with Store(profile, TIMEOUTS, write=True) as store:
        assert begin(store, 1).have["infer.py"] == (1000, hashlib.sha256(b"#" * 1000).hexdigest())


def test_a_block_that_is_refused_is_read_to_its_end(folder: Path, profile: Profile) -> None:
    """the next request is found behind it"""
    with Store(profile, TIMEOUTS, write=True, make=True) as store:
        begin(store, 1)
        with pytest.raises(CompressError, match=r"infer\.py is larger than in the manifest"):
            store.ask({"do": "put", "name": "infer.py", "offset": 0}, Begun, b"#" * 300_000)

        assert begin(store, 1).have == {"manifest.json": (len(manifest_of(1)[1]), manifest_of(1)[0])}
