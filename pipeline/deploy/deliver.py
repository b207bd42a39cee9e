"""Deliver: bring an artifact onto a device: check, upload, verify, install, check its health, switch, confirm, commit."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path

from pipeline.core.profile import Profile
from pipeline.deploy.artifact_folder import OpenFolder, open_folder
from pipeline.deploy.manifest import MANIFEST, SIGNATURE, DeviceKind, Manifest, Trust, check_artifact
from pipeline.deploy.protocol import Begun, Committed, Done, Health, Previous, StoreStatus
from pipeline.deploy.store import Store, Timeouts
from pipeline.errors import DeliveryError, OtherDevice
from pipeline.packaging.serving import SERVED_FILES

__all__ = ["Delivered", "Progress", "deliver", "look", "roll_back"]

CHUNK_BYTES = 2**20

Progress = Callable[[str, int, int], None]
"""(step, bytes done, bytes in total). The bytes are 0 for steps that are not counted."""


@dataclass(frozen=True)
class Delivered:
    """The result of a delivery: the device serves `release`."""

    device: str
    release: str
    version: int | None
    changed: bool
    """False if the device served it before, and nothing was done."""
    sent_bytes: int
    health: Health | None = None
    """The result of the health check, if there was one."""


def deliver(
    profile: Profile,
    folder: Path,
    trust: Trust,
    *,
    timeouts: Timeouts | None = None,
    budget: bool = True,
    progress: Progress = lambda step, done, total: None,
) -> Delivered:
    """Install the artifact in `folder` on the profile's device, and switch to it. Repeating it changes nothing.

    The signature is checked before the device is contacted, and every file's hash on the device. Without `budget`, a release that
    is too slow or too large there is accepted. Raises the errors of `check_artifact` and `Store`, and TransferCorrupt, Unhealthy,
    RolledBack or DeliveryError. After any error the device serves what it served before.
    """
    timeouts = timeouts or Timeouts()
    progress("check", 0, 0)
    manifest = check_artifact(folder, trust.keys, DeviceKind(profile.device.name, profile.architecture), None, trust.now)
    missing = sorted(set(SERVED_FILES) - manifest.files.keys())
    if missing:
        raise DeliveryError(
            f"{folder}: {missing[0]} is missing, because an older version wrote this artifact; run `compress` again"
        )
    progress("connect", 0, 0)
    with Store(profile, timeouts, write=True, make=True) as store:
        _refuse_other_machine(store, profile)
        with open_folder(folder) as opened:
            envelope = [(name, opened.read(name, CHUNK_BYTES)) for name in (MANIFEST, SIGNATURE)]
            begun = store.ask(
                {
                    "do": "begin",
                    "release": manifest.digest,
                    "names": list(SERVED_FILES),
                    "envelope": [[name, len(data)] for name, data in envelope],
                },
                Begun,
                b"".join(data for _, data in envelope),
            )
            if begun.current:
                return Delivered(store.where, manifest.digest, manifest.version, False, 0)
            sent = 0
            if not begun.placed:
                sent = _upload(store, opened, manifest, begun.have, progress)
                for step in ("verify", "place"):
                    progress(step, 0, 0)
                    store.ask({"do": step}, Done)
        health = _activate(store, manifest.digest, timeouts, budget, progress)
    return Delivered(store.where, manifest.digest, manifest.version, True, sent, health)


def roll_back(
    profile: Profile, *, timeouts: Timeouts | None = None, progress: Progress = lambda step, done, total: None
) -> Delivered:
    """Roll the device back to the previous release. It must still answer correctly, at any speed.

    Raises NoPrevious if there is none, and the errors of `deliver`.
    """
    timeouts = timeouts or Timeouts()
    progress("connect", 0, 0)
    with Store(profile, timeouts, write=True) as store:
        release = store.ask({"do": "previous"}, Previous).release
        before = next((each for each in store.status.history[1:] if each.release == release), None)
        if before is None:
            raise _impossible_answer(store, f"it returns to {release[:12]}, which it did not list")
        health = _activate(store, release, timeouts, False, progress)
    return Delivered(store.where, release, before.version, True, 0, health)


def look(profile: Profile, timeouts: Timeouts | None = None) -> StoreStatus:
    """What the device serves. Nothing on the device is changed. Raises the errors of `Store`."""
    with Store(profile, timeouts or Timeouts(), write=False) as store:
        return store.status


def _activate(store: Store, release: str, timeouts: Timeouts, budget: bool, progress: Progress) -> Health:
    """Bring an installed release to the commit, and return the result of its health check."""
    limit_s = timeouts.health_s
    progress("health", 0, 0)
    health = store.ask({"do": "check", "limit_s": limit_s, "budget": budget}, Health)
    progress("switch", 0, 0)
    store.ask({"do": "switch", "deadline_s": timeouts.commit_s}, Done)
    store.ask({"do": "confirm", "limit_s": limit_s}, Health)
    progress("commit", 0, 0)
    committed = store.ask({"do": "commit"}, Committed).committed
    if committed != release:
        raise _impossible_answer(store, f"it committed {committed[:12]} instead of {release[:12]}")
    return health


def _impossible_answer(store: Store, what: str) -> DeliveryError:
    return DeliveryError(
        f"{store.where}: its agent gave an impossible answer ({what}); check that device.host is the right machine"
    )


def _refuse_other_machine(store: Store, profile: Profile) -> None:
    found = store.status.architecture
    if profile.device.architecture and found != profile.device.architecture:
        raise OtherDevice(
            f"{store.where}: architecture {found}, but the profile says {profile.device.architecture}; nothing was sent: "
            "correct device.architecture in the profile"
        )


def _upload(store: Store, opened: OpenFolder, manifest: Manifest, have: dict[str, tuple[int, str]], progress: Progress) -> int:
    """Send what the device does not have yet. Returns the number of bytes sent."""
    total = sum(manifest.files[name].size_bytes for name in SERVED_FILES)
    done = sent = 0
    for name in SERVED_FILES:
        size_bytes, digest = have.get(name, (0, ""))
        if size_bytes > manifest.files[name].size_bytes:
            raise _impossible_answer(
                store, f"it has {size_bytes} bytes of {name}, whose size is {manifest.files[name].size_bytes}"
            )
        with opened.open(name) as file:
            offset = _same_start(file, size_bytes, digest)
            file.seek(offset)
            done += offset
            progress("upload", done, total)
            while True:
                data = file.read(CHUNK_BYTES)
                if data or offset == 0:
                    order = {"do": "put", "name": name, "offset": offset}
                    store.ask(order, Done, data, partial(_show_upload, progress, total, done))
                if not data:
                    break
                offset, done, sent = offset + len(data), done + len(data), sent + len(data)
                progress("upload", done, total)
    return sent


def _show_upload(progress: Progress, total: int, before: int, arrived: int) -> None:
    """`arrived` bytes of a block have reached the device, and `before` bytes of earlier blocks and files."""
    progress("upload", before + arrived, total)


def _same_start(file: BufferedReader, size: int, digest: str) -> int:
    """How much of `file` the device already has: `size` bytes if they hash to `digest`, otherwise 0."""
    here, left = hashlib.sha256(), size
    while left and (data := file.read(min(left, CHUNK_BYTES))):
        here.update(data)
        left -= len(data)
    return size if here.hexdigest() == digest else 0
