"""Activations: record the outputs of convolutions, after the normalisation and activation that directly follow them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import placed

__all__ = ["show_activations"]

_FOLLOWING = frozenset(
    ("batch_norm", "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "elu", "prelu", "mish", "sigmoid")
)
"""Functions that may directly follow a convolution; their result replaces its output."""

_LOOKING = frozenset(("dim", "size", "numel", "stride", "is_contiguous", "is_floating_point", "get"))
"""Functions that only query a tensor and do not use its values. Attributes such as `shape` are read through `__get__`."""

Tell = Callable[[str, Tensor], None]
"""Called with the name of a layer and its activations, (N, C, H, W)."""


def show_activations(module: nn.Module, inputs: Inputs, batch: int, tell: Tell) -> None:
    """Run `module` in evaluation mode on `inputs`, (N, C, H, W), in batches of `batch`; call `tell` for each convolution."""
    module.eval()
    with placed(module) as device, torch.no_grad():
        for pixels in inputs.split(batch):
            with _Watch(module, tell) as watch:
                module(pixels.to(device))
            watch.finish()


class _Watch(TorchFunctionMode):
    """Passes each convolution's output to `tell`, after the normalisation and activation that directly follow it. It sees
    both modules and functions; forward hooks would see modules only.
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
                self._tell(*self._pending.pop(id(each)))  # before its next use, which may change it in place
        result = func(*args, **kwargs)
        if kind == "conv2d":
            name = self._names.get(id(args[1] if len(args) > 1 else kwargs.get("weight")))
        if name is not None:
            self._pending[id(result)] = name, result  # keeps the result alive: Python reuses the ids of freed objects
        return result

    def finish(self) -> None:
        """Pass on the outputs that no further operation used."""
        for name, maps in self._pending.values():
            self._tell(name, maps)
        self._pending.clear()
