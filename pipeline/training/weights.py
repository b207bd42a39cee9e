"""Weights: fill a network with the state dict of a checkpoint that fits it, and report which parts were used."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import WeightsError
from pipeline.training.checkpoints import State, is_average, read_checkpoint

__all__ = ["fill"]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile, FSDP and activation checkpointing insert anywhere in a name."""
LEFTOVERS = ("total_ops", "total_params")
"""Buffers that FLOP counters add to every layer."""
STATISTIC = "num_batches_tracked"
"""A BatchNorm buffer that is not needed to run. Old files and networks without running statistics do not have it."""
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights", "module")
MOST_PREFIXES = 20


@dataclass(frozen=True)
class _Names:
    """The tensor names of a network."""

    expected: State
    plain: Mapping[str, str]
    """Name without wrapper parts -> name."""
    own: frozenset[str]
    """Names of the tensors that the network computes itself."""


@dataclass(frozen=True)
class _Match:
    """A comparison of one state dict of a file with the network, after `prefix` is removed from its names."""

    where: str
    prefix: str
    tensors: State
    """Matching tensors, by the network's own names."""
    ignored: tuple[str, ...]
    """Leftovers and statistics that the network does not have."""
    outside: tuple[str, ...]
    """Names that do not start with `prefix`."""
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return bool(self.tensors) and not (self.missing or self.unknown or self.misshapen)

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Sort key: averages come first, then usual names of networks."""
        key = _last(self.where)
        usual = USUAL_KEYS.index(key) if key in USUAL_KEYS else len(USUAL_KEYS)
        return not is_average(self.prefix), not is_average(self.where), usual if self.where else -1


def fill(module: nn.Module, path: Path, notify: Callable[[str], None] = lambda text: None) -> None:
    """Fill `module` in place with the state dict in the file at `path` that fits it.

    If the names fit without a prefix, it is removed; torch.compile, DataParallel and Lightning add one. If several state dicts
    fit, one that is named as an average (EMA) is preferred. `notify` is called with notices about what was used and left out.
    Raises WeightsError if none fits or values are not finite, and the errors of `read_checkpoint`.
    """
    states, names = read_checkpoint(path), _names(module)
    matches = [match for where, state in states.items() for match in _matches(names, where, state)]
    fitting = sorted((match for match in matches if match.fits), key=lambda match: match.rank)
    if not fitting:
        closest = max(matches, key=lambda match: (len(match.tensors) - len(match.unknown), not match.where))
        raise WeightsError(f"{path}: does not match the network: {_complaint(names.expected, closest, states)}")
    chosen = fitting[0]
    _refuse_values(chosen.tensors, names.expected, path)
    for text in _notices(chosen, fitting):
        notify(f"{path.name}: {text}")
    module.load_state_dict(chosen.tensors, strict=False)


def _names(module: nn.Module) -> _Names:
    expected = module.state_dict()
    plain = {_plain(name): name for name in expected}
    if len(plain) < len(expected):
        plain = {name: name for name in expected}
    # `computed_weights` of a layer lists the tensors that it computes itself
    own = {f"{name}.{weight}" for name, layer in module.named_modules() for weight in getattr(layer, "computed_weights", ())}
    return _Names(expected, plain, frozenset(own))


def _matches(names: _Names, where: str, state: State) -> Iterator[_Match]:
    """Compare the state dict as it is, and without each prefix after which names of the network follow."""
    given = {_plain(name): tensor for name, tensor in state.items()}
    hits = Counter(prefix for name in given for prefix in _prefixes(name) if name[len(prefix) :] in names.plain)
    for prefix in {"": 0, **dict(hits.most_common(MOST_PREFIXES))}:
        inside = {name[len(prefix) :]: tensor for name, tensor in given.items() if name.startswith(prefix)}
        tensors = {names.plain[name]: _shaped(tensor, name) for name, tensor in inside.items() if name in names.plain}
        others = [name for name in inside if name not in names.plain]
        yield _Match(
            where,
            prefix,
            tensors,
            ignored=tuple(name for name in others if _last(name) in (*LEFTOVERS, STATISTIC)),
            outside=tuple(name for name in given if not name.startswith(prefix) and _last(name) not in LEFTOVERS),
            missing=tuple(n for n in names.expected if n not in tensors and n not in names.own and _last(n) != STATISTIC),
            unknown=tuple(prefix + name for name in others if _last(name) not in (*LEFTOVERS, STATISTIC)),
            misshapen=tuple(name for name, tensor in tensors.items() if tensor.shape != names.expected[name].shape),
        )


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(name: str) -> Iterator[str]:
    """All prefixes of a name: '', 'a.' and 'a.b.' for 'a.b.weight'."""
    parts = name.split(".")
    for count in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:count])


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _shaped(tensor: Tensor, name: str) -> Tensor:
    """Reshape the count of batches to a scalar, because some programs save it as an array of length one."""
    return tensor.reshape(()) if _last(name) == STATISTIC and tensor.numel() == 1 else tensor


def _complaint(expected: State, match: _Match, states: dict[str, State]) -> str:
    holder = f"the state under '{match.where}'" if match.where else "the file"
    for kind, names in (("lacks", match.missing), ("has an unknown", match.unknown)):
        if names:
            others = f" (the file contains {_listed(list(states))})" if len(states) > 1 else ""
            return f"{holder} {kind} {_listed(names)}{others}; it may belong to another network"
    name = match.misshapen[0]
    return (
        f"'{name}' is {tuple(match.tensors[name].shape)} in the file and {tuple(expected[name].shape)} in the network; it may "
        "belong to another network, or to another number of classes"
    )


def _refuse_values(tensors: State, expected: State, path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise WeightsError(f"{path}: '{name}' is quantised, sparse or without values; save the float network's state dict")
        if tensor.is_complex() and not expected[name].is_complex():
            raise WeightsError(
                f"{path}: '{name}' contains complex numbers, but the network's are real; it may belong to another network"
            )
        as_built = tensor == expected[name].to(tensor.device)  # such as the minus infinity in the mask of an attention
        if not (torch.isfinite(tensor) | as_built).all():
            raise WeightsError(f"{path}: '{name}' contains values that are not finite; its training probably diverged")


def _notices(chosen: _Match, fitting: list[_Match]) -> Iterator[str]:
    if chosen.where:
        average = " (an average over training steps)" if is_average(chosen.where) else ""
        yield f"the state dict under '{chosen.where}' is used{average}"
    if chosen.prefix:
        average = " (an average over training steps)" if is_average(chosen.prefix) else ""
        rest = f"; ignored because they lack the prefix: {_listed(chosen.outside)}" if chosen.outside else ""
        yield f"only names with the prefix '{chosen.prefix}' are used{average}, and the prefix is removed{rest}"
    others = [f"{match.where}.{match.prefix}".strip(".") or "the file itself" for match in fitting[1:]]
    if others:
        yield f"also matching: {_listed(others)}; to use another state dict, save it as a separate file"
    if chosen.ignored:
        yield f"ignored because they are not part of the network: {_listed(chosen.ignored)}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"'{names[0]}'{more}"
