"""Activations: what the convolutions of a network put out, after the normalisation and activation that directly follow."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["show_activations"]

_FOLLOWING = frozenset(
    ("batch_norm", "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "elu", "prelu", "mish", "sigmoid")
)
"""What may stand between a convolution and the activation that is looked at."""

_LOOKING = frozenset(("dim", "size", "numel", "stride", "is_contiguous", "is_floating_point", "get"))
"""What asks a tensor about itself; `shape` and its like are `__get__`."""

Tell = Callable[[str, Tensor], None]
"""Layer, its activations (N, C, H, W)."""


def show_activations(module: nn.Module, inputs: Tensor, batch: int, tell: Tell) -> None:
    """Run `module` in evaluation mode on `inputs`, (N, C, H, W), so many at once, and `tell` of each convolution."""
    module.eval()
    with torch.no_grad():
        for pixels in inputs.split(batch):
            with _Watch(module, tell) as watch:
                module(pixels)
            watch.finish()


class _Watch(TorchFunctionMode):
    """Hands each convolution's output to `tell`, after the normalisation and activation that directly follow it, be they
    modules or functions; hooks would see modules only.
    """

    def __init__(self, module: nn.Module, tell: Tell) -> None:
        super().__init__()
        self._names = {id(layer.weight): name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
        self._tell = tell
        self._pending: dict[int, tuple[str, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = getattr(func, "__name__", "").strip("_")
        if kind in _LOOKING:
            return func(*args, **kwargs)
        given = (*args, *kwargs.values())
        follows = kind in _FOLLOWING and bool(given) and id(given[0]) in self._pending
        name = self._pending.pop(id(given[0]))[0] if follows else None
        for each in given:
            if id(each) in self._pending:
                self._tell(*self._pending.pop(id(each)))  # before it is used, which may be in place
        result = func(*args, **kwargs)
        if kind == "conv2d":
            name = self._names.get(id(args[1] if len(args) > 1 else kwargs.get("weight")))
        if name is not None:
            self._pending[id(result)] = name, result  # kept alive, or its id would be given to another
        return result

    def finish(self) -> None:
        """Tell of what nothing came after."""
        for name, maps in self._pending.values():
            self._tell(name, maps)
        self._pending.clear()
