"""Adapt: prepare a user's network for pruning and training. Its limits, such as batches, are found by running it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from pipeline.core.batch import Inputs, outputs_of, tensors_of
from pipeline.training.execution_mode import ExecutionMode, set_execution_mode

__all__ = ["adapt", "plain"]

DEPENDENCE = 1e-2
"""Largest difference that counts as rounding, as a share of the largest output."""
Shapes = list[tuple[int, ...]]
"""Shapes of the outputs of a network."""
_NORMS: dict[int, type[_BatchNorm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Number of input dimensions -> BatchNorm class."""


def plain(module: nn.Module) -> nn.Module:
    """Return `module` without the wrappers of `torch.compile` and without inference tensors. Names lose their `_orig_mod.`
    prefix. Tensors that were made under `torch.inference_mode` become ordinary tensors.
    """
    module = _uncompiled(module)
    known: dict[int, Any] = {}
    for layer in module.modules():
        layer._compiled_call_impl = None
        for name, child in layer._modules.items():
            if child is not None:
                layer._modules[name] = _uncompiled(child)
    for layer in module.modules():
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    fresh = known.setdefault(id(tensor), _ordinary_batchnorm(tensor))
                    tensors[name] = fresh
    return module


def adapt(module: nn.Module, images: Inputs) -> tuple[str, ...]:
    """Change `module` in place so that it can be trained here, and store its execution mode. Returns notices for the user.

    `images` are two real inputs, (2, C, H, W), or a `Batch` of two samples. The network must run on the first one alone.
    `requires_grad` is switched on everywhere, because a pruned network must learn as a whole. `SyncBatchNorm` becomes an
    ordinary BatchNorm. A network that does not accept batches is given its images one by one.
    """
    notices: list[str] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _replace_sync_batchnorm(module, images[:1])
        frozen = [name for name, tensor in module.named_parameters() if not tensor.requires_grad and tensor.is_floating_point()]
        if frozen:
            for name in frozen:
                module.get_parameter(name).requires_grad_(True)
            more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
            notices.append(
                f"'{frozen[0]}'{more} had requires_grad=False; they are trained too, because a pruned network must be trained "
                "as a whole"
            )
        module.eval()
        if reason := _batch_problem(module, images):
            _run_one_by_one(module)
            notices.append(f"{reason}; it gets its images one by one, as on the device, which takes longer")
        set_execution_mode(module, ExecutionMode(channels_last=_supports_channels_last(module, images)))
    return tuple(notices)


def _uncompiled(module: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    return module


def _ordinary_batchnorm(tensor: Tensor) -> Tensor:
    clone = tensor.clone()
    return nn.Parameter(clone, requires_grad=clone.is_floating_point()) if isinstance(tensor, nn.Parameter) else clone


def _replace_sync_batchnorm(module: nn.Module, image: Inputs) -> None:
    """Replace each SyncBatchNorm, which trains only on several GPUs, by the BatchNorm class that fits its input."""
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.SyncBatchNorm)]
    dims: dict[str, int] = {}
    layers = {name: module.get_submodule(name) for name in names}
    handles = [
        layer.register_forward_pre_hook(lambda _, read, name=name: dims.update({name: read[0].dim()}))
        for name, layer in layers.items()
    ]
    try:
        if names:
            module.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if not isinstance(layer, nn.SyncBatchNorm):
            continue
        kind = _NORMS.get(dims.get(name, 4), nn.BatchNorm2d)
        norm = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        norm._parameters, norm._buffers, norm.training = layer._parameters, layer._buffers, layer.training
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, norm)


def _answers(module: nn.Module, images: Inputs, shapes: Shapes) -> bool:
    """Whether `module` returns tensors of these shapes for `images`. Any exception counts as no."""
    try:
        return _shapes(outputs_of(module(images))) == shapes
    except Exception:
        return False


def _shapes(tensors: tuple[Tensor, ...]) -> Shapes:
    return [tuple(tensor.shape) for tensor in tensors]


def _batch_problem(module: nn.Module, images: Inputs) -> str | None:
    """The reason why the network must get its images one by one, or None."""
    try:
        alone = [outputs_of(module(image)) for image in images.split(1)]
        expected = tuple(torch.cat(parts) for parts in zip(*alone, strict=True))
    except (TypeError, ValueError, RuntimeError):  # outputs of another form, which are reported elsewhere
        return None
    if len(alone) < 2:
        return None
    if not _answers(module, images, _shapes(expected)):
        return "the network does not accept batches"
    if any(_depends(*pair) for pair in zip(outputs_of(module(images)), expected, strict=True)):
        return "the network's output for an image depends on the other images of the batch, as with batch statistics"
    return None


def _depends(together: Tensor, alone: Tensor) -> bool:
    """Whether an output differs by more than rounding. Integers are positions or classes, which rounding may change."""
    if not alone.numel() or not alone.is_floating_point():
        return False
    return bool((together - alone).abs().max() > DEPENDENCE * alone.abs().max())


def _supports_channels_last(module: nn.Module, images: Inputs) -> bool:
    if not any(tensor.dim() == 4 for tensor in tensors_of(images)):
        return False
    try:
        copied = copy.deepcopy(module).to(memory_format=torch.channels_last)
        expected = outputs_of(module(images))
    except Exception:  # the steps that need the copy or the output report it
        return True
    return _answers(copied, images.contiguous(memory_format=torch.channels_last), _shapes(expected))


def _run_one_by_one(module: nn.Module) -> None:
    """Give `module` its own class, which splits each batch. The names of its tensors do not change."""
    kind = type(module)

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        values = (*inputs, *named.values())
        count = next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 1)
        if torch._C._get_tracing_state() or count == 1:
            return kind.forward(self, *inputs, **named)

        def one(value: Any, number: int) -> Any:
            batched = isinstance(value, Tensor) and value.dim() and len(value) == count
            return value[number : number + 1] if batched else value

        answers = [
            kind.forward(self, *(one(value, i) for value in inputs), **{key: one(value, i) for key, value in named.items()})
            for i in range(count)
        ]
        leaves = [tree_flatten(answer) for answer in answers]
        parts = zip(*(values for values, _ in leaves), strict=True)
        return tree_unflatten([torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in parts], leaves[0][1])

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
