"""A float32 file in whole numbers of 8 bits: standard operators, the same bytes every time, nothing left behind."""

import hashlib
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.analysed import exported
from helpers.graphs import two_by_two
from helpers.nets import EXAMPLE, ZOO, build
from helpers.processes import said_by_another_process
from numpy.typing import NDArray

from pipeline.core.onnx_outputs import all_outputs, run_onnx
from pipeline.graph.export import export, stripped
from pipeline.graph.int8 import SCHEMES, NotQuantised, Quantiser, Scheme
from pipeline.graph.structure import load_graph

INPUTS: NDArray[np.float32] = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(2)).numpy()
TENSOR, CHANNEL = Scheme(False, "minmax"), Scheme(True, "minmax")


@cache
def fp32(name: str = "chain", opset: int = 18, ir_version: int = 9) -> bytes:
    model = exported(ZOO[name]) if opset == 18 else export(build(ZOO[name]), EXAMPLE, opset, ir_version)
    return bytes(stripped(model, ir_version).SerializeToString(deterministic=True))


def answers(data: bytes) -> NDArray[np.float32]:
    return np.concatenate([run_onnx(data, row[None]) for row in INPUTS])


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.text)
@pytest.mark.parametrize("name", ["chain", "residual", "depthwise"])
def test_every_scheme_answers_nearly_like_float32(name: str, scheme: Scheme) -> None:
    whole = answers(fp32(name))
    rounded = answers(Quantiser(fp32(name), INPUTS).make(scheme))

    assert 0 < np.abs(rounded - whole).max() < 0.2 * np.abs(whole).max()


def test_a_file_with_several_inputs_and_outputs_is_calibrated_with_all_of_them() -> None:
    """picture (float32), count (int64) -> map, scaled"""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((16, 3, 16, 16)).astype(np.float32), generator.integers(1, 4, 16)
    quantiser = Quantiser(two_by_two(), inputs)
    first = tuple(array[:1] for array in inputs)
    rounded, whole = (all_outputs(data, first) for data in (quantiser.make(TENSOR), two_by_two()))

    for ours, theirs in zip(rounded, whole, strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(theirs).max()
    assert all(0 < error < 0.1 for error in quantiser.errors(TENSOR).values())


def test_weights_are_whole_numbers_with_a_scale_for_all_or_for_every_channel() -> None:
    """x -> conv(8) -> conv(12) -> mean -> linear(5)"""
    quantiser = Quantiser(fp32(), INPUTS)
    scales = {}
    for scheme in (TENSOR, CHANNEL):
        model = load_graph(quantiser.make(scheme))
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        whole = [tensor for tensor in weights.values() if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4]
        readers = [node for node in model.graph.node if node.input[0] in {tensor.name for tensor in whole}]
        scales[scheme.text] = [list(weights[node.input[1]].dims) for node in readers]

    assert scales == {"per tensor, minmax": [[], []], "per channel, minmax": [[8], [12]]}


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 9), (22, 10), pytest.param(20, 9, marks=pytest.mark.slow)])
def test_opset_ir_version_and_metadata_are_the_sources_and_all_operators_standard(opset: int, ir_version: int) -> None:
    source = fp32(opset=opset, ir_version=ir_version)
    model = load_graph(Quantiser(source, INPUTS).make(CHANNEL))
    onnx.checker.check_model(model, full_check=True)

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == ir_version
    assert {entry.key for entry in model.metadata_props} == {"edge_compress.exporter", "edge_compress.int8"}
    assert {node.domain for node in model.graph.node} == {""}


def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", INPUTS)
    (tmp_path / "net.onnx").write_bytes(fp32("residual"))
    program = f"""
import hashlib
from pathlib import Path
import numpy
from pipeline.graph.int8 import SCHEMES, Quantiser
folder = Path({str(tmp_path)!r})
quantiser = Quantiser((folder / "net.onnx").read_bytes(), numpy.load(folder / "inputs.npy"))
for scheme in SCHEMES:
    print(hashlib.sha256(quantiser.make(scheme)).hexdigest())
"""
    quantiser = Quantiser(fp32("residual"), INPUTS)
    here = [hashlib.sha256(quantiser.make(scheme)).hexdigest() for scheme in SCHEMES]

    assert said_by_another_process(program) == here


def test_calibrating_in_chunks_sees_every_input() -> None:
    """the loudest input comes last, in a chunk of its own"""
    loud = INPUTS[:17].copy()
    loud[16] *= 10
    scale = {}
    for name, inputs in (("all", loud), ("without the last", loud[:16])):
        model = load_graph(Quantiser(fp32(), inputs).make(TENSOR))
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        first = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input")
        scale[name] = float(onnx.numpy_helper.to_array(weights[first.input[1]]))

    assert scale["all"] > 5 * scale["without the last"]


def test_a_spared_layer_keeps_its_float_weights() -> None:
    quantiser = Quantiser(fp32(), INPUTS)
    model = load_graph(quantiser.make(Scheme(True, "minmax", quantiser.layers[1:2])))
    floats = [list(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.dims) > 1]

    assert floats == [[12, 8, 3, 3]]


def test_the_layer_that_rounding_destroys_has_the_largest_error() -> None:
    """Channel 0 of the first convolution is always 0; the second one multiplies it by 1000. In float32 that changes nothing, but
    next to 1000 all its other weights are rounded to 0.
    """
    module = build(ZOO["chain"])
    with torch.no_grad():
        module.a[1].weight[0], module.a[1].bias[0] = 0.0, -1.0
        module.b[0].weight[:, 0] = 1000.0
    data = stripped(export(module, torch.from_numpy(INPUTS[:1]), 18, 9), 9).SerializeToString()
    quantiser = Quantiser(data, INPUTS)
    errors = quantiser.errors(CHANNEL)

    assert max(errors, key=lambda layer: errors[layer]) == quantiser.layers[1]
    assert sorted(errors.values())[-1] > 10 * sorted(errors.values())[-2]


def test_nothing_is_left_behind_and_nothing_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = fp32()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quantiser = Quantiser(source, INPUTS)
    for scheme in SCHEMES:
        quantiser.make(scheme)
    quantiser.errors(TENSOR)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    onnx.save(onnx.load_model_from_string(fp32()), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0)

    with pytest.raises(NotQuantised, match="keeps weights in other files; only single files are accepted"):
        Quantiser((tmp_path / "net.onnx").read_bytes(), INPUTS)


@pytest.mark.parametrize("data", [b"", b"no ONNX file"], ids=["empty", "garbage"])
def test_what_is_no_network_is_refused_in_a_line(data: bytes) -> None:
    with pytest.raises(NotQuantised, match=r"^.+$"):
        Quantiser(data, INPUTS)
