"""Export: one file, as asked, with nothing of this machine in it."""

import onnx
import pytest
import torch
from nets import EXAMPLE, ZOO, build
from torch import Tensor, nn

from pipeline.errors import TraceError
from pipeline.graph.export import SCOPES, export, stripped


@pytest.mark.parametrize("name", ZOO)
def test_the_file_has_the_opset_and_ir_version_asked_for(name: str) -> None:
    model = stripped(export(build(ZOO[name]), EXAMPLE, opset=18, ir_version=9), 9)
    onnx.checker.check_model(model, full_check=True)

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 9


def test_a_newer_opset_is_reached_too() -> None:
    model = export(build(ZOO["chain"]), EXAMPLE, opset=20, ir_version=9)

    assert [entry.version for entry in model.opset_import] == [20]


def test_nothing_of_the_exporter_or_this_machine_is_left() -> None:
    """no stack traces, no paths, no node notes, no stale shapes"""
    base = export(build(ZOO["residual"]), EXAMPLE, 18, 9)
    shipped = stripped(base, 9)

    assert b".py" not in base.SerializeToString()
    assert {entry.key for node in base.graph.node for entry in node.metadata_props} == {SCOPES}
    assert b"pkg.torch" not in shipped.SerializeToString()
    assert not shipped.graph.value_info
    assert not shipped.functions


def test_all_weights_are_inside() -> None:
    model = export(build(ZOO["flatten"]), EXAMPLE, 18, 9)

    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", ["chain", "residual", "depthwise"])
def test_batchnorm_after_a_convolution_is_folded_away(name: str) -> None:
    model = export(build(ZOO[name]), EXAMPLE, 18, 9)

    assert not {"BatchNormalization", "Dropout", "Identity"} & {node.op_type for node in model.graph.node}


def test_the_same_network_gives_the_same_bytes() -> None:
    first, second = (
        stripped(export(build(ZOO["concat"]), EXAMPLE, 18, 9), 9).SerializeToString(deterministic=True) for _ in range(2)
    )

    assert first == second


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_the_mode_it_was_in(training: bool) -> None:
    module = build(ZOO["chain"]).train(training)
    export(module, EXAMPLE, 18, 9)

    assert module.training is training


def test_a_network_with_two_outputs_is_refused_with_what_to_do() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x + 2

    with pytest.raises(TraceError, match=r"2 outputs; wrap it so that"):
        export(Two(), EXAMPLE, 18, 9)


def test_a_network_that_decides_by_its_input_is_refused() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x - 1

    with pytest.raises(TraceError, match="cannot be exported to ONNX"):
        export(Deciding(), EXAMPLE, 18, 9)


def test_the_exporter_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    export(build(ZOO["chain"]), torch.randn(1, 3, 8, 8), 18, 9)

    assert capfd.readouterr() == ("", "")
