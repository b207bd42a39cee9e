"""A device with faults during shipping, and the conditions that must hold for it afterwards."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from helpers.artifacts import NOW, Maker, answers, serves, store_of
from helpers.graphs import conv_net
from helpers.sshd import Board, _kill
from helpers.workers import until
from pipeline.core.profile import Profile
from pipeline.deploy.deliver import Delivered, deliver, roll_back
from pipeline.deploy.manifest import Trust
from pipeline.deploy.store import Timeouts
from pipeline.errors import CompressError
from pipeline.packaging.serving import SERVED_FILES

CALM = Timeouts(silence_s=60, health_s=120, commit_s=120)
HASTY = Timeouts(silence_s=8, health_s=60, commit_s=6)
"""For faults that only a timeout reveals."""
FILES = {*SERVED_FILES, "manifest.json", "manifest.sig"}
OUTPUTS = {version: answers(conv_net(8, seed=version)) for version in (1, 2, 3)}
"""Version -> its model's answers. Version 1 was served before version 2, which serves; version 3 is shipped."""


class Relay(socketserver.ThreadingTCPServer):
    """A port that forwards to another one. It can cut connections, stall, or flip a bit of what goes to the device."""

    request_queue_size = 100

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Carrier)
        self.target = port
        self.port = int(self.server_address[1])
        self.open: set[socket.socket] = set()
        self.flip_after: int | None = None
        self.flowing = threading.Event()
        self.flowing.set()
        self.ended = False
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()

    def cut(self) -> None:
        """Reset the open connections. New connections are forwarded."""
        for each in tuple(self.open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Forward nothing, and close nothing."""
        self.flowing.clear()

    def flip(self, after_bytes: int) -> None:
        """Flip one bit, `after_bytes` bytes into what is sent to the device from now on."""
        self.flip_after = after_bytes

    def mend(self) -> None:
        """Drop the open connections, and forward again."""
        self.flip_after = None
        self.cut()
        self.flowing.set()

    def close(self) -> None:
        """Close, and wait until nothing of it runs or is open."""
        self.shutdown()
        self.ended = True
        self.mend()
        self.server_close()


class _Carrier(socketserver.BaseRequestHandler):
    """One connection: this thread forwards one direction, another thread the other. Both sockets close when both have ended."""

    server: Relay
    request: socket.socket

    def handle(self) -> None:
        try:
            there = socket.create_connection(("127.0.0.1", self.server.target))
        except OSError:
            return
        with there:
            ends = {self.request, there}
            self.server.open |= ends
            if self.server.ended:  # it arrived after the last cut
                return
            back = threading.Thread(target=self._carry, args=(there, self.request))
            back.start()
            self._carry(self.request, there)
            back.join()
            self.server.open -= ends

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        relay = self.server
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                relay.flowing.wait()
                if source is self.request and relay.flip_after is not None:
                    relay.flip_after -= len(data)
                    if relay.flip_after < 0:
                        data, relay.flip_after = bytes([data[0] ^ 1]) + data[1:], None
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@dataclass
class Rig:
    """A device that has had version 1 and serves version 2, and version 3, which is to be shipped to it."""

    board: Board
    relay: Relay
    maker: Maker
    profile: Profile
    artifact: Path
    store: Path
    pause: Path
    ended: list[Callable[[], None]] = field(default_factory=list)
    hosts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # faults on the device

    def fault(self, *faults: str) -> None:
        """Set the faults, in the format of COMPRESS_FAULT. Without arguments, remove them."""
        self.board.environment["COMPRESS_FAULT"] = ",".join(faults)
        self.board.write_python()

    def paused(self, point: str) -> None:
        self.fault(f"{point}:pause={self.pause}")

    def wait_for_pause(self, ended: Callable[[], object] = lambda: False) -> None:
        """Wait for the pause, even on a slow machine. Stop waiting if the operation has ended."""
        reached = self.pause.with_suffix(".reached")
        until(lambda: reached.exists() or ended(), 240)
        assert reached.exists(), ended()

    def go_on(self) -> None:
        self.pause.with_suffix(".go").write_text("")

    # operations on it

    def ship(self, timeouts: Timeouts = CALM) -> Delivered:
        return deliver(self.profile, self.artifact, Trust(self.maker.trusted, NOW), timeouts=timeouts)

    def roll_back(self, timeouts: Timeouts = CALM) -> Delivered:
        return roll_back(self.profile, timeouts=timeouts)

    def act(self, point: str, timeouts: Timeouts = CALM) -> Delivered:
        """Start the operation during which the fault comes."""
        return self.roll_back(timeouts) if point == "rollback" else self.ship(timeouts)

    def struck(self, point: str, happens: Callable[[], None], timeouts: Timeouts = CALM) -> CompressError | Delivered:
        """Start the operation, let `happens` run at `point`, go on, and return the result."""
        self.paused(named(point))
        found: list[CompressError | Delivered] = []

        def begin() -> None:
            found.append(self.tried(point, timeouts))

        thread = threading.Thread(target=begin)
        thread.start()
        self.wait_for_pause(lambda: found)
        happens()
        self.go_on()
        thread.join(300)
        return found[0]

    def tried(self, point: str, timeouts: Timeouts = CALM) -> CompressError | Delivered:
        try:
            return self.act(point, timeouts)
        except CompressError as problem:
            return problem

    def host(self, point: str) -> subprocess.Popen[bytes]:
        """Start the same operation as a process of its own, on the command line."""
        facts = self.profile.model_dump(mode="json")
        facts["device"]["memory"] = "1 GiB"
        target = self.board.folder / "board.yaml"
        target.write_text(yaml.safe_dump(facts))
        words = ["rollback", "--target", target]
        if point != "rollback":
            words = ["ship", "--target", target, "--keys", self.maker.keys, self.artifact]
        process = subprocess.Popen(
            [sys.executable, "-c", "from pipeline.cli.main import main; main()", *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.hosts.append(process)
        return process

    def reboot(self) -> None:
        """End everything that runs on the device at once, and start it again."""
        agents = [pid for pid in self.running() if pid]
        self.board.stop()
        for pid in agents:
            _kill(pid)
        self.board.start()

    def running(self) -> list[int]:
        """The agents, watchdogs and health checks that run on the device."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if (
                        b"device-" in (folder / "cmdline").read_bytes()
                        and str(self.board.cache).encode() in (folder / "environ").read_bytes()
                    ):
                        found.append(int(folder.name))
        return found

    # conditions that must hold

    def serving(self) -> int | None:
        """The version that `current` points to, identified by its model's answers; None if it points to nothing."""
        if not (self.store / "current" / "model.onnx").exists():
            return None
        output = serves(self.store)
        for version, expected in OUTPUTS.items():
            if np.allclose(output, expected, rtol=1e-3, atol=1e-4):
                return version
        raise AssertionError("it serves what nobody shipped")

    def partial(self) -> list[str]:
        """The visible releases that are not complete."""
        wrong = []
        for release in (self.store / "releases").iterdir():
            manifest = release / "manifest.json"
            if release.is_symlink() or not manifest.is_file():
                wrong.append(release.name)
                continue
            listed = json.loads(manifest.read_bytes())["files"]
            there = {path.name for path in release.iterdir()} - {"__pycache__"}
            hashes = {name: hashlib.sha256((release / name).read_bytes()).hexdigest() for name in there}
            right = {name: listed[name]["sha256"] for name in SERVED_FILES}
            if there != FILES or release.name != hashes["manifest.json"] or not right.items() <= hashes.items():
                wrong.append(release.name)
        return wrong

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Everything in the store: its kind, its mode, when it was changed, and its content or target."""
        return tree(self.store)

    def left_over(self) -> list[str]:
        """The names that a recovered store does not have."""
        kept = (".current-back", ".compress-store")
        hidden = [path.name for path in self.store.iterdir() if path.name.startswith(".") and path.name not in kept]
        return hidden + [name for name in ("pending.json",) if (self.store / name).exists()]


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything under `folder`: its mode, when it was changed, and its content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        facts = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        found[str(path)] = facts.st_mode, facts.st_mtime_ns, facts.st_ino, content
    return found


def named(point: str) -> str:
    """The device's name for a column of the matrix. A user's rollback is paused after its switch."""
    return "switched" if point == "rollback" else point


class Workshop:
    """Makes rigs: copies of a device that was shipped to twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maker = Maker(folder / "artifacts")
        self._count = 0
        self._lock = threading.Lock()
        with self._device("first") as (board, profile):
            for version in (1, 2):
                artifact = self._maker.make(f"v{version}", profile, seed=version, version=version, days=36500)
                deliver(profile, artifact, Trust(self._maker.trusted, NOW), timeouts=CALM)
            shutil.copytree(store_of(board), folder / "store", symlinks=True)
            self._artifact = self._maker.make("v3", profile, seed=3, version=3, days=36500)

    @contextlib.contextmanager
    def _device(self, name: str) -> Iterator[tuple[Board, Profile]]:
        board = Board(self._folder / name)
        board.start()
        try:
            yield board, board.profile()
        finally:
            board.stop()

    @contextlib.contextmanager
    def rig(self) -> Iterator[Rig]:
        with self._lock:
            self._count += 1
            name = f"device{self._count}"
        with self._device(name) as (board, profile):
            relay = Relay(board.port)
            board.config.write_text(board.config.read_text().replace(f"Port {board.port}", f"Port {relay.port}"))
            board.known_hosts.write_text(board.known_hosts.read_text().replace(f":{board.port} ", f":{relay.port} "))
            store = board.home / "disk" / "compress"
            store.parent.mkdir()
            shutil.copytree(self._folder / "store", store, symlinks=True)
            there = profile.model_copy(update={"device": profile.device.model_copy(update={"store": str(store)})})
            artifact = board.folder / "artifact"
            shutil.copytree(self._artifact, artifact)
            rig = Rig(board, relay, self._maker, there, artifact, store, board.folder / "pause")
            try:
                yield rig
            finally:
                rig.go_on()
                for each in rig.ended:
                    each()
                relay.close()
                for process in rig.hosts:
                    process.kill()
                    process.wait()
                for pid in rig.running():
                    _kill(pid)


def mount(rig: Rig, size: str) -> None:
    """Put the store onto a file system of its own."""
    disk = rig.store.parent
    aside = disk.with_name("aside")
    shutil.copytree(rig.store, aside, symlinks=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=80", "none", str(disk)], check=True)
    rig.ended.append(lambda: subprocess.run(["umount", "-l", str(disk)], check=True) and None)
    shutil.copytree(aside, rig.store, symlinks=True)


def remount(rig: Rig, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(rig.store.parent)], check=True)


def fill(rig: Rig) -> None:
    """Fill the disk until no byte and no name fits."""
    junk = rig.store.parent / "junk"
    junk.mkdir()
    with contextlib.suppress(OSError), (junk / "bytes").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (junk / str(number)).symlink_to("nowhere")


def can_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
