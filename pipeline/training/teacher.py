"""Teacher: the dense network, and which of its channels the pruned network kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

__all__ = ["KeptInputs", "Teacher"]

KeptInputs = Mapping[str, Sequence[int]]
"""Layer name -> the input channels of the dense network's layer that the pruned network kept. Other layers kept all of them."""


@dataclass(frozen=True)
class Teacher:
    """The dense network as the teacher of a pruned one."""

    module: nn.Module
    """Its layers have the names of the pruned network's layers."""
    kept_inputs: KeptInputs = field(default_factory=dict)
