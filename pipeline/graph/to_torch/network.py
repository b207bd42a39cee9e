"""Network: the torch module that is rebuilt from an ONNX graph."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.batch import Batch
from pipeline.core.network_form import TensorNetwork
from pipeline.core.plan import Block, Kept
from pipeline.foreign_text import clean_text
from pipeline.graph.additions import ADDS_TWO
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.to_torch.batch import Call, NotSeparable, State, run_step
from pipeline.graph.to_torch.batch.call import moved, repeated
from pipeline.graph.to_torch.node import Precision
from pipeline.graph.to_torch.places import TorchTensor, remove_layers, remove_tensor, to_initializer
from pipeline.graph.to_torch.steps import CONSTANTS, LayerStep, Step, Value

__all__ = ["GraphNetwork", "Read"]

Read = tuple[nn.Module, str, tuple[int, ...]]
"""(module, attribute, layout) of an initializer that functions read."""


class GraphNetwork(TensorNetwork):
    """A torch module that computes what an ONNX graph computes. `network_of` makes it.

    It can be trained, copied with `copy.deepcopy`, and run in another float type or under autocast.
    """

    tensors: Mapping[str, TorchTensor]
    """Initializer name -> its tensor in the state dict. All float initializers are there."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self._precision = precision
        self.tensors = {}
        self.input_names = self.output_names = ()
        self._shapes: tuple[tuple[int | None, ...], ...] = ()
        self._steps: list[Step] = []
        self._reads: dict[str, Read] = {}
        self._constants: dict[str, Tensor] = {}
        self._unused: list[tuple[str, ...]] = []
        self.labelled: GraphSpace | None = None
        self.node_indices: dict[str, int] = {}
        self.looped: tuple[str, ...] = ()
        self.one_by_one: str | None = None

    def forward(self, *inputs: Tensor | Batch, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the graph's output, or a tuple if it has several. Inputs are given in order, by name, or as a `Batch`.

        Raises ValueError when an input has another shape than in the graph. The batch may have any size.
        """
        return self._answer(self.ordered(inputs, named))

    def _answer(self, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        self._check(inputs)
        exported = self._shapes[0][0] if self._shapes and self._shapes[0] else None
        images = None if exported is None else len(inputs[0])
        outputs = self._run(inputs) if exported in (None, images) else self._batch(inputs, exported)
        return outputs[0] if len(outputs) == 1 else outputs

    def set_constants(self, node: int, constants: Mapping[str, NDArray[np.int64] | tuple[int, ...]]) -> None:
        """Replace integer constants of the node with this index in the graph, for example {'shape': (0, -1)}.

        Keys: 'shape' of Reshape, Expand and ConstantOfShape, 'split' of Split, 'starts' and 'ends' of Slice, 'indices' of Gather,
        'pads' of Pad, 'sizes' of Resize, 'repeats' of Tile, 'group' of Conv and ConvTranspose, and 'num_groups' of
        GroupNormalization.
        Raises KeyError when there is no such node or no such constant.
        """
        step = next((step for step in self._steps if step.node.index == node), None)
        if step is None:
            raise KeyError(f"the network has no node {node}")
        for name, values in constants.items():
            if name in ("group", "num_groups") and step.node.op in ("Conv", "ConvTranspose", "GroupNormalization"):
                step.node.attributes[name] = int(values[0])
                if isinstance(step, LayerStep):
                    setattr(step.layer, "groups" if name == "group" else name, int(values[0]))
                continue
            position = CONSTANTS[step.node.op][name]
            given = torch.as_tensor(values, dtype=torch.long)
            known = self._constants.get(step.inputs[position]) if position < len(step.inputs) else None
            if known is not None and known.numel() == given.numel():
                given = given.reshape(known.shape)
            step.node.constants[position] = given

    def keep(self, kept: Kept) -> None:
        """Let the constants of the graph follow the `kept` channels, and drop blocks. `shrink` cuts weights and calls this."""
        if self.labelled is None:
            return
        stays = self.labelled.stays(kept)
        for follower in self.labelled.followers:
            self.set_constants(self.node_indices[follower.node], {follower.key: follower.values(stays)})
        dropped = self.labelled.space.dropped(kept)
        if dropped:
            self.drop(dropped)

    def drop(self, blocks: Iterable[Block]) -> None:
        """Take `blocks` out of the network, in place, with their layers and tensors. `tensors` of a block are initializers.

        Raises KeyError when a block does not end at an addition of this network.
        """
        blocks = tuple(blocks)
        ends = {step.node.name: step for step in self._steps if step.node.op in ADDS_TWO}
        sources = {ends[block.node].outputs[0]: ends[block.node].inputs[block.entry] for block in blocks}

        def entry_of(name: str) -> str:
            while name in sources:
                name = sources[name]
            return name

        for step in self._steps:
            step.inputs = tuple(entry_of(name) for name in step.inputs)
        needed, kept = set(self.output_names), list[Step]()
        for step in reversed(self._steps):
            if needed.intersection(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        left = {id(step.layer) for step in kept if isinstance(step, LayerStep)}
        remove_layers(self, [step.layer for step in self._steps if isinstance(step, LayerStep) and id(step.layer) not in left])
        self._steps = kept[::-1]
        self._reads = {name: read for name, read in self._reads.items() if name in needed}
        self._constants = {name: value for name, value in self._constants.items() if name in needed}
        gone = {name for block in blocks for name in block.tensors}
        for name in gone & set(self.tensors):
            remove_tensor(self, self.tensors[name].name)
        self.tensors = {name: place for name, place in self.tensors.items() if name not in gone}
        self._note_last_uses()

    def _note_last_uses(self) -> None:
        """Note after which step each value is unused."""
        last: dict[str, int] = {}
        for index, step in enumerate(self._steps):
            for name in (*step.inputs, *step.outputs):
                last[name] = index
        kept = {"", *self._constants, *self.output_names}
        self._unused = [() for _ in self._steps]
        for name, index in last.items():
            if name not in kept:
                self._unused[index] += (name,)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        for name, shape, value in zip(self.input_names, self._shapes, inputs, strict=True):
            found = tuple(value.shape)
            if len(found) != len(shape) or any(a is not None and a != b for a, b in zip(shape[1:], found[1:], strict=True)):
                wanted = ", ".join("any" if size is None else str(size) for size in ("batch", *shape[1:]))
                raise ValueError(f"input '{clean_text(name, 80)}' has the shape {found}, and the graph takes ({wanted})")

    def _start(self, inputs: Sequence[Tensor]) -> dict[str, Value]:
        values: dict[str, Value] = {"": None, **self._constants}
        for name, (module, attribute, axes) in self._reads.items():
            values[name] = to_initializer(getattr(module, attribute), axes)
        values.update(zip(self.input_names, inputs, strict=True))
        return values

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        values = self._start(inputs)
        for step, unused in zip(self._steps, self._unused, strict=True):
            given = arguments(step, values)
            try:
                outputs = step.run(given)
            except Exception as problem:
                problem.add_note(step.node.name)  # the proof says where the sizes do not fit
                raise
            values.update(zip(step.outputs, outputs, strict=False))
            values[""] = None  # an output that nobody reads has this name too
            for name in unused:
                del values[name]
        return tuple(values[name] for name in self.output_names)

    def _batch(self, inputs: Sequence[Tensor], exported: int) -> tuple[Tensor, ...]:
        if self.one_by_one is None:
            try:
                return self._run_together(inputs, exported)
            except NotSeparable as reason:
                self.one_by_one = str(reason)
        return self._run_in_pieces(inputs, exported)

    def _run_together(self, inputs: Sequence[Tensor], exported: int) -> tuple[Tensor, ...]:
        images = len(inputs[0])
        values = self._start(inputs)
        states: dict[str, State | None] = dict.fromkeys(values)
        for name, shape in zip(self.input_names, self._shapes, strict=True):
            states[name] = State(0) if shape and shape[0] == exported else None
        looped = []
        for step, unused in zip(self._steps, self._unused, strict=True):
            given = arguments(step, values)
            known = [states[name] for name in step.inputs] + [None] * (len(given) - len(step.inputs))
            call = Call(step.node, given, known, images, exported)
            outputs, after, alone = run_step(step, call)
            if alone:
                looped.append(step.node.name)
            values.update(zip(step.outputs, outputs, strict=False))
            states.update(zip(step.outputs, after, strict=False))
            values[""] = states[""] = None
            for name in unused:
                del values[name]
        self.looped = tuple(looped)
        result = []
        for name in self.output_names:
            value, state = values[name], states[name]
            if state == State(0):
                result.append(value)
            elif exported == 1 and value.dim():
                same = repeated(value, State(0), images) if state is None else moved(value, state, State(0), images)
                result.append(same)
            else:
                raise NotSeparable(f"the output '{clean_text(name, 80)}' does not hold one part for each image")
        return tuple(result)

    def _run_in_pieces(self, inputs: Sequence[Tensor], exported: int) -> tuple[Tensor, ...]:
        images = len(inputs[0])
        batched = [bool(shape) and shape[0] == exported for shape in self._shapes]
        pieces = []
        for start in range(0, images, exported):
            index = torch.arange(start, start + exported).clamp(max=images - 1).to(inputs[0].device)
            pieces.append(self._run([value[index] if has else value for value, has in zip(inputs, batched, strict=True)]))
        return tuple(torch.cat(parts)[: len(parts[0]) // exported * images] for parts in zip(*pieces, strict=True))


def arguments(step: Step, values: Mapping[str, Value]) -> list[Value]:
    """The inputs of a step, with its replaced constants."""
    given = [values[name] for name in step.inputs]
    for position, constant in step.node.constants.items():
        given += [None] * (position + 1 - len(given))
        given[position] = constant
    return given
