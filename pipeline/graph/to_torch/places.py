"""Places: where each initializer of the graph lives in the torch module, under which name and in which layout."""

import contextlib
import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Places", "TorchTensor", "from_initializer", "remove_layers", "remove_tensor", "to_initializer"]


class TorchTensor(NamedTuple):
    """Where an initializer lives in a torch state dict."""

    name: str
    """For example 'layer1.0.conv1.weight'."""
    axes: tuple[int, ...]
    """axes[i] is the torch tensor's axis that is the initializer's axis i. -1 means an axis of length 1 that torch has not."""


def from_initializer(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The torch tensor of an initializer's values."""
    kept = [axis for axis in axes if axis >= 0]
    values = values.reshape([size for size, axis in zip(values.shape, axes, strict=True) if axis >= 0])
    return values.permute([kept.index(axis) for axis in range(len(kept))])


def to_initializer(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """A torch tensor in the layout of its initializer, as a view."""
    values = tensor.permute([axis for axis in axes if axis >= 0])
    for place, axis in enumerate(axes):
        if axis < 0:
            values = values.unsqueeze(place)
    return values


class Holder(nn.Module):
    """A part of a dotted name. It holds tensors and modules and computes nothing."""


class Places:
    """Puts modules and tensors into a root module under legal, unique names.

    `initializers` are the float initializers of the graph. `trainable` names those that are trained; None means all tensors of
    layers. The network shares the memory of `shared`, so a tensor of another layout is a view.
    """

    def __init__(
        self,
        root: nn.Module,
        initializers: Mapping[str, Tensor],
        trainable: Container[str] | None,
        shared: Container[str] = (),
    ) -> None:
        self.root = root
        self.initializers = initializers
        self.tensors: dict[str, TorchTensor] = {}
        self._trainable, self._shared = trainable, shared
        self._placed: dict[str, Tensor] = {}
        self._homes: dict[str, tuple[nn.Module, str]] = {}

    def fits(self, name: str, axes: tuple[int, ...]) -> bool:
        """Whether the initializer is not placed yet, or is placed in this layout."""
        return name not in self.tensors or self.tensors[name].axes == axes

    def put_module(self, wish: str, module: nn.Module) -> str:
        """Put a module at the dotted name `wish`, or at a similar one that is free. Returns the name."""
        *parents, last = _parts(wish)
        parent, names = self._holder(parents)
        found = parent._modules.get(last)
        if type(found) is Holder:  # it was made for tensors or modules below this one
            module._modules.update(found._modules)
            del parent._modules[last]
        last = _free(parent, last)
        parent.add_module(last, module)
        return ".".join([*names, last])

    def put(self, module: nn.Module, path: str, attribute: str, name: str, axes: tuple[int, ...] | None = None) -> None:
        """Make the initializer `name` the tensor `attribute` of a layer. `fits` was asked before."""
        layout = tuple(range(self.initializers[name].dim())) if axes is None else axes
        known = self._placed.get(name)
        is_buffer = attribute in module._buffers
        if known is None:
            known = from_initializer(self.initializers[name], layout)
            if name not in self._shared:
                known = known.contiguous()
            if not is_buffer:
                known = nn.Parameter(known, requires_grad=self._trainable is None or name in self._trainable)
            self._placed[name] = known
            self._homes[name] = (module, attribute)
            self.tensors[name] = TorchTensor(f"{path}.{attribute}", layout)
        if is_buffer:
            module._buffers[attribute] = known.detach()
        else:
            module._parameters[attribute] = known if isinstance(known, nn.Parameter) else nn.Parameter(known, requires_grad=False)

    def put_alone(self, name: str) -> None:
        """Place an initializer that is no layer's tensor: as a parameter if it is trained, otherwise as a buffer."""
        if name in self.tensors:
            return
        *parents, last = _parts(name)
        parent, names = self._holder(parents)
        last = _free(parent, last)
        values = self.initializers[name]
        if self._trainable is not None and name in self._trainable:
            parent.register_parameter(last, nn.Parameter(values))
        else:
            parent.register_buffer(last, values)
        self._homes[name] = (parent, last)
        self.tensors[name] = TorchTensor(".".join([*names, last]), tuple(range(values.dim())))

    def home(self, name: str) -> tuple[nn.Module, str, tuple[int, ...]]:
        """(module, attribute, layout) of a placed initializer."""
        return (*self._homes[name], self.tensors[name].axes)

    def _holder(self, parts: list[str]) -> tuple[nn.Module, list[str]]:
        module, names = self.root, []
        for part in parts:
            child = module._modules.get(part)
            name = part if child is not None else _free(module, part)
            if child is None:
                child = Holder()
                module.add_module(name, child)
            names.append(name)
            module = child
        return module, names


def remove_layers(root: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Take `layers` out of `root`. Modules that a layer holds stay, and a part of the name that computes nothing holds them."""
    gone = {id(layer) for layer in layers}
    for path, module in list(root.named_modules(remove_duplicate=False)):
        if id(module) in gone:
            parent, _, last = path.rpartition(".")
            siblings = root.get_submodule(parent)._modules
            del siblings[last]
            if module._modules:
                siblings[last] = holder = Holder()
                holder._modules.update(module._modules)


def remove_tensor(root: nn.Module, name: str) -> None:
    """Take the tensor with this name out of `root`, if it is still there."""
    path, _, last = name.rpartition(".")
    with contextlib.suppress(AttributeError):  # its layer was removed
        module = root.get_submodule(path)
        module._parameters.pop(last, None)
        module._buffers.pop(last, None)


def _parts(name: str) -> list[str]:
    return [re.sub(r"\W", "_", part) or "_" for part in name.split(".")]


def _free(module: nn.Module, name: str) -> str:
    """`name`, or `name_2`, `name_3` ... if the module has an attribute of that name."""
    wish, count = name, 1
    while hasattr(module, name):
        count += 1
        name = f"{wish}_{count}"
    return name
