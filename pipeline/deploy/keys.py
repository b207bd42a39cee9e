"""Keys: Ed25519 keys that sign manifests, and the trust file that says whose signatures count."""

import datetime
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import KeysError, RevokedKey, UntrustedKey, one_line
from pipeline.system.files import sha256_bytes, storage_errors, write_atomically
from pipeline.system.foreign_file import open_foreign
from pipeline.system.strict_yaml import load_yaml
from pipeline.system.yaml_core import PlainFloat, dump_yaml

__all__ = [
    "TRUST_FILE",
    "SigningKey",
    "TrustedKey",
    "UtcText",
    "can_sign",
    "keys_folder",
    "new_key",
    "parse_utc",
    "read_trusted",
    "revoke_key",
    "rotate_key",
    "signing_key",
    "trusted_key",
    "utc_text",
]

TRUST_FILE = "trusted.yaml"
PRIVATE_MODE = 0o600
MAX_PEM_BYTES = 64 * 1024
UTC_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
REMEDY = "choose another folder with --keys"


def utc_text(moment: datetime.datetime) -> str:
    """`moment` (with a time zone) as 2026-01-31T12:00:00Z."""
    return moment.astimezone(datetime.UTC).strftime(UTC_FORMAT)


def parse_utc(text: str) -> datetime.datetime:
    """The moment that `utc_text` wrote. Raises ValueError for any other format."""
    moment = datetime.datetime.strptime(text, UTC_FORMAT).replace(tzinfo=datetime.UTC)
    if utc_text(moment) != text:
        raise ValueError(f"expected a time like 2026-01-31T12:00:00Z (got {text!r})")
    return moment


def _is_utc(text: str) -> str:
    parse_utc(text)
    return text


UtcText = Annotated[str, AfterValidator(_is_utc)]


# earlier versions wrote 12e45 without quotes, which is a number in YAML 1.2 and was text in YAML 1.1
_AS_WRITTEN = BeforeValidator(lambda value: value.text if isinstance(value, PlainFloat) else value)


class TrustedKey(BaseModel):
    """One entry of the trust file: a public key, its owner, and the period in which it counts."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    key_id: Annotated[str, _AS_WRITTEN] = Field(pattern=r"^[0-9a-f]{16}$")
    name: Annotated[str, _AS_WRITTEN] = Field(pattern=NAME)
    public_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The 32 bytes of RFC 8032, in hexadecimal."""
    not_before: UtcText
    revoked_at: UtcText | None = None

    @model_validator(mode="after")
    def _own_id(self) -> Self:
        if self.key_id != _key_id(bytes.fromhex(self.public_key)):
            raise ValueError("key_id is not the start of the public key's SHA-256")
        return self

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the holder of this key signed `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key)).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class _TrustFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    keys: list[TrustedKey]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        ids = [key.key_id for key in self.keys]
        if len(set(ids)) < len(ids):
            raise ValueError("a key is listed twice; keep one entry")
        return self


@dataclass(frozen=True)
class SigningKey:
    """A private key that can sign."""

    key_id: str
    name: str
    private: Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`: 64 bytes, as in RFC 8032."""
        return self.private.sign(message)


def keys_folder(option: Path | None = None) -> Path:
    """`option`, or else $COMPRESS_KEYS_DIR, or else ~/.config/compress/keys."""
    try:
        return option or Path(os.environ.get("COMPRESS_KEYS_DIR") or Path.home() / ".config" / "compress" / "keys")
    except RuntimeError:  # no HOME, and no entry in the user database
        raise KeysError("the folder of keys is unknown, because this user has no home folder; give --keys or set HOME") from None


def read_trusted(folder: Path) -> tuple[TrustedKey, ...]:
    """The keys in the trust file of `folder`, oldest first. Empty if there is no trust file.

    Raises KeysError if it is malformed, or if others than its owner may write to it or to its folder.
    """
    path = folder / TRUST_FILE
    try:
        modes = {place: place.stat().st_mode for place in (folder, path)}
    except FileNotFoundError:
        return ()
    except OSError as problem:
        raise KeysError(f"{path}: cannot be read ({problem.strerror})") from None
    for place, mode in modes.items():
        if mode & 0o022:
            raise KeysError(
                f"{place}: other users can write to it (mode {stat.S_IMODE(mode):o}); run chmod go-w on it, and check its keys"
            )
    return tuple(load_yaml(path, _TrustFile, KeysError).keys)


def trusted_key(trusted: Sequence[TrustedKey], key_id: str, now: datetime.datetime) -> TrustedKey:
    """The key with that id. Raises UntrustedKey if there is none or if it is not valid yet, RevokedKey if it was revoked.

    A revoked key never counts, whatever the date of what it signed, because a thief can write any date.
    """
    found = next((key for key in trusted if key.key_id == key_id), None)
    if found is None:
        raise UntrustedKey(
            f"signed with key {key_id}, which is not in the trust file; add its entry if you know its owner, or sign again"
        )
    if found.revoked_at is not None:
        raise RevokedKey(
            f"signed with key {key_id} ({found.name}), revoked at {found.revoked_at}; sign it again with a trusted key"
        )
    if now < parse_utc(found.not_before):
        raise UntrustedKey(
            f"signed with key {key_id} ({found.name}), which is valid from {found.not_before} on; check the clock of this machine"
        )
    return found


def new_key(folder: Path, name: str, now: datetime.datetime) -> SigningKey:
    """Make a key pair in `folder` and trust it from `now` on.

    Raises KeysError if a key of that name can already sign, StorageError if the folder cannot be written.
    """
    with _held(folder):
        keys = read_trusted(folder)
        standing = [key for key in keys if key.name == name and key.revoked_at is None]
        if standing:
            raise KeysError(
                f"{folder}: key '{name}' exists ({standing[-1].key_id}); create its successor with `compress keys rotate {name}`"
            )
        return _add(folder, keys, name, now)


def rotate_key(folder: Path, name: str, now: datetime.datetime) -> SigningKey:
    """Make the successor of the keys called `name`. They stay trusted until they are revoked.

    Raises KeysError if there is none of that name.
    """
    with _held(folder):
        keys = read_trusted(folder)
        if not any(key.name == name for key in keys):
            raise KeysError(f"{folder}: no key '{name}' to rotate; {_listed(keys)}")
        return _add(folder, keys, name, now)


def revoke_key(folder: Path, key_id: str, now: datetime.datetime) -> TrustedKey:
    """Stop trusting the key. Raises KeysError if there is none with that id. A revoked key stays as it is."""
    with _held(folder):
        keys = read_trusted(folder)
        found = next((key for key in keys if key.key_id == key_id), None)
        if found is None:
            raise KeysError(f"{folder}: no key {key_id}; {_listed(keys)}")
        if found.revoked_at is None:
            found = found.model_copy(update={"revoked_at": utc_text(now)})
            _write_trusted(folder, [found if key.key_id == key_id else key for key in keys])
        return found


def can_sign(folder: Path, key: TrustedKey) -> bool:
    """Whether the private half of a key is in `folder` and the key was not revoked."""
    return key.revoked_at is None and (folder / f"{key.key_id}.pem").exists()


def signing_key(folder: Path, name_or_id: str | None = None) -> SigningKey | None:
    """The newest trusted key in `folder` whose private half is there. With `name_or_id`, only a key of that name or id.

    None if there is no such key and `name_or_id` is None. Raises KeysError if the requested key cannot sign, if a private key is
    malformed, or if others may read it.
    """
    keys = read_trusted(folder)
    usable = [key for key in keys if can_sign(folder, key)]
    chosen = [key for key in usable if name_or_id in (None, key.name, key.key_id)]
    if chosen:
        return _read_private(folder / f"{chosen[-1].key_id}.pem", chosen[-1])
    if name_or_id is not None:
        raise KeysError(f"{folder}: no key '{name_or_id}' that can sign; {_listed(usable)}")
    return None


def _key_id(public: bytes) -> str:
    return sha256_bytes(public)[:16]


def _listed(keys: Sequence[TrustedKey]) -> str:
    return f"known keys: {', '.join(f'{key.name} ({key.key_id})' for key in keys)}" if keys else "run `compress keys new` first"


def _add(folder: Path, keys: Sequence[TrustedKey], name: str, now: datetime.datetime) -> SigningKey:
    if not re.fullmatch(NAME, name):
        raise KeysError(f"'{one_line(ValueError(name))}' is not a valid name of a key; use up to 64 letters, digits and . _ @ -")
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    entry = TrustedKey(key_id=_key_id(public), name=name, public_key=public.hex(), not_before=utc_text(now))
    # the private half first: a trusted key without it would be worse than an unused private half
    write_atomically(folder / f"{entry.key_id}.pem", pem, PRIVATE_MODE, REMEDY)
    _write_trusted(folder, [*keys, entry])
    return SigningKey(entry.key_id, name, private)


def _write_trusted(folder: Path, keys: Sequence[TrustedKey]) -> None:
    text = dump_yaml({"keys": [key.model_dump() for key in keys]})
    write_atomically(folder / TRUST_FILE, text, 0o644, REMEDY)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the keys for this process, and make the folder if there is none."""
    with storage_errors(folder, REMEDY):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_private(path: Path, entry: TrustedKey) -> SigningKey:
    try:
        with open_foreign(path, MAX_PEM_BYTES, follow=False) as file:
            mode, pem = os.fstat(file.fileno()).st_mode, file.read(MAX_PEM_BYTES)
    except OSError as problem:
        raise KeysError(f"{path}: cannot be read ({problem.strerror})") from None
    if mode & 0o077:
        raise KeysError(
            f"{path}: other users can read this private key (mode {stat.S_IMODE(mode):o}); run chmod 600 on it, or revoke it"
        )
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeysError(
            f"{path}: not a private key in PEM format without a password; run `compress keys rotate {entry.name}`"
        ) from None
    if not isinstance(private, Ed25519PrivateKey) or private.public_key().public_bytes_raw().hex() != entry.public_key:
        raise KeysError(f"{path}: does not belong to the trusted key {entry.key_id}; run `compress keys rotate {entry.name}`")
    return SigningKey(entry.key_id, entry.name, private)
