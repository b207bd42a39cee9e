"""Tiny networks as they were exported and analysed, once in a process: that takes half a second, and the tests need few of them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from torch import nn

from helpers.families import FAMILIES
from helpers.nets import EXAMPLE, build
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import PruneSpace
from pipeline.core.restriction import Restriction
from pipeline.graph.analyse import analyse
from pipeline.graph.edit import copy_of
from pipeline.graph.export import export, export_trainable
from pipeline.graph.prunable_network import PrunableNetwork
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings

__all__ = ["analysed", "builder_of", "builder_with_blocks", "exported", "exported_trainable", "space_of"]

Factory = Callable[[], nn.Module]


@cache
def analysed(factory: Factory) -> PrunableNetwork:
    """`analyse` of the network that `build` makes. All callers share it, so no test may change its module."""
    return analyse(build(factory), EXAMPLE)


def space_of(factory: Factory) -> PruneSpace:
    """The groups of the network. They depend on its code, and not on its weights."""
    return analysed(factory).space


def exported(factory: Factory) -> onnx.ModelProto:
    """A copy of the deployed graph of the network that `build` makes, with opset 18."""
    return copy_of(_exported(factory))


def exported_trainable(factory: Factory) -> onnx.ModelProto:
    """A copy of its trainable graph."""
    return copy_of(_exported_trainable(factory))


@cache
def _exported(factory: Factory) -> onnx.ModelProto:
    return export(build(factory), EXAMPLE, 18, 9)


@cache
def _exported_trainable(factory: Factory) -> onnx.ModelProto:
    return export_trainable(build(factory), EXAMPLE, 18, 9)


@cache
def builder_of(factory: Factory) -> PrunedModelBuilder:
    """A builder of pruned models of the network. All callers share it, so no test may change its module."""
    with TemporaryDirectory() as folder:
        return start_builder(build(factory), EXAMPLE, FileFormat(18, 9), PruningSettings(), Path(folder) / "dense.onnx")


@cache
def builder_with_blocks(family: str) -> PrunedModelBuilder:
    """A builder of a small family whose blocks can be dropped. All callers share it, so no test may change its module."""
    module, example = FAMILIES[family]()
    settings = PruningSettings(restriction=Restriction(depth=True))
    with TemporaryDirectory() as folder:
        return start_builder(module, example, FileFormat(18, 10), settings, Path(folder) / "dense.onnx")
