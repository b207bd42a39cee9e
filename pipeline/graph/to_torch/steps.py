"""Steps: how one node of the graph is computed. A network is a list of steps."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.errors import TraceError
from pipeline.graph.to_torch.node import Node, described
from pipeline.graph.to_torch.ops import Op
from pipeline.graph.to_torch.ops.contraction import convolution_padding, padded, transposed_padding

__all__ = ["CONSTANTS", "ConvStep", "ConvTransposeStep", "FunctionStep", "LayerStep", "Step", "Value"]

Value = Any
"""A tensor, or None for an absent input."""

CONSTANTS: dict[str, dict[str, int]] = {
    "ConstantOfShape": {"shape": 0},
    "Expand": {"shape": 1},
    "Gather": {"indices": 1},
    "Pad": {"pads": 1},
    "Reshape": {"shape": 1},
    "Resize": {"sizes": 3},
    "Slice": {"starts": 1, "ends": 2},
    "Split": {"split": 1},
    "Tile": {"repeats": 1},
}
"""Op -> {name of an integer constant: position among the node's inputs}."""


@dataclass
class Step:
    """One step. `inputs` and `outputs` are names of values; an absent input is ''."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: list[Value]) -> tuple[Tensor, ...]:
        """Compute the outputs from the inputs."""
        raise NotImplementedError


@dataclass
class FunctionStep(Step):
    """A step that is a function of its inputs."""

    function: Op

    def run(self, values: list[Value]) -> tuple[Tensor, ...]:
        """Compute the outputs from the inputs."""
        found = self.function(self.node, *values)
        return found if isinstance(found, tuple) else (found,)


@dataclass
class LayerStep(Step):
    """A step that calls a module, so that the module's hooks are called too."""

    layer: nn.Module

    def run(self, values: list[Value]) -> tuple[Tensor, ...]:
        """Compute the outputs from the inputs."""
        return (self.layer(values[0]),)


@dataclass
class ConvStep(LayerStep):
    """A convolution whose padding torch's layer does not have: the two sides differ, or it depends on the input's size."""

    def run(self, values: list[Value]) -> tuple[Tensor, ...]:
        """Compute the outputs from the inputs."""
        x = values[0]
        kernel = list(self.layer.kernel_size)  # type: ignore[arg-type]
        return (self.layer(padded(x, convolution_padding(self.node, list(x.shape[2:]), kernel))),)


@dataclass
class ConvTransposeStep(LayerStep):
    """A transposed convolution whose output is cut differently on the two sides."""

    def run(self, values: list[Value]) -> tuple[Tensor, ...]:
        """Compute the outputs from the inputs."""
        x = values[0]
        kernel = list(self.layer.kernel_size)  # type: ignore[arg-type]
        cuts = transposed_padding(self.node, list(x.shape[2:]), kernel)
        if min(width for pair in cuts for width in pair) < 0:
            raise TraceError(
                f"{described(self.node)}: 'output_shape' is larger than the convolution; use 'output_padding' instead"
            )
        return (padded(self.layer(x), [(-before, -after) for before, after in cuts]),)
