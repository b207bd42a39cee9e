"""Single output: make a network return a tensor if it returns a dict, a list or a tuple with one tensor.

The shipped file has one output, and all comparisons here use tensors. The user's own functions still get the output in its
original form.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ModelError

__all__ = ["Form", "answers_in", "in_its_form", "keep_form", "unwrap"]

Place = tuple[Any, ...]
"""Keys and indices that lead to a tensor."""


@dataclass(frozen=True)
class Form:
    """The form of a network's output, and the place of the tensor in it."""

    answer: Any
    place: Place

    def __str__(self) -> str:
        kind = type(self.answer).__name__
        return f"{kind} with one tensor (at {''.join(f'[{key!r}]' for key in self.place)})"


@dataclass(frozen=True)
class _Unwrap:
    """A forward hook that replaces the output by its tensor. An output without anything at this place is not changed."""

    place: Place

    def __call__(self, _module: nn.Module, _inputs: Any, answer: Any) -> Any:
        for key in self.place:
            try:
                answer = answer[key]
            except (KeyError, IndexError, TypeError):
                return None
        return answer


@dataclass(frozen=True)
class _Wrap:
    """A forward hook that puts the tensor back into the original form of the output."""

    form: Form

    def __call__(self, _module: nn.Module, _inputs: Any, answer: Any) -> Any:
        return _wrapped(self.form.answer, self.form.place, answer) if isinstance(answer, Tensor) else None


def unwrap(module: nn.Module, example: Tensor, spec: str) -> Form | None:
    """Make `module` return the single tensor in its output, in place, and return the form of the output. Returns None if the
    output is already a tensor, or if `module` fails on `example`, (1, C, H, W), which is reported elsewhere.

    Raises ModelError, naming `spec`, if the output contains no tensor or more than one.
    """
    try:
        with torch.no_grad():
            answer = module(example)
    except Exception:
        return None
    if isinstance(answer, Tensor):
        return None
    places = list(_places(answer))
    if len(places) != 1:
        raise ModelError(
            f"{spec}: the network returns a {type(answer).__name__} with {len(places)} tensors, but exactly one is needed; "
            "make its forward return only that one"
        )
    form = Form(_emptied(answer), places[0])
    keep_form(module, form)
    return form


def keep_form(module: nn.Module, form: Form) -> None:
    """Make `module`, whose output has this form, return the tensor."""
    if not _hooks(module):
        module.register_forward_hook(_Unwrap(form.place))


@contextmanager
def in_its_form(module: nn.Module, form: Form) -> Iterator[nn.Module]:
    """Yield `module`, which returns the original form inside the block. It may be an ONNX file wrapped as a module."""
    hooks = _hooks(module)
    for number in hooks:
        del module._forward_hooks[number]
    handle = None if hooks else module.register_forward_hook(_Wrap(form))
    try:
        yield module
    finally:
        if handle:
            handle.remove()
        module._forward_hooks.update(hooks)


def answers_in(function: Callable[[nn.Module], Any], form: Form) -> Callable[[nn.Module], Any]:
    """Wrap a user's `function`: its argument returns the original form, and a network that it returns gives the tensor."""

    def called(module: nn.Module) -> Any:
        with in_its_form(module, form):
            found = function(module)
        if isinstance(found, nn.Module):
            keep_form(found, form)
        return found

    return called


def _hooks(module: nn.Module) -> dict[int, Any]:
    return {number: hook for number, hook in module._forward_hooks.items() if isinstance(hook, _Unwrap)}


def _places(answer: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(answer, Tensor):
        yield place
    elif isinstance(answer, Mapping | list | tuple):
        for key, inner in answer.items() if isinstance(answer, Mapping) else enumerate(answer):
            yield from _places(inner, (*place, key))


def _emptied(answer: Any) -> Any:
    """The output with its tensor replaced by None, so that the tensor is not kept in memory."""
    place = next(_places(answer))
    return _wrapped(answer, place, None)


def _wrapped(answer: Any, place: Place, inner: Any) -> Any:
    if not place:
        return inner
    key, *rest = place
    changed = _wrapped(answer[key], tuple(rest), inner)
    if isinstance(answer, tuple):
        items = [*answer[:key], changed, *answer[key + 1 :]]
        return type(answer)(*items) if hasattr(answer, "_fields") else tuple(items)
    copied = copy.copy(answer)
    copied[key] = changed
    return copied
