"""Inputs in .npy and .npz files: they become samples without labels, and nothing in the file can run code or fill the memory."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as random_arrays

from pipeline.core.batch import tensors_of
from pipeline.data.arrays import WantedInput, load_arrays
from pipeline.errors import DataError, EmptyData
from pipeline.system.array_file import map_arrays

GENERATOR = np.random.default_rng(0)
PICTURES = GENERATOR.standard_normal((12, 3, 8, 8)).astype(np.float32)
COUNTS = np.arange(12)
PIXELS = GENERATOR.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)

KINDS = st.sampled_from(["<f4", ">f4", "f8", "f2", "u1", "<i8", "bool"])
ARRAYS = KINDS.flatmap(lambda kind: random_arrays.arrays(kind, random_arrays.array_shapes(min_dims=0, max_side=4)))


def saved(folder: Path, *arrays: Any, **named: Any) -> Path:
    """A .npy file of one array, or a .npz file."""
    path = folder / ("inputs.npz" if named or len(arrays) > 1 else "inputs.npy")
    if path.suffix == ".npz":
        np.savez(path, *arrays, **named)
    else:
        np.save(path, arrays[0])
    return path


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_:/.]{0,6}[a-z]", fullmatch=True), ARRAYS, min_size=1, max_size=3))
def test_what_numpy_saved_is_mapped_and_not_read(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("arrays") / "inputs.npz"
    np.savez(path, **arrays)
    found = map_arrays(path)

    assert list(found) == list(arrays)
    for name, expected in arrays.items():
        assert isinstance(found[name], np.memmap)
        np.testing.assert_array_equal(found[name], expected)


def test_compressed_arrays_are_read_within_limits(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=PICTURES, n=COUNTS)
    found = map_arrays(tmp_path / "a.npz")

    assert list(found) == ["x", "n"]
    np.testing.assert_array_equal(found["x"], PICTURES)


def test_an_array_that_is_stored_by_columns_keeps_its_values(tmp_path: Path) -> None:
    assert map_arrays(saved(tmp_path, np.asfortranarray(np.arange(6).reshape(2, 3))))[""].tolist() == [[0, 1, 2], [3, 4, 5]]


def npy(shape: str, body: bytes, kind: str = "<f4") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def archive(name: str, data: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as packed:
        packed.writestr(name, data)
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.npy", pickled(), "the array holds object; only numbers are accepted"),
        ("a.npy", npy("(2,)", bytes(4)), "the array is cut off, or its shape is wrong"),
        ("a.npy", npy("(-1, -1)", bytes(4)), "the array is cut off, or its shape is wrong"),
        ("a.npy", npy(f"({2**62}, {2**62})", bytes(4)), "the array is cut off, or its shape is wrong"),
        ("a.npy", npy("(0, 3)", b""), "the array is empty or cut off (shape (0, 3))"),
        ("a.npy", b"<html>404 not found</html>", "not a file of arrays; write it with numpy.save"),
        ("a.npz", b"PK\3\4 cut off", "not a file of arrays; write it with numpy.save"),
        ("a.npz", archive("x.npy", npy("(2,)", bytes(8), "<U1"), zipfile.ZIP_DEFLATED), "array 'x' holds <U1 (2,); only numbers"),
        ("a.npz", archive("x.npy", npy("(9,)", bytes(8)), zipfile.ZIP_DEFLATED), "array 'x' is cut off, or its shape is wrong"),
        ("a.npz", archive("x.txt", b"text"), "'x.txt' is not an array of its own"),
        ("a.npz", archive("x.npy", npy("(9,)", bytes(8))), "array 'x' is cut off, or its shape is wrong"),
        ("a.npz", archive("x.npy", b""), "not a file of arrays"),
    ],
    ids=["pickle", "cut off", "negative", "huge", "empty", "html", "broken zip", "packed text", "packed and longer", "text", "longer", "no array"],
)  # fmt: skip
def test_a_file_that_is_not_plain_arrays_is_refused_in_one_line(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        map_arrays(tmp_path / name)

    assert str(caught.value).startswith(f"{tmp_path / name}: {complaint}")


def test_floats_go_to_the_network_as_they_are(tmp_path: Path) -> None:
    splits = load_arrays(saved(tmp_path, PICTURES.astype(np.float64)), (), None, seed=0)
    parts = (splits.train, splits.validation, splits.test)
    indices = torch.cat([part.indices for part in parts])
    found = torch.cat([next(part.batches(12))[0] for part in parts])  # type: ignore[misc]

    assert sorted(indices.tolist()) == list(range(12))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(PICTURES)[indices])


@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_normalised_as_declared_beside_the_file(tmp_path: Path, channels_last: bool) -> None:
    (tmp_path / "preprocessing.yaml").write_text("mean: [0.5, 0.25, 0]\nstd: [0.5, 0.5, 1]\n")
    first = PIXELS.transpose(0, 3, 1, 2)
    splits = load_arrays(saved(tmp_path, PIXELS if channels_last else first), (), None, seed=0)
    found, _ = next(splits.train.batches(4))
    expected = (first[splits.train.indices[:4]] / 255 - np.array([0.5, 0.25, 0])[:, None, None]) / np.array([0.5, 0.5, 1])[
        :, None, None
    ]

    np.testing.assert_allclose(tensors_of(found)[0], expected, rtol=1e-5, atol=1e-6)
    assert (splits.train.preprocessing.size, splits.train.preprocessing.width) == (8, None)


def test_several_arrays_are_a_batch_in_the_order_of_the_networks_inputs(tmp_path: Path) -> None:
    """the file has count (int64), then picture (float32); the network takes picture first, and count as int64"""
    wanted = (WantedInput("picture", (1, 3, 8, 8), "float32"), WantedInput("count", (1,), "int64"))
    splits = load_arrays(saved(tmp_path, count=COUNTS.astype(np.int32), picture=PICTURES), wanted, None, seed=0)
    inputs, labels = next(splits.validation.batches(2))
    chosen = splits.validation.indices[:2]

    picture, count = tensors_of(inputs)
    assert (count.tolist(), count.dtype, len(labels)) == (chosen.tolist(), torch.int64, 2)
    assert torch.equal(picture, torch.from_numpy(PICTURES)[chosen])
    assert set(splits.input_names) == {"picture", "count"}


def test_raw_pixels_keep_their_values_for_a_file_that_takes_them(tmp_path: Path) -> None:
    """a network that took uint8 in (N, H, W, C), and takes float32 in (N, C, H, W) now"""
    wanted = (WantedInput("images", (1, 3, 8, 8), "float32", channels_last=True, raw=True),)
    splits = load_arrays(saved(tmp_path, PIXELS), wanted, None, seed=0)
    found, _ = next(splits.train.batches(4))

    np.testing.assert_array_equal(tensors_of(found)[0], PIXELS.transpose(0, 3, 1, 2)[splits.train.indices[:4]].astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "wanted", "complaint"),
    [
        ({"x": PICTURES, "n": COUNTS[:5]}, (), "the arrays have different numbers of samples on their first axis (12 in x, 5 in n)"),
        ({"x": PICTURES[:4]}, (), "4 samples; give at least 10"),
        ({"x": PIXELS}, (), "array 'x' is uint8, and the normalisation of pixels is not declared; write floats that are ready"),
        ({"x": np.float32(1)}, (), "array 'x' is a single value; its first axis must be the sample"),
        ({"x": PICTURES}, (WantedInput("x", (1, 3, 9, 9), "float32"),), "array 'x' is Nx3x8x8; the network takes Nx3x9x9"),
        ({"x": PICTURES}, (WantedInput("x"), WantedInput("n")), "the network takes x, n, got x; write it with numpy.savez(file, x=...)"),
        ({"n": COUNTS / 2}, (WantedInput("n", (1,), "int64"),), "array 'n' is float64; the network takes int64, so write it with .astype('int64')"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_with_what_to_do(
    tmp_path: Path, arrays: dict[str, Any], wanted: tuple[WantedInput, ...], complaint: str
) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises((DataError, EmptyData)) as caught:
        load_arrays(path, wanted, None, seed=0)

    assert str(caught.value).startswith(f"{path}: {complaint}")
