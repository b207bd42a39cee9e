"""Export: one file, as asked, with nothing of this machine in it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from helpers.analysed import exported
from helpers.nets import EXAMPLE, ZOO, Careful, build
from helpers.processes import said_by_another_process
from torch import Tensor, nn

from pipeline.core.onnx_outputs import run_onnx
from pipeline.errors import TraceError
from pipeline.graph.difference import first_difference
from pipeline.graph.export import SCOPES, export, exporter_of, opset_of, stripped
from pipeline.graph.exporters import EXPORTERS
from pipeline.graph.structure import load_graph


@pytest.mark.parametrize("name", ["chain", "transposed", "layer-norm"])
def test_the_file_has_the_opset_and_ir_version_asked_for(name: str) -> None:
    model = stripped(exported(ZOO[name]), 9)
    onnx.checker.check_model(model, full_check=True)

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 9


@pytest.mark.parametrize(
    ("opset", "ir_version"),
    [(20, 8), (23, 11), pytest.param(18, 8, marks=pytest.mark.slow), pytest.param(22, 10, marks=pytest.mark.slow)],
)
def test_a_newer_opset_and_another_ir_version_are_reached_too(opset: int, ir_version: int) -> None:
    model = stripped(export(build(ZOO["chain"]), EXAMPLE, opset, ir_version), ir_version)
    read = load_graph(model.SerializeToString())
    onnx.checker.check_model(read, full_check=True)

    assert [entry.version for entry in read.opset_import] == [opset]
    assert read.ir_version == ir_version


CAPTURED, TRACED = EXPORTERS
FIRST = {CAPTURED: EXPORTERS[CAPTURED]}


def test_an_opset_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(TraceError, match=r"it needs ONNX opset 18, and the device reads, or the profile asks for, 17; raise"):
        export(build(ZOO["chain"]), EXAMPLE, 17, 9, exporters=FIRST)


def test_an_opset_goes_up_where_the_network_needs_it_and_the_device_reads_it() -> None:
    assert opset_of(export(build(ZOO["chain"]), EXAMPLE, 17, 9, highest_opset=20, exporters=FIRST)) == 18


def test_an_opset_that_one_exporter_does_not_reach_is_reached_by_the_other() -> None:
    model = export(build(ZOO["chain"]), EXAMPLE, 17, 9)

    assert (opset_of(model), exporter_of(model)) == (17, TRACED)


def test_nothing_of_the_exporter_or_this_machine_is_left() -> None:
    """no stack traces, no paths, no node notes, no stale shapes"""
    base = exported(ZOO["residual"])
    shipped = stripped(base, 9)

    assert not [part for part in (b".py", b"site-packages", str(Path.cwd()).encode()) if part in base.SerializeToString()]
    assert {entry.key for node in base.graph.node for entry in node.metadata_props} == {SCOPES}
    assert b"pkg.torch" not in shipped.SerializeToString()
    assert not shipped.graph.value_info
    assert not shipped.functions


def test_all_weights_are_inside() -> None:
    model = exported(ZOO["flatten"])

    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise"])
def test_batchnorm_after_a_convolution_is_folded_away(name: str) -> None:
    model = exported(ZOO[name])

    assert not {"BatchNormalization", "Dropout", "Identity"} & {node.op_type for node in model.graph.node}


def test_the_graph_answers_like_the_network_whose_batchnorms_it_folded() -> None:
    """their statistics and scales are far from 0 and 1"""
    module = build(ZOO["residual"])
    with torch.no_grad():
        expected = module(EXAMPLE).numpy()

    np.testing.assert_allclose(run_onnx(exported(ZOO["residual"]).SerializeToString(), EXAMPLE.numpy()), expected, atol=1e-5)


def test_the_same_network_gives_the_same_bytes() -> None:
    again = export(build(ZOO["concat"]), EXAMPLE, 18, 9)

    assert again.SerializeToString(deterministic=True) == exported(ZOO["concat"]).SerializeToString(deterministic=True)


def fingerprint(name: str) -> str:
    """The SHA-256 of the exported file."""
    model = stripped(exported(ZOO[name]), 9)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@pytest.mark.slow  # tests/cli/test_resume.py compares the files of two processes, too
@pytest.mark.parametrize("name", ["squeeze-excite", "concat"])
def test_two_processes_make_the_same_bytes(name: str) -> None:
    program = f"""
sys.path.insert(0, "tests/graph")
from test_export import fingerprint
print(fingerprint({name!r}))
"""
    here = fingerprint(name)

    assert here != fingerprint("chain")
    assert said_by_another_process(program) == [here]


class Careless(Careful):
    exporting = staticmethod(torch.onnx.is_in_onnx_export)


def test_an_exporter_that_is_wrong_is_replaced_by_the_other() -> None:
    """torch.export sees another network than the one that runs; TorchScript sees the right one"""
    module, model = build(Careful), exported(Careful)
    with torch.no_grad():
        expected = module(EXAMPLE).numpy()

    assert exporter_of(model) == TRACED
    np.testing.assert_allclose(run_onnx(model.SerializeToString(), EXAMPLE.numpy()), expected, atol=1e-5)


def test_a_file_of_the_other_exporter_is_as_clean() -> None:
    shipped = stripped(exported(Careful), 9)
    onnx.checker.check_model(shipped, full_check=True)

    assert not [part for part in (b".py", b"site-packages", str(Path.cwd()).encode()) if part in shipped.SerializeToString()]
    assert {entry.key for entry in shipped.metadata_props} == {"edge_compress.exporter"}
    assert not {"BatchNormalization", "Dropout", "Identity"} & {node.op_type for node in shipped.graph.node}


def test_where_both_are_wrong_the_first_node_that_differs_is_named() -> None:
    with pytest.raises(
        TraceError,
        match=r"ONNX: the output of its graph is off by [\d.]+ % of the largest one, from Mul in the network's own forward\(\) on; write",
    ):
        export(build(Careless), EXAMPLE, 18, 9)


def test_the_node_is_found_behind_convolutions_whose_batchnorms_were_folded() -> None:
    """x -> conv, BatchNorm, ReLU -> conv, BatchNorm, ReLU (here the file has a LeakyReLU) -> mean -> linear"""
    module, model = build(ZOO["chain"]), exported(ZOO["chain"])
    last = [node for node in model.graph.node if node.op_type == "Relu"][-1]
    last.op_type = "LeakyRelu"

    assert first_difference(module, model, EXAMPLE) == "LeakyRelu in 'b.2'"


def test_weights_that_no_onnx_file_holds_are_refused_before_anything_is_exported() -> None:
    """3 GiB, never touched, so they cost nothing here"""
    module = nn.Linear(3, 5)
    module.weight = nn.Parameter(torch.empty(5, 3 * 2**26))

    with pytest.raises(TraceError, match=r"take 3\.8 GiB, and one ONNX file holds less than 2"):
        export(module, EXAMPLE, 18, 9)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_was_in(training: bool) -> None:
    module = build(ZOO["chain"]).train(training)
    export(module, EXAMPLE, 18, 9, exporters={TRACED: EXPORTERS[TRACED]})

    assert module.training is training


def test_a_network_with_two_inputs_is_refused_with_what_is_missing() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(
        TraceError,
        match=r"^the network cannot be exported to ONNX: its own code fails on an input of 1x3x8x8: TypeError: .*'y'.*; let it run on",
    ):
        export(Two(), EXAMPLE, 18, 9)


def test_a_second_input_that_may_be_left_out_is_left_out() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x + 1 if mask is None else x * mask

    assert [value.name for value in export(Optional(), EXAMPLE, 18, 9).graph.input] == ["input"]


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def test_an_op_that_onnx_does_not_have_is_named() -> None:
    with pytest.raises(
        TraceError, match=r"it uses the operation bessel_j0, which has no counterpart in ONNX \(.*DispatchError.*; write that"
    ):
        export(Bessel(), EXAMPLE, 18, 9)


def test_an_operator_of_a_later_opset_raises_the_opset_if_the_device_reads_it() -> None:
    """a deformable convolution, which ONNX has from opset 19 on"""

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torchvision.ops.deform_conv2d(x, x.mean(1, keepdim=True).expand(-1, 18, -1, -1), self.weight, padding=1)

    assert 19 <= opset_of(export(Deformed(), EXAMPLE, 18, 9, 21)) <= 21


def test_an_export_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """TorchScript would show its graph"""
    with pytest.raises(TraceError):
        export(Bessel(), EXAMPLE, 18, 9)

    assert capfd.readouterr() == ("", "")


def test_a_network_that_decides_by_its_input_is_refused() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(TraceError, match=r"ONNX: its code makes decisions from values of the input at test_export\.py:\d+, "):
        export(Deciding(), EXAMPLE, 18, 9)


def test_the_exporter_prints_nothing(capfd: pytest.CaptureFixture[str], read_operators_anew: Callable[[], None]) -> None:
    read_operators_anew()
    export(build(ZOO["chain"]), torch.randn(1, 3, 8, 8), 18, 9)

    assert capfd.readouterr() == ("", "")
