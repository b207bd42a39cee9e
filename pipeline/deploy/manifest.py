"""Manifest: the signed list of an artifact's files, devices and expiry. It is checked before anything is installed."""

import datetime
import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.artifact import FileFacts
from pipeline.deploy.artifact_folder import PLAIN_NAME, OpenFolder, open_folder
from pipeline.deploy.keys import SigningKey, TrustedKey, UtcText, parse_utc, trusted_key, utc_text
from pipeline.errors import (
    Expired,
    FilesDiffer,
    ManifestError,
    OlderVersion,
    OtherDevice,
    Unsigned,
    WrongSignature,
)
from pipeline.system.files import sha256_bytes, write_atomically

__all__ = ["MANIFEST", "SIGNATURE", "DeviceKind", "Manifest", "Terms", "Trust", "check_artifact", "is_signed", "sign_artifact"]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
CONTEXT = b"edge-compress manifest 1\n"
"""Prefix of the signed bytes. It keeps a signature of another kind of document from being valid here."""
MAX_BYTES = 64 * 1024
MAX_FILES = 256
MAX_VERSION = 2**53 - 1
"""The largest integer that every JSON reader represents exactly."""
LEFTOVER = re.compile(r"\.manifest\.(json|sig)\.[0-9a-f]{8}\.tmp")
REMEDY = "the manifest is written into the artifact's folder; make it writable"

Signed = TypeVar("Signed", bound="_Canonical")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected printable text")
    return text


def _file_name(name: str) -> str:
    if not PLAIN_NAME.fullmatch(name) or name in (MANIFEST, SIGNATURE):
        raise ValueError("expected a file name without a path")
    return name


def _whole_facts(facts: FileFacts) -> FileFacts:
    if not re.fullmatch(r"[0-9a-f]{64}", facts.sha256) or facts.size_bytes < 0:
        raise ValueError("expected a SHA-256 in hexadecimal and a size in bytes")
    return facts


Text = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
FileName = Annotated[str, AfterValidator(_file_name)]


@dataclass(frozen=True)
class DeviceKind:
    """What a manifest is compared with: the device's name in its profile, and its instruction set."""

    name: str
    architecture: str


class _Canonical(BaseModel):
    """A model with exactly one encoding: JSON with sorted keys, without spaces or floats, in UTF-8."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def canonical(self) -> bytes:
        """The encoding of this model."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class Manifest(_Canonical):
    """What an artifact consists of, which devices it is for, and until when it may be installed."""

    format: Literal[1] = 1
    name: Text
    """What is shipped. Versions are counted per name."""
    version: int = Field(ge=1, le=MAX_VERSION)
    """A counter. A device that has a higher version refuses this one."""
    architecture: Text
    devices: tuple[Text, ...] = Field(min_length=1, max_length=64)
    """Names of devices as in their profiles, or patterns: * any text, ? one character, [abc] one of these."""
    created: UtcText
    expires: UtcText
    provenance: Mapping[Text, Text] = Field(max_length=32)
    files: Mapping[FileName, Annotated[FileFacts, AfterValidator(_whole_facts)]] = Field(min_length=1, max_length=MAX_FILES)
    """Every file of the folder except the manifest and its signature."""

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, and so of everything in it. It is the release's name on a device."""
        return sha256_bytes(self.canonical())

    def fits(self, device: DeviceKind) -> bool:
        """Whether the artifact was made for devices like this one."""
        return self.architecture == device.architecture and any(
            fnmatch.fnmatchcase(device.name, pattern) for pattern in self.devices
        )


class _Signature(_Canonical):
    algorithm: Literal["ed25519"] = "ed25519"
    key_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def is_signed(folder: Path) -> bool:
    """Whether there are a manifest and a signature. Neither is checked."""
    return (folder / MANIFEST).exists() and (folder / SIGNATURE).exists()


@dataclass(frozen=True)
class Trust:
    """Whose signatures count, and at what time."""

    keys: Sequence[TrustedKey]
    now: datetime.datetime


@dataclass(frozen=True)
class Terms:
    """What a signature says of an artifact, beside its files."""

    name: str
    """The network's; versions are counted per name."""
    version: int
    architecture: str
    devices: Sequence[str]
    """Patterns of device names."""
    created: datetime.datetime
    expires: datetime.datetime
    provenance: Mapping[str, str]


def sign_artifact(
    folder: Path,
    key: SigningKey,
    terms: Terms,
) -> Manifest:
    """Write manifest.json and manifest.sig for the current files of `folder`, and replace existing ones.

    Raises FilesDiffer if the folder holds anything other than regular files with plain names, ManifestError if an argument is not
    allowed in a manifest, StorageError if the folder cannot be written.
    """
    with open_folder(folder) as opened:
        facts = {each: opened.facts(each) for each in _names(opened)}
    try:
        manifest = Manifest(
            name=terms.name,
            version=terms.version,
            architecture=terms.architecture,
            devices=tuple(terms.devices),
            created=utc_text(terms.created),
            expires=utc_text(terms.expires),
            provenance=dict(terms.provenance),
            files=facts,
        )
    except ValidationError as problem:
        raise ManifestError(f"{folder}: cannot be signed: {_complaint(problem)}") from None
    raw = manifest.canonical()
    if len(raw) > MAX_BYTES:
        raise ManifestError(f"{folder}: cannot be signed: the manifest would be larger than {MAX_BYTES // 1024} KiB")
    signature = _Signature(key_id=key.key_id, signature=key.sign(CONTEXT + raw).hex())
    write_atomically(folder / MANIFEST, raw, remedy=REMEDY)
    write_atomically(folder / SIGNATURE, signature.canonical(), remedy=REMEDY)
    for leftover in folder.iterdir():
        if LEFTOVER.fullmatch(leftover.name):
            with suppress(OSError):
                leftover.unlink()
    return manifest


def check_artifact(
    folder: Path,
    trusted: Sequence[TrustedKey],
    device: DeviceKind,
    installed_version: int | None,
    now: datetime.datetime,
) -> Manifest:
    """The manifest of `folder`, if a trusted key signed it, and it has not expired, fits `device` and matches every file.

    `installed_version`: that of the artifact of this name on the device; None if there is none. Only the folder is read. Raises
    Unsigned, UntrustedKey, RevokedKey, WrongSignature, ManifestError (malformed), Expired, OtherDevice, OlderVersion or
    FilesDiffer, in this order.
    """
    with open_folder(folder) as opened:
        raw, sealed = (_small(opened, name) for name in (MANIFEST, SIGNATURE))
        signature = _read(_Signature, sealed, folder / SIGNATURE)
        try:
            key = trusted_key(trusted, signature.key_id, now)
        except ManifestError as problem:
            raise type(problem)(f"{folder}: {problem}") from None
        if not key.verifies(bytes.fromhex(signature.signature), CONTEXT + raw):
            raise WrongSignature(
                f"{folder / MANIFEST}: the signature of key {key.key_id} ({key.name}) does not match; the manifest was "
                "changed, or signing was interrupted; if the files are yours, run `compress sign` again"
            )
        manifest = _read(Manifest, raw, folder / MANIFEST)
        _refuse_unfit(manifest, folder, device, installed_version, now)
        _refuse_other_files(manifest, opened)
    return manifest


def _refuse_unfit(
    manifest: Manifest, folder: Path, device: DeviceKind, installed_version: int | None, now: datetime.datetime
) -> None:
    if now >= parse_utc(manifest.expires):
        raise Expired(
            f"{folder}: '{manifest.name}' expired at {manifest.expires} (now: {utc_text(now)}); run `compress sign` again"
        )
    if not manifest.fits(device):
        raise OtherDevice(
            f"{folder}: made for {', '.join(manifest.devices)} ({manifest.architecture}), not for {device.name} "
            f"({device.architecture}); compress for that device, or run `compress sign --device`"
        )
    if installed_version is not None and manifest.version < installed_version:
        raise OlderVersion(
            f"{folder}: version {manifest.version} of '{manifest.name}' is older than version {installed_version} on the "
            f"device; to install it anyway, run `compress sign --version {min(installed_version + 1, MAX_VERSION)}` and ship "
            "again"
        )


def _refuse_other_files(manifest: Manifest, opened: OpenFolder) -> None:
    names = set(_names(opened))
    if missing := manifest.files.keys() - names:
        raise FilesDiffer(
            f"{opened.path}: {min(missing)} is missing; copy the artifact again, or run `compress sign` to sign it as it is"
        )
    if extra := names - manifest.files.keys():
        raise FilesDiffer(
            f"{opened.path}: {min(extra)!a} is not in the manifest; remove it, or run `compress sign` to include it"
        )
    for name, facts in manifest.files.items():
        if opened.size_bytes(name) != facts.size_bytes or opened.facts(name) != facts:
            raise FilesDiffer(
                f"{opened.path / name}: changed since it was signed; copy it again, or run `compress sign` if the change is "
                "intended"
            )


def _names(opened: OpenFolder) -> list[str]:
    """The files that a manifest lists: all except itself, its signature, and the temporary files of a killed `sign`."""
    return [name for name in opened.names() if name not in (MANIFEST, SIGNATURE) and not LEFTOVER.fullmatch(name)]


def _small(opened: OpenFolder, name: str) -> bytes:
    if name not in opened.names():
        raise Unsigned(f"{opened.path}: not signed, because {name} is missing; run `compress sign {opened.path}`")
    data = opened.read(name, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ManifestError(
            f"{opened.path / name}: larger than {MAX_BYTES // 1024} KiB, the limit for this file; run `compress sign` again"
        )
    return data


def _read(model: type[Signed], data: bytes, path: Path) -> Signed:
    try:
        found = model.model_validate_json(data)
    except ValidationError as problem:
        raise ManifestError(f"{path}: malformed: {_complaint(problem)}; run `compress sign` again") from None
    if found.canonical() != data:
        raise ManifestError(f"{path}: malformed: not in canonical form; run `compress sign` again")
    return found


def _complaint(problem: ValidationError) -> str:
    """The first error. Values may come from anywhere, so they are shown in ASCII and shortened."""
    first = problem.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return ascii(f"{where}: {first['msg'].removeprefix('Value error, ')}"[:200])[1:-1]
