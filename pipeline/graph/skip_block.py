"""Skip block: let a user's own module run without a block, by replacing the modules inside the block.

If one module holds the whole block with its addition, a module that returns its input takes its place. Otherwise the last module
of the block returns zeros, which are added to the entry, and the others return their inputs. Whether the network then has the
right output is not known here: `pipeline.graph.prunable_network` compares it with the sliced graph.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.plan import Block

__all__ = ["Bypassed", "Silenced", "replacements", "ways_to_skip"]


class Bypassed(nn.Module):
    """Takes the place of a module of a dropped block, and returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first argument."""
        return args[0] if args else next(iter(kwargs.values()))


class Silenced(nn.Module):
    """Takes the place of the last module of a dropped block, and returns zeros in the shape of its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(args[0] if args else next(iter(kwargs.values())))


def replacements(module: nn.Module, blocks: Iterable[Block]) -> dict[int, object]:
    """The memo for `copy.deepcopy` with which a copy of `module` has no `blocks`. Raises AttributeError for an unknown module."""
    memo: dict[int, object] = {}
    for block in blocks:
        memo |= {id(module.get_submodule(name)): Bypassed() for name in block.bypassed}
        memo |= {id(module.get_submodule(name)): Silenced() for name in block.silenced}
    return memo


def ways_to_skip(module: nn.Module, block: Block, known: Collection[str]) -> Iterator[Block]:
    """Yield `block` with the modules to replace, in every way that may work.

    `known` are the tensors of the state dict that the exported graph has.
    """
    names = {name for name, _ in module.named_modules()}
    owners = _outermost(block.tensors, known, names)
    for _ in range(2):
        if len(owners) == 1:
            yield replace(block, bypassed=owners)
        if owners:
            yield replace(block, bypassed=owners[:-1], silenced=owners[-1:])
        # the outermost modules may do more than the block does, so the modules that they hold are tried as well
        inner = [f"{owner}.{child}" for owner in owners for child, _ in module.get_submodule(owner).named_children()]
        owners = tuple(dict.fromkeys(name for tensor in block.tensors for name in inner if tensor.startswith(f"{name}.")))


def _outermost(tensors: tuple[str, ...], known: Collection[str], modules: Collection[str]) -> tuple[str, ...]:
    """The outermost modules all of whose known tensors are among `tensors`, in the order in which they are finished."""
    mine = set(tensors)
    found: dict[str, None] = {}
    for tensor in tensors:
        parts = tensor.split(".")
        for length in range(1, len(parts)):
            owner = ".".join(parts[:length])
            if owner in modules and all(name in mine for name in known if name.startswith(f"{owner}.")):
                found.pop(owner, None)
                found[owner] = None
                break
    return tuple(found)
