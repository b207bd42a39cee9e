"""Sign: a manifest for the artifact of a run, with the facts from its evidence."""

import datetime
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.artifact import Artifact, read_artifact
from pipeline.deploy.keys import new_key, signing_key
from pipeline.deploy.manifest import Manifest, Terms, is_signed, sign_artifact
from pipeline.errors import ManifestError

__all__ = ["DEFAULT_KEY", "VALID_DAYS", "Signing", "ensure_signed", "sign"]

DEFAULT_KEY = "default"
VALID_DAYS = 365

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Signing:
    """What a user may set in a manifest. The rest comes from the artifact, the clock and the newest key."""

    name: str | None = None
    """Default: the network's name."""
    version: int | None = None
    """Default: seconds since 1970, so that a later signature counts as newer."""
    devices: Sequence[str] = ()
    """Default: the device of the artifact's profile."""
    days: int = VALID_DAYS
    key: str | None = None
    """Name or id of the key."""


def sign(folder: Path, keys: Path, signing: Signing, now: datetime.datetime, notify: Notify) -> Manifest:
    """Sign the artifact in `folder` with a key of the folder `keys`. If there is no key, make one and call `notify`.

    Raises RunError if there is no complete artifact, KeysError, FilesDiffer, ManifestError or StorageError.
    """
    artifact = read_artifact(folder)
    device, architecture = _made_for(artifact, folder)
    key = signing_key(keys, signing.key)
    if key is None:
        key = new_key(keys, DEFAULT_KEY, now)
        notify(f"created the signing key {key.key_id} in {keys}; back up that folder, and see `compress keys --help`")
    return sign_artifact(
        folder,
        key,
        Terms(
            name=signing.name or str(artifact.job.get("model", "network")).rpartition(":")[2],
            version=signing.version or int(now.timestamp()),
            architecture=architecture,
            devices=signing.devices or (glob.escape(device),),
            created=now,
            expires=now + datetime.timedelta(days=signing.days),
            provenance=_provenance(artifact),
        ),
    )


def ensure_signed(folder: Path, keys: Path, now: datetime.datetime, notify: Notify) -> None:
    """Sign the artifact in `folder` with the defaults of `sign` unless it is signed. `check_artifact` checks the signature."""
    if not is_signed(folder):
        manifest = sign(folder, keys, Signing(), now, notify)
        notify(f"signed as version {manifest.version} of '{manifest.name}', until {manifest.expires}")


def _made_for(artifact: Artifact, folder: Path) -> tuple[str, str]:
    """Name and instruction set of the device that the artifact was made for."""
    device = artifact.profile.get("device")
    facts = device if isinstance(device, dict) else {}
    measurement = artifact.shipped.measurement
    name, architecture = facts.get("name"), facts.get("architecture") or (measurement and measurement.fingerprint.architecture)
    if not name or not architecture:
        raise ManifestError(f"{folder}/artifact.json: the profile has no device.architecture; add it and run the job again")
    return str(name), str(architecture)


def _provenance(artifact: Artifact) -> dict[str, str]:
    """Where the artifact comes from, without paths and command lines, because these can hold private information."""
    measurement = artifact.shipped.measurement
    return {
        "compressed": artifact.created,
        "measured": measurement.fingerprint.mode if measurement else "not measured",
        "made_by": f"edge-compress {artifact.versions.get('edge-compress', '(version not known)')}",
        "structure": artifact.shipped.structure,
        "verdict": artifact.verdict,
    }
