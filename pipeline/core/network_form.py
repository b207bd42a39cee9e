"""Network form: how a user's network takes its inputs and returns its outputs.

Everything here uses one form: a network takes a tensor or a `Batch`, and returns a tensor or a tuple of tensors. A network that
returns a dict, a list or other nested values gets a hook that returns their tensors in order, and one that takes several inputs
gets a hook that unpacks a `Batch`. The user's own functions still see the original form.
"""

import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.batch import Batch, Inputs
from pipeline.errors import ModelError

__all__ = ["Form", "TensorNetwork", "in_form", "in_its_form", "keep_form", "names_of", "settle_form"]

Place = tuple[Any, ...]
"""Keys, indices and names of fields that lead to a tensor."""


class TensorNetwork(nn.Module):
    """A network of this program, and not the user's code.

    It takes a tensor, several, or a `Batch`, and returns a tensor or a tuple of tensors.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def ordered(self, inputs: tuple[Any, ...], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return one tensor per input. Raises ValueError for another number of inputs, or for a name that is none of an input."""
        if len(inputs) == 1 and isinstance(inputs[0], Batch):
            inputs = inputs[0].tensors
        by_name = dict(zip(self.input_names, inputs, strict=False)) | dict(named)
        if len(inputs) + len(named) != len(self.input_names) or set(by_name) != set(self.input_names):
            got = ", ".join(named) or str(len(inputs))
            raise ValueError(f"the network takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), got {got}")
        return tuple(by_name[name] for name in self.input_names)


@dataclass(frozen=True)
class Form:
    """The form of a network's inputs and outputs."""

    answer: Any
    """What the network returns, without its tensors."""
    places: tuple[Place, ...]
    """Where the tensors are in it."""
    signature: inspect.Signature | None = None
    """Of the network's forward. None: the network takes one tensor."""
    count: int = 1
    """Number of inputs."""
    inputs: tuple[str, ...] = ()
    """Names by which the network takes its inputs. Empty: it takes them by position."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: the keys of a dict, and 'output', 'output_1', ... for the places of a tuple or a list."""
        return tuple(_name_of(place) for place in self.places)

    @property
    def changes_outputs(self) -> bool:
        """Whether the network returns anything else than a tensor."""
        return self.places != ((),)

    def __str__(self) -> str:
        kind = type(self.answer).__name__
        if len(self.places) == 1:
            return f"{kind} with one tensor (at {''.join(f'[{key!r}]' for key in self.places[0])})"
        return f"{kind} with {len(self.places)} tensors"


@dataclass(frozen=True)
class _Flatten:
    """A forward hook that replaces the output by its tensors. An output without anything at one of the places is not changed."""

    places: tuple[Place, ...]
    names: tuple[str, ...]

    def __call__(self, _module: nn.Module, _inputs: Any, answer: Any) -> Any:
        try:
            found = tuple(_at(answer, place) for place in self.places)
        except (KeyError, IndexError, TypeError, AttributeError):
            return None
        return found[0] if len(found) == 1 else found


@dataclass(frozen=True)
class _Unpack:
    """A forward hook that gives the network its inputs one by one, by position or by name."""

    names: tuple[str, ...]
    count: int

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if len(inputs) == 1 and isinstance(inputs[0], Batch):
            inputs = inputs[0].tensors
        inputs = tuple(each for each in inputs if each is not None)  # an exporter adds arguments that are left out
        if named or len(inputs) != self.count:
            return None
        return ((), dict(zip(self.names, inputs, strict=True))) if self.names else (inputs, {})


@dataclass(frozen=True)
class _Nest:
    """A forward hook that puts tensors back into the original form of the output."""

    form: Form

    def __call__(self, _module: nn.Module, _inputs: Any, answer: Any) -> Any:
        tensors = (answer,) if isinstance(answer, Tensor) else answer
        return _filled(self.form.answer, self.form.places, tensors)


@dataclass(frozen=True)
class _Bind:
    """A forward hook that takes inputs as the user's network takes them, and passes them on in order."""

    form: Form

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        signature = self.form.signature
        if signature is None or (inputs and isinstance(inputs[0], Batch)) or not (named or self.form.inputs):
            return None
        given = dict(signature.bind(*inputs, **named).arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        values = [given[name] for name in self.form.inputs] if self.form.inputs else list(given.values())
        return tuple(value for value in values if isinstance(value, Tensor)), {}


def settle_form(module: nn.Module, example: Inputs, spec: str, names: tuple[str, ...] = ()) -> Form | None:
    """Make `module` take a tensor or a `Batch`, and return a tensor or a tuple of tensors, in place. Returns its original form.

    `example` is one sample; if it is a `Batch`, `names` are the names by which the network takes its inputs, or nothing if it
    takes them by position. Returns None if nothing was changed, or if the network fails on the example, which is reported
    elsewhere. Raises ModelError, naming `spec`, if the output contains no tensor.
    """
    if isinstance(module, TensorNetwork):
        return None
    count, signature = 1, None
    if isinstance(example, Batch):
        count, signature = len(example.tensors), inspect.signature(module.forward)
        module.register_forward_pre_hook(_Unpack(names, count), with_kwargs=True)
    try:
        with torch.no_grad():
            answer = module(example)
    except Exception:
        return None
    places = tuple(_places(answer))
    if not places:
        raise ModelError(f"{spec}: the network returns a {type(answer).__name__} without a tensor; return at least one")
    if places == ((),) and signature is None:
        return None
    form = Form(_filled(answer, places, (None,) * len(places)), places, signature, count, names)
    keep_form(module, form)
    return form


def keep_form(module: nn.Module, form: Form) -> None:
    """Make `module`, whose inputs and outputs have this form, take and return tensors."""
    if isinstance(module, TensorNetwork):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # a copy that a user's function made keeps its hooks
            for number in [number for number, hook in hooks.items() if isinstance(hook, _Nest | _Bind)]:
                del hooks[number]
        return
    if form.changes_outputs and not any(isinstance(hook, _Flatten) for hook in module._forward_hooks.values()):
        module.register_forward_hook(_Flatten(form.places, form.outputs))
    if form.signature and not any(isinstance(hook, _Unpack) for hook in module._forward_pre_hooks.values()):
        module.register_forward_pre_hook(_Unpack(form.inputs, form.count), with_kwargs=True)


@contextmanager
def in_its_form(module: nn.Module, form: Form) -> Iterator[nn.Module]:
    """Yield `module`, which has the original form inside the block. It may be an ONNX file wrapped as a module."""
    after = {number: hook for number, hook in module._forward_hooks.items() if isinstance(hook, _Flatten)}
    before = {number: hook for number, hook in module._forward_pre_hooks.items() if isinstance(hook, _Unpack)}
    for number in after:
        del module._forward_hooks[number]
    for number in before:
        del module._forward_pre_hooks[number]
    handles = []
    if isinstance(module, TensorNetwork):
        if form.changes_outputs:
            handles.append(module.register_forward_hook(_Nest(form)))
        if form.signature:
            handles.append(module.register_forward_pre_hook(_Bind(form), with_kwargs=True))
    try:
        yield module
    finally:
        for handle in handles:
            handle.remove()
        module._forward_hooks.update(after)
        module._forward_pre_hooks.update(before)


def in_form(function: Callable[..., Any], form: Form) -> Callable[..., Any]:
    """Wrap a user's `function`: its argument has the original form, and a network that it returns gives tensors.

    The result has the signature of `function`. Further arguments are given by name.
    """

    def called(module: nn.Module, **named: Any) -> Any:
        with in_its_form(module, form):
            found = function(module, **named)
        if isinstance(found, nn.Module):
            keep_form(found, form)
        return found

    return functools.update_wrapper(called, function, updated=())


def names_of(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the inputs and of the outputs of a user's network. Empty where it has none."""
    inputs = next((hook.names for hook in module._forward_pre_hooks.values() if isinstance(hook, _Unpack)), ())
    outputs = next((hook.names for hook in module._forward_hooks.values() if isinstance(hook, _Flatten)), ())
    return inputs, outputs


def _places(answer: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(answer, Tensor):
        yield place
    else:
        for key, inner in _parts(answer):
            yield from _places(inner, (*place, key))


def _parts(answer: Any) -> list[tuple[Any, Any]]:
    if isinstance(answer, Mapping):
        return list(answer.items())
    if isinstance(answer, list | tuple):
        return list(enumerate(answer))
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return [(field.name, getattr(answer, field.name)) for field in dataclasses.fields(answer)]
    return []


def _at(answer: Any, place: Place) -> Any:
    for key in place:
        answer = answer[key] if isinstance(answer, Mapping | list | tuple) else getattr(answer, key)
    return answer


def _name_of(place: Place) -> str:
    """The name of the output at `place`."""
    if not place:
        return "output"
    first, *others = place
    head = str(first) if not isinstance(first, int) else "output" if first == 0 else f"output_{first}"
    return ".".join(re.sub(r"\W+", "_", part) or "_" for part in (head, *map(str, others)))


def _filled(answer: Any, places: tuple[Place, ...], tensors: tuple[Any, ...]) -> Any:
    for place, tensor in zip(places, tensors, strict=True):
        answer = _replaced(answer, place, tensor)
    return answer


def _replaced(answer: Any, place: Place, inner: Any) -> Any:
    if not place:
        return inner
    key, *rest = place
    changed = _replaced(_at(answer, (key,)), tuple(rest), inner)
    if isinstance(answer, tuple):
        items = [*answer[:key], changed, *answer[key + 1 :]]
        return type(answer)(*items) if hasattr(answer, "_fields") else tuple(items)
    if not isinstance(answer, Mapping | list):
        return dataclasses.replace(answer, **{key: changed})
    copied = copy.copy(answer)
    copied[key] = changed  # type: ignore[index]
    return copied
