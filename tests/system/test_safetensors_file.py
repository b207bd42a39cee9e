"""Safetensors files that the library reads and that do not say one thing only are refused, and nothing of them is lost in silence."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.errors import RunError, WeightsError
from pipeline.packaging.pack import load_compressed
from pipeline.system.safetensors_file import check_header, read_tensors
from pipeline.training.checkpoints import read_checkpoint


def file_of(header: str, body: bytes = bytes(16)) -> bytes:
    raw = header.encode()
    return len(raw).to_bytes(8, "little") + raw + body


def entry(dtype: str, start: int, end: int, *shape: int) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})


TWICE = file_of(f'{{"w":{entry("F32", 0, 8, 2)},"w":{entry("F32", 8, 16, 2)}}}')
COMPLEX = file_of(f'{{"w":{entry("C64", 0, 16, 2)}}}')


def test_a_name_that_stands_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(TWICE)

    with pytest.raises(WeightsError, match="its header names 'w' twice"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_a_key_that_stands_twice_in_an_entry_is_refused(key: str) -> None:
    header = f'{{"w":{entry("F32", 0, 16, 4)}}}'
    value = json.loads(header)["w"][key]

    with pytest.raises(ValueError, match=f"names '{key}' twice"):
        check_header(file_of(header.replace('{"dtype"', f'{{"{key}":{json.dumps(value)},"dtype"')))


def test_a_complex_tensor_is_refused(tmp_path: Path) -> None:
    """written by the library itself"""
    safetensors.torch.save_file({"w": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w.safetensors")

    with pytest.raises(WeightsError, match="'w' is of type C64, which is not a type of weights"):
        read_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("data", [TWICE, COMPLEX])
def test_an_artifact_is_not_rebuilt_from_such_a_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "weights.safetensors").write_bytes(data)
    (tmp_path / "plan.json").write_text('{"format": 1, "groups": {}}')

    with pytest.raises(RunError, match=r"weights\.safetensors and plan\.json are missing or unreadable"):
        load_compressed(torch.nn.Conv2d(1, 1, 1), tmp_path)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_every_real_type_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(3).to(dtype), "b": torch.zeros(2, 2).to(dtype)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", metadata={"a": "b"})
    found = read_tensors(tmp_path / "w.safetensors")

    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in found.items()} == {
        name: (dtype, tensor.tolist()) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(8),
        file_of("[]"),
        file_of("null"),
        file_of("{"),
        file_of('{"w":1}'),
        file_of("[" * 100_000),
        file_of('{"w":NaN}'),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)

    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_checkpoint(tmp_path / "w.safetensors")
