"""A real OpenSSH server on a loopback port, with its own keys, and a folder in which its "device" keeps its files."""

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.workers import children_of
from pipeline.core.profile import Device, Profile, Runtime

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no OpenSSH server here: apt-get install openssh-server"
)

VCGENCMD = """#!/bin/sh
# as on a Raspberry Pi: the firmware's flags, from a file
case "$1" in
  get_throttled) read flags < "$(dirname "$0")/flags"; echo "throttled=$flags" ;;
  measure_clock) echo "frequency(48)=1500398464" ;;
esac
"""
"""A program that a device may have."""


class Board:
    """A device that `ssh -F board.config board` connects to. It is unreachable until `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.cache, self.tmp, self.bin = self.home / "cache", self.home / "tmp", self.home / "bin"
        for each in (self.cache, self.tmp, self.bin):
            each.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            _keygen(folder / name)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        self.port = _free_port()
        self.config = folder / "board.config"
        self.known_hosts = folder / "known_hosts"
        self.config.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
            "  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        self.environment: dict[str, str] = {}
        self.python = self.bin / "python3"
        self.write_python()
        self.trust()
        self.process: subprocess.Popen[bytes] | None = None

    def write_python(self, *before: str) -> None:
        """Write the device's interpreter: this one, with its files in the device's folder, started by the command `before`."""
        settings = {"HOME": self.home, "XDG_CACHE_HOME": self.cache, "TMPDIR": self.tmp, **self.environment}
        words = [*before, "env", *(f"{key}={value}" for key, value in settings.items()), f"PATH={self.bin}:$PATH", sys.executable]
        self.python.write_text(f'#!/bin/sh\nexec {" ".join(map(str, words))} "$@"\n')
        self.python.chmod(0o755)

    def program(self, name: str, text: str) -> Path:
        """Install a program on the device."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def trust(self, key: str = "host_key") -> None:
        """Trust the device's host key, or another one."""
        kind, value = (self.folder / f"{key}.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {value}\n")

    def start(self) -> None:
        assert SSHD
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.folder / 'host_key'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPidFile {self.folder / 'sshd.pid'}\n"
            "UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nPermitRootLogin yes\n"
            "MaxStartups 100\nUseDNS no\n"
            f"SetEnv HOME={self.home}\n"  # the start-up files of the shell of whoever runs the tests are none of the device's
            "KexAlgorithms curve25519-sha256\n"  # the default one costs several times as much, and these tests connect often
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log, start_new_session=True)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:  # another server may answer at its port
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "sshd.log").read_text())

    def stop(self, *, connections: bool = True) -> None:
        """Stop the server and everything that depends on it, as a reboot does."""
        if self.process is None:
            return
        victims = _descendants(self.process.pid) if connections else []
        self.process.terminate()
        self.process.wait(10)
        self.process = None
        for pid in victims:
            _kill(pid)

    def connections(self) -> list[int]:
        """The server's processes that each hold one connection."""
        assert self.process
        return [pid for pid in _descendants(self.process.pid) if _command(pid).startswith("sshd")]

    def workers(self) -> list[int]:
        """The worker's supervisors that run on the device."""
        found = [pid for pid in _all_processes() if " serve " in f"{_command(pid)} " and "worker-" in _command(pid)]
        return [pid for pid in found if str(self.cache) in _environment(pid)]

    def measuring(self) -> list[int]:
        """The workers that run a file now, in a process of its own."""
        runs = [pid for pid in _all_processes() if " child latency" in _command(pid)]
        return [worker for worker in self.workers() if set(runs) & set(children_of(worker))]

    @property
    def facts(self) -> dict[str, object]:
        """The entries under `device` in a profile."""
        return {
            "name": "board",
            "architecture": "x86_64",
            "cores": 1,
            "memory": "1 GiB",
            "host": "board",
            "python": str(self.python),
            "ssh_config": str(self.config),
        }

    def device(self, **changes: object) -> Device:
        return Device.model_validate({**self.facts, **changes})

    def profile(self, **probe: float) -> Profile:
        """A profile with one thread that is as quick as possible."""
        quick = {
            "warmup_runs": 1,
            "runs": 8,
            "block_runs": 4,
            "processes": 1,
            "noise_limit": 1.0,
            "retries": 0,
            "reconnect_s": 20,
        }
        return Profile.model_validate(
            {"device": self.device(), "runtime": Runtime(threads=1), "probe": {**quick, **probe}}, strict=False
        )


def pool_profile(boards: dict[str, Board], folder: Path, **changes: object) -> Profile:
    """A profile whose `device.hosts` are all `boards`, by name. It is as quick as that of one board."""
    config = folder / "pool.config"
    config.write_text(
        "".join(board.config.read_text().replace("Host board\n", f"Host {name}\n") for name, board in boards.items())
    )
    one = next(iter(boards.values()))
    facts = {"host": None, "hosts": list(boards), "ssh_config": str(config), "python": "~/bin/python3", **changes}
    return one.profile().model_copy(update={"device": one.device(**facts)})


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


_PORTS = iter(random.SystemRandom().sample(range(10_000, 32_000), 20_000))
"""Below the range that systems assign to connections. Otherwise another test's connection could take the port first."""


def _free_port() -> int:
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


def _all_processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _descendants(root: int) -> list[int]:
    parents = {}
    for pid in _all_processes():
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [root]
    for each in found:
        found += [pid for pid, parent in parents.items() if parent == each]
    return found[1:]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
