"""An accelerator that every machine has: torch's device "meta", whose tensors have a shape and no values.

Inside `other_device`, the compute device is "meta". A tensor that is copied from there holds ones. An operation that mixes the
memories of the two devices is an error, as with a GPU.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.core.compute_device import computing_on

META = torch.device("meta")
COPIES = ("aten::_to_copy", "aten::to", "aten::copy_")
INDEXING = ("aten::index", "aten::index.Tensor", "aten::_index_put_impl_", "aten::index_put_")
"""These may have their indices in the memory of the processor."""


class DeviceMixed(AssertionError):
    """A tensor of the processor met one of the other device outside a copy."""


class _Meta(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.computed = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = [each for each in tensors if each.device == META]
        if name in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero") and there:
            return 1
        target = next((each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.device)), META)
        if name in COPIES and there and target != META:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        here = [each for each in tensors if each.device != META and each.dim()]
        if here and there and name not in (*COPIES, *INDEXING):
            raise DeviceMixed(f"{name}: {[(each.device.type, tuple(each.shape)) for each in tensors]}")
        if name == "aten::bincount" and there:  # its size depends on the values
            return torch.ones(args[2] if len(args) > 2 else kwargs["minlength"], dtype=torch.long, device=META)
        self.computed += bool(there) and "conv" in name
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[_Meta]:
    """Let networks run on the other device. Yields an object whose `computed` counts the convolutions there."""
    with computing_on(META), _Meta() as mode:
        yield mode
