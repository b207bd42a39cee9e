"""Arrays from a file: nothing in it can run code or fill the memory."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pipeline.core.network_input import NUMBERS
from pipeline.errors import DataError
from pipeline.system.npz_file import read_npz

kinds = st.sampled_from([*NUMBERS, ">f4", ">i2"])
array = kinds.flatmap(lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_side=4)))


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_:/.]{0,6}[a-z]", fullmatch=True), array, max_size=3), st.booleans())
def test_what_numpy_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], packed: bool
) -> None:
    path = tmp_path_factory.mktemp("npz") / "inputs.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    found = read_npz(path)

    assert list(found) == list(arrays)
    for name, expected in arrays.items():
        assert found[name].dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], expected)


def test_arrays_that_are_stored_by_columns_come_back(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(np.arange(6).reshape(2, 3)))

    assert read_npz(tmp_path / "a.npz")["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def npy(shape: str, body: bytes, kind: str = "<f4") -> bytes:
    """An array with any shape in its header."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def archive(name: str, data: bytes, **options: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as packed:  # type: ignore[arg-type]
        packed.writestr(name, data)
    return file.getvalue()


def with_objects() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.array([{}], dtype=object))
    return file.getvalue()


def unpacked(megabytes: int) -> bytes:
    return archive("x.npy", npy(f"({megabytes * 2**18},)", bytes(megabytes * 2**20)), compression=zipfile.ZIP_DEFLATED)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no archive": (lambda: b"x" * 100, "not a file of named arrays; write it with numpy.savez"),
    "empty": (lambda: b"", "not a file of named arrays"),
    "a single array": (lambda: npy("(1,)", bytes(4)), "not a file of named arrays"),
    "cut off": (lambda: archive("x.npy", npy("(1,)", bytes(4)))[:-30], "not a file of named arrays"),
    "Python objects": (with_objects, "array 'x' holds Python objects, which could run code"),
    "a terabyte": (lambda: archive("x.npy", npy("(274877906944,)", b"")), "array 'x' is cut off, or its shape is wrong"),
    "a negative size": (lambda: archive("x.npy", npy("(-1,)", b"")), "array 'x' is cut off, or its shape is wrong"),
    "a deep header": (lambda: archive("x.npy", npy("(" * 5000 + ")" * 5000, b"")), "not a file of named arrays"),
    "a text": (lambda: archive("x.txt", b"hello"), "'x.txt' is not an array of its own"),
    "much when unpacked": (lambda: unpacked(5), "its arrays have more than 4 MiB together"),
    "much": (lambda: archive("x.npy", bytes(2**22)), "cannot be read (larger than 4 MiB)"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_not_a_file_of_arrays_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    data, reason = HOSTILE[case]
    path = tmp_path / "inputs.npz"
    path.write_bytes(data())

    with pytest.raises(DataError) as refused:
        read_npz(path, limit_bytes=4 * 2**20)
    assert str(refused.value).startswith(f"{path}: {reason}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.npz: cannot be read \(No such file or directory\)"):
        read_npz(tmp_path / "none.npz")
