"""Keys: made, listed, rotated and revoked; nobody else's business."""

import datetime
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.main import compress
from pipeline.deploy.keys import (
    TRUST_FILE,
    SigningKey,
    can_sign,
    new_key,
    parse_utc,
    read_trusted,
    revoke_key,
    rotate_key,
    signing_key,
    utc_text,
)
from pipeline.errors import KeysError, StorageError

NOON = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "config" / "keys"


def made(folder: Path, name: str = "ours") -> SigningKey:
    return new_key(folder, name, NOON)


def chosen(folder: Path, name_or_id: str | None = None) -> SigningKey:
    key = signing_key(folder, name_or_id)
    assert key is not None
    return key


def test_a_new_key_is_private_trusted_and_signs(folder: Path) -> None:
    key = made(folder)
    (trusted,) = read_trusted(folder)

    assert trusted.verifies(key.sign(b"message"), b"message")
    assert not trusted.verifies(key.sign(b"message"), b"another")
    assert chosen(folder).sign(b"message") == key.sign(b"message")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / f"{key.key_id}.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in folder.iterdir()) == [f"{key.key_id}.pem", TRUST_FILE]


def test_a_private_key_is_never_open_to_others_not_even_with_a_generous_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        key = made(folder)
    finally:
        os.umask(before)

    assert (folder / f"{key.key_id}.pem").stat().st_mode & 0o777 == 0o600
    assert chosen(folder).key_id == key.key_id


def test_a_private_key_is_pkcs8_as_openssl_reads_it(folder: Path) -> None:
    key = made(folder)
    pem = (folder / f"{key.key_id}.pem").read_bytes()

    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert isinstance(serialization.load_pem_private_key(pem, None), Ed25519PrivateKey)


def test_a_private_key_does_not_show_in_a_repr(folder: Path) -> None:
    assert "rivate" not in repr(made(folder))


def test_a_second_key_of_the_same_name_is_refused(folder: Path) -> None:
    made(folder)

    with pytest.raises(KeysError, match="create its successor with `compress keys rotate ours`"):
        made(folder)


def test_after_rotation_both_are_trusted_and_the_new_one_signs(folder: Path) -> None:
    old = made(folder)
    new = rotate_key(folder, "ours", NOON + DAY)

    assert [key.key_id for key in read_trusted(folder)] == [old.key_id, new.key_id]
    assert chosen(folder).key_id == chosen(folder, "ours").key_id == new.key_id
    assert chosen(folder, old.key_id).key_id == old.key_id


def test_a_revoked_key_signs_no_more(folder: Path) -> None:
    old, new = made(folder), rotate_key(folder, "ours", NOON)
    revoked = revoke_key(folder, new.key_id, NOON + DAY)

    assert revoked.revoked_at == "2026-05-02T12:00:00Z"
    assert chosen(folder).key_id == old.key_id
    with pytest.raises(KeysError, match="that can sign"):
        signing_key(folder, new.key_id)


def test_revoking_again_keeps_the_first_moment(folder: Path) -> None:
    key = made(folder)
    first = revoke_key(folder, key.key_id, NOON)

    assert revoke_key(folder, key.key_id, NOON + DAY) == first


def test_a_revoked_name_can_be_made_anew(folder: Path) -> None:
    revoke_key(folder, made(folder).key_id, NOON)

    assert chosen(folder, made(folder).key_id)


def test_an_empty_folder_has_no_key_and_trusts_nobody(folder: Path) -> None:
    assert read_trusted(folder) == ()
    assert signing_key(folder) is None
    assert not folder.exists()


def test_a_key_of_somebody_else_is_trusted_and_does_not_sign(folder: Path, tmp_path: Path) -> None:
    theirs = made(tmp_path / "theirs", "theirs")
    ours = made(folder)
    entry = (tmp_path / "theirs" / TRUST_FILE).read_text().partition("keys:\n")[2]
    (folder / TRUST_FILE).write_text((folder / TRUST_FILE).read_text() + entry)

    found = {key.key_id: can_sign(folder, key) for key in read_trusted(folder)}

    assert found == {ours.key_id: True, theirs.key_id: False}
    assert chosen(folder).key_id == ours.key_id


def test_keys_made_at_the_same_time_are_all_kept(folder: Path) -> None:
    threads = [threading.Thread(target=made, args=(folder, f"key{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {key.name for key in read_trusted(folder)} == {f"key{number}" for number in range(8)}


# refusals


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_private_key_that_others_may_read_is_refused(folder: Path, mode: int) -> None:
    path = folder / f"{made(folder).key_id}.pem"
    path.chmod(mode)

    with pytest.raises(KeysError, match=f"other users can read this private key \\(mode {mode:o}\\); run chmod 600 on it"):
        signing_key(folder)


@pytest.mark.parametrize("name", [".", TRUST_FILE])
def test_a_trust_file_that_others_may_write_is_refused(folder: Path, name: str) -> None:
    made(folder)
    (folder / name).chmod(0o777)

    with pytest.raises(KeysError, match="other users can write to it"):
        read_trusted(folder)


def pem_of(key: Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        (lambda: b"", "not a private key"),
        (lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key"),
        (lambda: b"\xff" * 10_000, "not a private key"),
        (lambda: pem_of(Ed25519PrivateKey.generate(), b"secret"), "without a password"),
        (lambda: pem_of(Ed25519PrivateKey.generate()), "does not belong to the trusted key"),
        (
            lambda: generate_private_key(SECP256R1()).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            "does not belong to the trusted key",
        ),
    ],
    ids=["empty", "torn", "noise", "password", "another key", "another kind of key"],
)
def test_a_private_key_that_is_none_is_refused(folder: Path, pem: Callable[[], bytes], said: str) -> None:
    (folder / f"{made(folder).key_id}.pem").write_bytes(pem())

    with pytest.raises(KeysError, match=f"{said}.*`compress keys rotate ours`"):
        signing_key(folder)


def test_a_private_key_behind_a_link_is_refused(folder: Path) -> None:
    path = folder / f"{made(folder).key_id}.pem"
    path.rename(folder / "aside")
    path.symlink_to("aside")

    with pytest.raises(KeysError, match="cannot be read"):
        signing_key(folder)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: ours", "name: $(reboot)", "name"),
        ("name: ours", 'name: "ours\\n"', "name"),
        ("name: ours", "name: ours\n  title: x", "unknown key 'keys.0.title'"),
        ("key_id: ", "key_id: '0123456789abcdef' #", "key_id is not the start of the public key's SHA-256"),
        ("public_key: ", "public_key: ab # ", "public_key"),
        ("revoked_at: null", "revoked_at: yesterday", "revoked_at"),
        ("keys:", "keys: &all", "anchors and aliases are not supported"),
    ],
)
def test_a_malformed_trust_file_is_refused(folder: Path, old: str, new: str, said: str) -> None:
    made(folder)
    path = folder / TRUST_FILE
    text = path.read_text()
    path.write_text(text.replace(old, new) + ("\nmore: *all" if "&" in new else ""))

    assert old in text
    with pytest.raises(KeysError, match=said):
        read_trusted(folder)


@settings(max_examples=100)
@given(raw=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_trust_file(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "arbitrary"
    folder.mkdir(exist_ok=True, mode=0o700)
    (folder / TRUST_FILE).write_bytes(raw)

    with pytest.raises(KeysError):
        read_trusted(folder)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "$(reboot)", "a\n", "a" * 65, "ä"])
def test_a_name_that_is_no_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(KeysError, match="is not a valid name of a key"):
        made(folder, name)


def test_a_folder_that_cannot_be_made_is_named_and_another_advised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="choose another folder with --keys"):
        made(tmp_path / "file" / "keys")


@given(st.datetimes(timezones=st.just(datetime.UTC), min_value=datetime.datetime(1000, 1, 1)))
def test_times_are_written_to_the_second_and_read_back(moment: datetime.datetime) -> None:
    assert parse_utc(utc_text(moment)) == moment.replace(microsecond=0)


# the commands


def run(*arguments: object, keys: Path) -> Result:
    return CliRunner().invoke(compress, [str(each) for each in arguments], env={"COMPRESS_KEYS_DIR": str(keys)})


def test_the_life_of_a_key_on_the_command_line(folder: Path) -> None:
    assert (
        run("keys", "list", keys=folder).output
        == f"no keys in {folder}; create one with `compress keys new` or `compress sign`\n"
    )
    old = json.loads(run("keys", "new", "--json", keys=folder).stdout)["key_id"]
    new = json.loads(run("keys", "rotate", "--json", keys=folder).stdout)["key_id"]
    told = run("keys", "revoke", old, keys=folder)
    listed = run("keys", "list", keys=folder).stdout.splitlines()
    again = run("keys", "new", keys=folder)
    unknown = run("keys", "revoke", "feed", keys=folder)

    assert told.stdout.startswith(f"{old}: revoked at ")
    assert [line.split()[0] for line in listed] == [old, new]
    assert "revoked at" in listed[0]
    assert listed[1].endswith("signs")
    assert (again.exit_code, unknown.exit_code) == (79, 79)
    assert unknown.stderr.startswith(f"compress: {folder}: no key feed; known keys: default ({old}), default ({new})")


def test_the_option_wins_over_the_environment(folder: Path, tmp_path: Path) -> None:
    run("keys", "new", "--keys", tmp_path / "other", keys=folder)

    assert [key.name for key in read_trusted(tmp_path / "other")] == ["default"]
    assert not folder.exists()
