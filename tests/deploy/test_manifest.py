"""A signed manifest: what is refused before anything is placed, and why."""

import datetime
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.deploy.keys import SigningKey, new_key, read_trusted, revoke_key
from pipeline.deploy.manifest import CONTEXT, MANIFEST, SIGNATURE, DeviceKind, Manifest, Terms, check_artifact, sign_artifact
from pipeline.errors import (
    Expired,
    FilesDiffer,
    ManifestError,
    OlderVersion,
    OtherDevice,
    RevokedKey,
    Unsigned,
    UntrustedKey,
    WrongSignature,
)
from pipeline.system.files import sha256_bytes

NOON = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
PI4 = DeviceKind("Raspberry Pi 4 Model B (4 GB)", "aarch64")
FILES = {"model.onnx": b"the network", "infer.py": b"the example", "empty": b""}


class Signed:
    """A folder of three files, signed by its own key."""

    def __init__(self, root: Path) -> None:
        self.folder, self.keys = root / "artifact", root / "keys"
        self.folder.mkdir()
        for name, data in FILES.items():
            (self.folder / name).write_bytes(data)
        self.key = new_key(self.keys, "ours", NOON)
        self.manifest = self.sign()

    def sign(self, key: SigningKey | None = None, version: int = 7, devices: tuple[str, ...] = ("Raspberry Pi 4*",)) -> Manifest:
        return sign_artifact(
            self.folder,
            key or self.key,
            Terms(
                name="digits",
                version=version,
                architecture="aarch64",
                devices=devices,
                created=NOON,
                expires=NOON + 10 * DAY,
                provenance={"verdict": "within"},
            ),
        )

    def check(self, device: DeviceKind = PI4, installed: int | None = None, now: datetime.datetime = NOON) -> Manifest:
        return check_artifact(self.folder, read_trusted(self.keys), device, installed, now)

    def sign_text(self, text: str) -> None:
        """Put any text in place of the manifest, rightly signed."""
        (self.folder / MANIFEST).write_text(text)
        seal = {"algorithm": "ed25519", "key_id": self.key.key_id, "signature": self.key.sign(CONTEXT + text.encode()).hex()}
        (self.folder / SIGNATURE).write_text(canonical(seal))

    @contextmanager
    def with_bytes(self, name: str, data: bytes) -> Iterator[None]:
        """Another content of a file, for a moment."""
        good = (self.folder / name).read_bytes()
        (self.folder / name).write_bytes(data)
        try:
            yield
        finally:
            (self.folder / name).write_bytes(good)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    """One for many examples; each puts back what it changed."""
    return Signed(tmp_path_factory.mktemp("kept"))


def test_what_was_signed_is_accepted_and_lists_every_file(signed: Signed) -> None:
    found = signed.check()

    assert found == signed.manifest
    assert {name: (facts.sha256, facts.size_bytes) for name, facts in found.files.items()} == {
        name: (sha256_bytes(data), len(data)) for name, data in FILES.items()
    }
    assert found.digest == sha256_bytes((signed.folder / MANIFEST).read_bytes())


def test_the_manifest_is_canonical_json(signed: Signed) -> None:
    """sorted keys, no spaces, UTF-8; python's own parser and printer agree"""
    raw = (signed.folder / MANIFEST).read_text("utf-8")

    assert raw == canonical(json.loads(raw))


def test_signing_twice_gives_the_same_bytes(signed: Signed) -> None:
    first = (signed.folder / MANIFEST).read_bytes(), (signed.folder / SIGNATURE).read_bytes()
    signed.sign()

    assert ((signed.folder / MANIFEST).read_bytes(), (signed.folder / SIGNATURE).read_bytes()) == first


# any change at all


def test_every_flipped_byte_of_every_file_is_refused(signed: Signed) -> None:
    """All of them, one by one, each by another of its bits: manifest, signature, model, example."""
    accepted, tried = [], 0
    for path in sorted(signed.folder.iterdir()):
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
            tried += 1
            try:
                signed.check()
                accepted.append((path.name, place))
            except ManifestError:
                pass
        path.write_bytes(good)

    assert accepted == []
    assert tried == sum(path.stat().st_size for path in signed.folder.iterdir()) > 700
    assert signed.check() == signed.manifest


@settings(max_examples=100)
@given(data=st.data())
def test_every_cut_insertion_and_replacement_is_refused(kept: Signed, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted({*FILES, MANIFEST, SIGNATURE})), "file")
    good = (kept.folder / name).read_bytes()
    start = data.draw(st.integers(0, len(good)), "start")
    end = data.draw(st.integers(start, len(good)), "end")
    bad = good[:start] + data.draw(st.binary(max_size=30), "put there") + good[end:]

    with kept.with_bytes(name, bad):
        if bad == good:
            assert kept.check() == kept.manifest
        else:
            with pytest.raises(ManifestError):
                kept.check()


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
@settings(max_examples=100)
@given(raw=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(kept: Signed, name: str, raw: bytes) -> None:
    with kept.with_bytes(name, raw), pytest.raises(ManifestError):
        kept.check()


# who signed


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_an_unsigned_artifact_is_refused(signed: Signed, name: str) -> None:
    (signed.folder / name).unlink()

    with pytest.raises(Unsigned, match=f"because {name} is missing; run `compress sign"):
        signed.check()


def test_a_folder_that_is_not_there_is_refused(signed: Signed, tmp_path: Path) -> None:
    with pytest.raises(Unsigned, match="no artifact in this folder"):
        check_artifact(tmp_path / "nowhere", read_trusted(signed.keys), PI4, None, NOON)


def test_the_key_of_a_stranger_is_refused(signed: Signed, tmp_path: Path) -> None:
    signed.sign(new_key(tmp_path / "strangers", "theirs", NOON))

    with pytest.raises(UntrustedKey, match="not in the trust file"):
        signed.check()


def test_a_stranger_who_claims_our_key_is_refused(signed: Signed, tmp_path: Path) -> None:
    theirs = new_key(tmp_path / "strangers", "theirs", NOON)
    signed.sign(SigningKey(signed.key.key_id, "ours", theirs.private))

    with pytest.raises(WrongSignature, match="the signature of key"):
        signed.check()


def test_a_revoked_key_is_refused_even_for_what_it_signed_before(signed: Signed) -> None:
    revoke_key(signed.keys, signed.key.key_id, NOON + DAY)

    with pytest.raises(RevokedKey, match=r"\(ours\), revoked at 2026-05-02T12:00:00Z"):
        signed.check(now=NOON)


def test_a_key_from_the_future_is_refused(signed: Signed) -> None:
    with pytest.raises(UntrustedKey, match="is valid from 2026-05-01T12:00:00Z on; check the clock"):
        signed.check(now=NOON - DAY)


def test_a_signature_of_another_manifest_is_refused(signed: Signed) -> None:
    old = (signed.folder / SIGNATURE).read_bytes()
    signed.sign(version=8)
    (signed.folder / SIGNATURE).write_bytes(old)

    with pytest.raises(WrongSignature):
        signed.check()


def test_a_signature_of_the_bare_bytes_is_refused(signed: Signed) -> None:
    """One made for another purpose, without the words that stand before a manifest."""
    raw = (signed.folder / MANIFEST).read_bytes()
    seal = {"algorithm": "ed25519", "key_id": signed.key.key_id, "signature": signed.key.sign(raw).hex()}
    (signed.folder / SIGNATURE).write_text(canonical(seal))

    with pytest.raises(WrongSignature):
        signed.check()


# for whom, and when


def test_an_expired_manifest_is_refused_from_that_second_on(signed: Signed) -> None:
    end = NOON + 10 * DAY

    assert signed.check(now=end - datetime.timedelta(seconds=1)) == signed.manifest
    with pytest.raises(Expired, match="'digits' expired at 2026-05-11T12:00:00Z"):
        signed.check(now=end)


def test_a_version_older_than_the_installed_one_is_refused_the_same_one_is_not(signed: Signed) -> None:
    assert signed.check(installed=6) == signed.check(installed=7) == signed.manifest
    with pytest.raises(OlderVersion, match="version 7 of 'digits' is older than version 8 on the device"):
        signed.check(installed=8)


@pytest.mark.parametrize(
    "device", [DeviceKind("Raspberry Pi 5", "aarch64"), DeviceKind(PI4.name, "x86_64"), DeviceKind("raspberry pi 4", "aarch64")]
)
def test_another_kind_of_device_is_refused(signed: Signed, device: DeviceKind) -> None:
    with pytest.raises(OtherDevice, match=r"made for Raspberry Pi 4\* \(aarch64\), not for"):
        signed.check(device)


def test_a_list_of_devices_fits_each_of_them(signed: Signed) -> None:
    signed.sign(devices=("Raspberry Pi [45]*", "Jetson Nano"))

    for name in ("Raspberry Pi 4", "Raspberry Pi 5 (8 GB)", "Jetson Nano"):
        signed.check(DeviceKind(name, "aarch64"))
    with pytest.raises(OtherDevice):
        signed.check(DeviceKind("Raspberry Pi 3", "aarch64"))


# the files


def link(folder: Path) -> None:
    (folder / "infer.py").rename(folder.parent / "aside")
    (folder / "infer.py").symlink_to(folder.parent / "aside")


def dangling(folder: Path) -> None:
    (folder / "infer.py").unlink()
    (folder / "infer.py").symlink_to("nowhere")


def hard_link(folder: Path) -> None:
    os.link(folder / "infer.py", folder.parent / "aside")


def pipe(folder: Path) -> None:
    (folder / "infer.py").unlink()
    os.mkfifo(folder / "infer.py")


def subfolder(folder: Path) -> None:
    (folder / "infer.py").unlink()
    (folder / "infer.py").mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "infer.py").unlink(), "infer.py is missing"),
        (lambda folder: (folder / "more.py").write_text(""), "'more.py' is not in the manifest"),
        (lambda folder: (folder / "infer.py").write_text("another example"), "infer.py: changed since it was signed"),
        (lambda folder: (folder / "infer.py").write_text("eht example"), "infer.py: changed since it was signed"),
        (lambda folder: (folder / "model.onnx").rename(folder / "net.onnx"), "model.onnx is missing"),
        (lambda folder: (folder / "empty").write_bytes(b"\0"), "empty: changed"),
        (link, "infer.py: cannot be read"),
        (dangling, "infer.py: cannot be read"),
        (hard_link, "infer.py: not a regular file, or one with several hard links"),
        (pipe, "infer.py: not a regular file, or one with several hard links"),
        (subfolder, "infer.py: not a regular file, or one with several hard links"),
    ],
    ids=["missing", "extra", "longer", "same length", "renamed", "not empty", "link", "dangling", "hard link", "pipe", "folder"],
)
def test_files_other_than_those_signed_are_refused(signed: Signed, spoil: Callable[[Path], object], said: str) -> None:
    spoil(signed.folder)

    with pytest.raises(FilesDiffer, match=said):
        signed.check()


@pytest.mark.parametrize("spoil", [link, dangling, hard_link, pipe, subfolder])
def test_links_pipes_and_folders_are_not_signed_either(signed: Signed, spoil: Callable[[Path], object]) -> None:
    before = (signed.folder / MANIFEST).read_bytes()
    spoil(signed.folder)

    with pytest.raises(FilesDiffer):
        signed.sign()
    assert (signed.folder / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_a_manifest_that_is_a_link_is_refused(signed: Signed, name: str) -> None:
    (signed.folder / name).rename(signed.folder.parent / name)
    (signed.folder / name).symlink_to(signed.folder.parent / name)

    with pytest.raises(FilesDiffer, match="cannot be read"):
        signed.check()


ODD_NAMES = [
    "a;reboot",
    "$(reboot)",
    "`reboot`",
    "a\nb",
    "-rf",
    ".hidden",
    "ä",
    "a b",
    "a" * 129,
    "\udcff",
    "*",
    "a'b",
    'a"b',
    "a\x1b[2Jb",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_are_neither_signed_nor_accepted(signed: Signed, name: str) -> None:
    """and the message shows them harmlessly"""
    (signed.folder / name).write_bytes(b"")

    for act in (signed.sign, signed.check):
        with pytest.raises(FilesDiffer) as refused:
            act()
        assert str(refused.value).isprintable()
        assert str(refused.value).isascii()


@pytest.mark.parametrize(
    "name", [*ODD_NAMES, "../model.onnx", "/etc/passwd", "a/b", "..", ".", "", MANIFEST, SIGNATURE], ids=ascii
)
def test_odd_names_in_a_manifest_are_malformed_however_well_signed(signed: Signed, name: str) -> None:
    content = signed.manifest.model_dump(mode="json")
    text = json.dumps(
        content | {"files": {**content["files"], name: content["files"]["empty"]}}, sort_keys=True, separators=(",", ":")
    )
    signed.sign_text(text)

    with pytest.raises(ManifestError, match="malformed") as refused:
        signed.check()
    assert type(refused.value) is ManifestError
    assert str(refused.value).isprintable()


# malformed, however well signed


@pytest.mark.parametrize("key", sorted(Manifest.model_fields))
def test_every_part_of_a_manifest_is_needed(signed: Signed, key: str) -> None:
    content = signed.manifest.model_dump(mode="json")
    del content[key]
    signed.sign_text(canonical(content))

    with pytest.raises(ManifestError, match="malformed"):
        signed.check()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"version": 0},
        {"version": 7.0},
        {"version": "7"},
        {"version": True},
        {"version": 2**53},
        {"version": 10**400},
        {"devices": []},
        {"devices": "Raspberry Pi 4"},
        {"devices": ["\x1b[2J"]},
        {"expires": "2027-05-01"},
        {"expires": "2027-05-01T12:00:00+00:00"},
        {"expires": "2027-5-1T12:00:00Z"},
        {"expires": None},
        {"files": {}},
        {"files": {"a": {"sha256": "00", "size_bytes": 0}}},
        {"files": {"a": {"sha256": "0" * 64, "size_bytes": -1}}},
        {"files": {"a": {"sha256": "A" * 64, "size_bytes": 1}}},
        {"files": {"a": {"sha256": "0" * 64, "size_bytes": 1, "url": "x"}}},
        {"name": ""},
        {"name": "a\nb"},
        {"unknown": 1},
        {"provenance": {"nested": {"deep": 1}}},
    ],
    ids=str,
)
def test_a_malformed_manifest_is_refused_however_well_signed(signed: Signed, change: dict[str, object]) -> None:
    signed.sign_text(canonical(signed.manifest.model_dump(mode="json") | change))

    with pytest.raises(ManifestError, match=r"manifest.json: malformed") as refused:
        signed.check()
    assert type(refused.value) is ManifestError


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text + "\n",
        lambda text: text.replace('":', '": '),
        lambda text: json.dumps(json.loads(text), indent=1),
        lambda text: text.replace('"name"', '"\\u006eame"'),
        lambda text: text.replace('"version":7', '"version":8,"version":7'),
    ],
    ids=["newline", "spaces", "indented", "escape", "a key twice"],
)
def test_a_second_spelling_of_the_same_content_is_refused(signed: Signed, respell: Callable[[str], str]) -> None:
    signed.sign_text(respell((signed.folder / MANIFEST).read_text()))

    with pytest.raises(ManifestError, match="not in canonical form"):
        signed.check()


@pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
def test_an_endless_manifest_is_refused_after_a_little_of_it(signed: Signed, name: str) -> None:
    """100 GB, of which the disk holds nothing"""
    os.truncate(signed.folder / name, 10**11)

    with pytest.raises(ManifestError, match="larger than 64 KiB"):
        signed.check()


@pytest.mark.parametrize(
    "text", ["[" * 60_000, '{"a":' * 10_000, "9" * 60_000, '"\\ud800"', "NaN", ""], ids=lambda text: text[:6]
)
def test_json_that_hurts_parsers_is_malformed(signed: Signed, text: str) -> None:
    signed.sign_text(text)

    with pytest.raises(ManifestError, match="malformed"):
        signed.check()


# cut off while signing


def test_signing_again_mends_what_a_kill_left(signed: Signed) -> None:
    """killed after the new manifest and before its signature, with a torn temporary file beside it"""
    old = (signed.folder / SIGNATURE).read_bytes()
    signed.sign(version=8)
    (signed.folder / SIGNATURE).write_bytes(old)
    (signed.folder / ".manifest.sig.0123abcd.tmp").write_bytes(b"{")
    with pytest.raises(WrongSignature, match="signing was interrupted"):
        signed.check()

    signed.sign(version=9)

    assert signed.check().version == 9
    assert {path.name for path in signed.folder.iterdir()} == {*FILES, MANIFEST, SIGNATURE}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"name": "a\nb"}, "printable"), ({"devices": ()}, "at least 1"), ({"version": 0}, "greater than or equal to 1")],
    ids=str,
)
def test_what_cannot_stand_in_a_manifest_is_not_signed(signed: Signed, change: dict[str, object], complaint: str) -> None:
    facts: dict[str, object] = {"name": "digits", "version": 1, "devices": ("*",)} | change

    with pytest.raises(ManifestError, match=f"cannot be signed: .*{complaint}"):
        sign_artifact(
            signed.folder,
            signed.key,
            Terms(
                architecture="aarch64",
                created=NOON,
                expires=NOON,
                provenance={},
                **facts,  # type: ignore[arg-type]
            ),
        )
