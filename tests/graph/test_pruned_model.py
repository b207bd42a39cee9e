"""PrunedModelBuilder: a plan in its two forms, the torch module and the ONNX file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.analysed import builder_of
from helpers.nets import EXAMPLE, ZOO, Careful, Unsliceable, build
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.onnx_outputs import largest_difference, run_onnx
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan
from pipeline.graph.export import exporter_of
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.graph.structure import load_graph, structure
from pipeline.stages.probe_adapter import graph_of

CLOSE = 1e-5


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return tmp_path / "dense.onnx"


def drafts_of(module: nn.Module, dense: Path, ir_version: int = 9) -> PrunedModelBuilder:
    return start_builder(module, EXAMPLE, FileFormat(18, ir_version), PruningSettings(), dense)


def shapes(data: bytes, *layers: str) -> Mapping[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in load_graph(data).graph.initializer}
    return {layer: found[f"{layer}.weight"] for layer in layers}


def test_the_file_has_the_widths_of_the_plan() -> None:
    """x (3) -> conv(8) -> conv(12) -> linear(5), narrowed to 3 and 7"""
    pruned = builder_of(ZOO["chain"]).make(ChannelPlan.of({"a.0": 3, "b.0": 7}))

    assert shapes(pruned.data, "a.0", "b.0", "head") == {"a.0": (3, 3, 3, 3), "b.0": (7, 3, 3, 3), "head": (5, 7)}


def test_a_channel_of_a_grouped_convolution_is_one_output_of_each_group() -> None:
    """x (3) -> conv(2 x 4) -> conv(3 x 4) in 4 groups -> conv(6) -> linear(5), narrowed to 1 x 4, 2 x 4 and 5"""
    pruned = builder_of(ZOO["grouped"]).make(ChannelPlan.of({"a.0": 1, "b.0": 2, "c.0": 5}))
    expected = {"a.0": (4, 3, 3, 3), "b.0": (8, 1, 3, 3), "c.0": (5, 8, 3, 3), "head": (5, 5)}

    assert shapes(pruned.data, *expected) == expected
    assert largest_difference(pruned.answers, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_the_channels_that_stay_are_the_most_important(dense: Path) -> None:
    """channel 4 of 8 is ten times as loud as the rest, channel 1 twice"""
    module = build(ZOO["chain"])
    with torch.no_grad():
        module.a[0].weight.fill_(1.0)
        module.b[0].weight.fill_(1.0)
        module.a[0].weight[4] *= 10
        module.a[0].weight[1] *= 2

    assert drafts_of(module, dense).kept(ChannelPlan.of({"a.0": 2}))["a.0"] == (1, 4)


def test_arithmetic_and_parameters_are_those_of_the_narrow_network() -> None:
    """8x8 pixels; convolutions 3 -> 3 and 3 -> 7, whose BatchNorms became biases of 3 and 7 numbers, linear 7 -> 5"""
    pruned = builder_of(ZOO["chain"]).make(ChannelPlan.of({"a.0": 3, "b.0": 7}))
    convs = 3 * 3 * 9, 7 * 3 * 9

    assert pruned.macs == 64 * sum(convs) + 7 * 5
    assert pruned.params == sum(convs) + (3 + 7) + 7 * 5 + 5


def test_the_count_knows_the_size_behind_an_enlargement(dense: Path) -> None:
    """x (3) -> conv(8 of 8) -> twice the size, whose factors are numbers in the file -> conv(12) -> mean -> linear(5)"""

    class Enlarged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(F.interpolate(self.a(x).relu(), scale_factor=2.0)).mean((2, 3)))

    pruned = drafts_of(build(Enlarged), dense).make(ChannelPlan.of({"a": 4, "b": 6}))

    assert pruned.macs == 64 * 3 * 4 + 256 * 4 * 6 + 6 * 5
    assert pruned.params == 3 * 4 + 4 + 4 * 6 + 6 + 6 * 5 + 5


@pytest.mark.parametrize(("worst", "tolerance"), [(1e-7, 1e-3), (3e-3, 3e-2), (0.08, 0.1)])
def test_a_device_may_differ_more_where_onnx_runtime_loses_digits(worst: float, tolerance: float) -> None:
    """`worst` is the largest difference of the plans that were compared before the search"""
    builder = builder_of(ZOO["chain"])
    builder = replace(builder, network=replace(builder.network, worst=worst))

    assert graph_of(builder.make(builder.space.dense())).tolerance == pytest.approx(tolerance)


def test_training_a_draft_changes_nothing_that_was_said_of_it() -> None:
    builder = builder_of(ZOO["chain"])
    plan = ChannelPlan.of({"a.0": 3, "b.0": 7})
    pruned = builder.make(plan)
    before = pruned.data, pruned.answers[0].copy(), pruned.macs
    with torch.no_grad():
        for tensor in pruned.module.train().parameters():
            tensor.zero_()

    assert (pruned.data, pruned.macs) == (before[0], before[2])
    assert (pruned.answers[0] == before[1]).all()
    assert (builder.make(plan).answers[0] == before[1]).all()


@pytest.mark.parametrize("name", ["chain", "expand"])
def test_the_same_plan_is_the_same_bytes(name: str) -> None:
    builder = builder_of(Unsliceable if name == "expand" else ZOO[name])
    plan = ChannelPlan.of({group: (width + 1) // 2 for group, width in builder.space.dense()})

    first, second = builder.make(plan), builder.make(plan)

    assert first.data == second.data
    assert first.structure == second.structure == structure(load_graph(first.data))


def test_the_dense_file_is_exported_once_and_then_taken(dense: Path) -> None:
    """the second start finds the file with a note of ours in it, and leaves the note there"""
    module = build(ZOO["chain"])
    first = drafts_of(module, dense).make(ChannelPlan.of({"a.0": 3, "b.0": 7}))
    marked = load_graph(dense.read_bytes())
    marked.doc_string = "kept"
    dense.write_bytes(marked.SerializeToString())
    second = drafts_of(module, dense).make(ChannelPlan.of({"a.0": 3, "b.0": 7}))

    assert load_graph(dense.read_bytes()).doc_string == "kept"
    assert second.structure == first.structure


@pytest.mark.parametrize("ir_version", [8, 10, pytest.param(9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("factory", [ZOO["chain"], pytest.param(Unsliceable, marks=pytest.mark.slow)], ids=["chain", "expand"])
def test_every_file_has_the_ir_version_that_the_device_reads(factory: type[nn.Module], ir_version: int, dense: Path) -> None:
    builder = drafts_of(build(factory), dense, ir_version)
    model = load_graph(builder.make(builder.space.dense()).data)
    onnx.checker.check_model(model, full_check=True)

    assert model.ir_version == ir_version


def test_an_expand_has_the_widths_of_the_plan_too() -> None:
    pruned = builder_of(Unsliceable).make(ChannelPlan.of({"a.0": 2, "b.0": 5}))

    assert shapes(pruned.data, "a.0", "b.0", "head") == {"a.0": (2, 3, 3, 3), "b.0": (5, 2, 3, 3), "head": (5, 5)}
    assert largest_difference(pruned.answers, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_the_graph_of_the_other_exporter_is_sliced_too(dense: Path) -> None:
    builder = drafts_of(build(Careful), dense)
    pruned = builder.make(ChannelPlan.of({"a.0": 3, "b.0": 7}))

    assert builder.exporter == exporter_of(load_graph(dense.read_bytes())) == "torch.onnx.export(..., dynamo=False)"
    assert largest_difference(pruned.answers, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE
