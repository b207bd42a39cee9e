"""Hostile input: whatever a file or an answer holds, it is read, or refused with an error that says so; nothing else."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.readers import READERS, Reader
from hypothesis import given, settings
from hypothesis import strategies as st

ODD_TEXTS = [
    "",
    "a;reboot",
    "$(reboot)",
    "`reboot`",
    "a\nb",
    "-rf",
    "../../etc/passwd",
    "/etc/passwd",
    "\x00",
    "\x1b[2J",
    "a" * 5000,
    "é",
    "🧨",
    "\ud800",
]
ODD_NUMBERS = [0, -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
VALUES = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ODD_TEXTS) | st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile", numbered=True)


@functools.cache
def place(root: Path, name: str) -> tuple[Path, bytes]:
    """A folder for the files of one reader, and the one that it takes."""
    below = root / name.replace(" ", "-")
    below.mkdir(mode=0o700)
    return below / READERS[name].name, READERS[name].valid(below)


def refuses_or_takes(reader: Reader, path: Path, data: bytes) -> bool:
    """Whether the file is taken. Anything raised but an error of the reader's own is the test's failure."""
    path.write_bytes(data)
    try:
        reader.read(path)
    except reader.error as problem:
        refusal = str(problem)
    else:
        return True
    assert 10 < len(refusal) < 1000
    return False


@pytest.mark.parametrize("name", READERS)
def test_the_file_as_it_should_be_is_taken(folder: Path, name: str) -> None:
    path, valid = place(folder, name)

    assert refuses_or_takes(READERS[name], path, valid)


def check_arbitrary_bytes(folder: Path, name: str, data: st.DataObject) -> None:
    path, _ = place(folder, name)
    refuses_or_takes(READERS[name], path, data.draw(st.binary(max_size=400)))


def check_changed_bytes(folder: Path, name: str, data: st.DataObject) -> None:
    path, valid = place(folder, name)
    start = data.draw(st.integers(0, len(valid)))
    end = data.draw(st.sampled_from([start, start + 1, start + 2, start + 9, len(valid)]))
    refuses_or_takes(READERS[name], path, valid[:start] + data.draw(st.binary(max_size=12)) + valid[end:])


def check_changed_value(folder: Path, name: str, data: st.DataObject) -> None:
    """One value, anywhere in what the text says, becomes another, goes, or stands under another name."""
    path, valid = place(folder, name)
    reader = READERS[name]
    value = loaded(reader.form, valid)
    at = data.draw(st.sampled_from(sorted(places_of(value), key=str)))
    change = data.draw(st.sampled_from(["replace", "remove", "rename"]))
    changed = edited(value, at, change, data.draw(VALUES), data.draw(st.sampled_from(ODD_TEXTS)))
    refuses_or_takes(reader, path, dumped(reader.form, changed))


COSTLY = ("answers", "given network")
"""They take a process, or a session of ONNX Runtime, for each file."""
FILES = [name for name in READERS if name not in COSTLY]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25)
@given(data=st.data())
def test_arbitrary_bytes_are_refused_by_name(folder: Path, name: str, data: st.DataObject) -> None:
    check_arbitrary_bytes(folder, name, data)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25)
@given(data=st.data())
def test_a_file_with_some_bytes_changed_is_taken_or_refused_by_name(folder: Path, name: str, data: st.DataObject) -> None:
    check_changed_bytes(folder, name, data)


@pytest.mark.parametrize("name", [name for name in FILES if READERS[name].form != "bytes"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_file_with_another_value_somewhere_is_taken_or_refused_by_name(folder: Path, name: str, data: st.DataObject) -> None:
    check_changed_value(folder, name, data)


@pytest.mark.parametrize("check", [check_arbitrary_bytes, check_changed_bytes, check_changed_value])
@settings(max_examples=5)
@given(data=st.data())
def test_what_another_program_answers_in_a_worker_s_place_is_refused_by_name(
    folder: Path, check: Callable[[Path, str, st.DataObject], None], data: st.DataObject
) -> None:
    """over a real link, a process for each: few"""
    check(folder, "answers", data)


@pytest.mark.parametrize("check", [check_arbitrary_bytes, check_changed_bytes])
@settings(max_examples=8)
@given(data=st.data())
def test_a_network_that_is_prepared_for_pruning_is_taken_or_refused_by_name(
    folder: Path, check: Callable[[Path, str, st.DataObject], None], data: st.DataObject
) -> None:
    check(folder, "given network", data)


@pytest.mark.parametrize("name", [name for name in FILES if READERS[name].form != "bytes"])
@pytest.mark.parametrize(
    "text",
    [b"[" * 60_000, b'{"a":' * 12_000, b"9" * 60_000, b"1e999999", b"\xff{}", b"\x00" * 1000, b"- " * 20_000, b"null"],
    ids=lambda text: repr(text[:6]),
)
def test_texts_that_hurt_parsers_are_refused_by_name(folder: Path, name: str, text: bytes) -> None:
    path, _ = place(folder, name)

    assert not refuses_or_takes(READERS[name], path, text + b"\n")


@pytest.mark.parametrize("key", ["time_limit_s", "timeout_s", "cooldown_s", "reconnect_s", "runs", "noise_limit"])
@pytest.mark.parametrize(
    "number", [10**400, -(10**400), 2**64, float("nan"), float("inf"), -1], ids=lambda number: str(number)[:6]
)
def test_a_number_beyond_all_measure_is_out_of_range(folder: Path, key: str, number: float) -> None:
    path, valid = place(folder, "profile")
    value = yaml.safe_load(valid)

    assert not refuses_or_takes(READERS["profile"], path, yaml.safe_dump(value | {"probe": {key: number}}).encode())


def loaded(form: str, data: bytes) -> Any:
    if form == "yaml":
        return yaml.safe_load(data)
    return [json.loads(line) for line in data.splitlines()] if form == "json lines" else json.loads(data)


def dumped(form: str, value: Any) -> bytes:
    if form == "yaml":
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    if form == "json lines" and isinstance(value, list):
        return b"".join(json.dumps(line).encode() + b"\n" for line in value)
    return json.dumps(value).encode()


def places_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to everything in it."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_of(inner, (*at, key))


def edited(value: Any, at: tuple[Any, ...], change: str, other: Any, name: str) -> Any:
    """A copy that is changed at one place."""
    if not at:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    key, rest = at[0], at[1:]
    if rest or change == "replace":
        copy[key] = edited(copy[key], rest, change, other, name)
    else:
        moved = copy.pop(key)
        if change == "rename" and isinstance(copy, dict):
            copy[name] = moved
    return copy
