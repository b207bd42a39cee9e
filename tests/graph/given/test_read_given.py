"""The process that reads foreign ONNX files: its limits, and what it lets through."""

from pathlib import Path

import onnx
import pytest
from helpers.graphs import HEAD, conv_net
from helpers.onnx_files import as_keras

from pipeline.errors import ModelError
from pipeline.graph.bounded_child import Limits
from pipeline.graph.given.read import read_given


def test_a_network_is_read_and_its_changes_are_told(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(as_keras(13))
    given = read_given(tmp_path / "net.onnx", {}, 18, 23)

    assert given.notices == (
        "the file takes images as 1x12x12x3; the compressed file takes 1x3x12x12",
        "the file has opset 13; the compressed file has 18",
    )


def test_a_network_that_reaches_for_another_file_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(f"{HEAD} net (float[1,1024] x) => (float[1,1024] y) {{ y = Add (x, w) }}")
    tensor = model.graph.initializer.add(name="w", dims=[1, 1024], data_type=onnx.TensorProto.FLOAT)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    (tmp_path / "secret.bin").write_bytes(b"\x2a" * 4096)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match="keeps weights in other files; only single files are accepted"):
        read_given(tmp_path / "net.onnx", {}, 18, 23)


def test_a_network_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    text = f"""{HEAD} net (float[1,3,8,8] x) => (float[1,3,8,8] y) {{
        n = Constant <value_ints = [1, 1, 1000000, 1000000]> ()
        z = ConstantOfShape (n)  s = ReduceMax <keepdims = 0> (z)  y = Add (x, s)
    }}"""
    (tmp_path / "net.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())

    with pytest.raises(ModelError, match=r"net\.onnx: "):
        read_given(tmp_path / "net.onnx", {}, 18, 23)


def test_a_network_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(conv_net())

    with pytest.raises(ModelError, match=r"net.onnx: not an ONNX file that can be compressed \(no end of it after 0 s\)"):
        read_given(tmp_path / "net.onnx", {}, 18, 23, Limits(2**32, 24, 0.05))


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(ModelError, match=f"{kind}: cannot be read"):
        read_given(tmp_path / kind, {}, 18, 23)
