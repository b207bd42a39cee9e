"""Blocks: find the parts of an exported graph that can be dropped as a whole.

A block has one entry and one exit, and its result is added to its own entry:

    entry -+-> convolution -> ... -> convolution -+-> Add -> result        (its branch: everything between entry and Add)
           +--------------------------------------+

Without the block, what reads its result reads its entry. The result may be added to a sum that contains the entry:
x + attention(x) + mlp(x) has two blocks. Names of classes play no part, so this covers the blocks of residual networks, inverted
residuals, and the attention and the MLP of a transformer, each alone.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from pipeline.core.plan import Block, Group, NotPrunable
from pipeline.graph.additions import addends_of, is_plain, terms_of
from pipeline.graph.edit import names_in, subgraphs, unique_name
from pipeline.graph.shapes import Shape, shapes_of

__all__ = ["find_blocks"]

PROJECTION = "the block cannot be dropped: both sides of its addition have layers"
SHORTCUT = "the block cannot be dropped: its entry is changed before its result is added to it"
SEVERAL = "the block cannot be dropped: it reads more than its entry"
READ_OUTSIDE = "the block cannot be dropped: other parts of the network read what it computes inside"
SHARED = "the block cannot be dropped: its weights are used outside it too"
FIRST = "the block cannot be dropped: its entry is the network's input"
LAST = "the block cannot be dropped: its result is the network's output"
BROADCAST = "the block cannot be dropped: its result has another shape than its entry"
NOT_TWO = "the block cannot be dropped: it does not end with an addition of two values"
OVERLAP = "the block cannot be dropped: it overlaps with another block"
ELEMENTWISE = ("Add", "Div", "Mul", "Sub")


@dataclass(frozen=True)
class _Found:
    """A block, with the indices of the nodes of its branch."""

    block: Block
    end: int
    branch: frozenset[int]


def find_blocks(model: onnx.ModelProto, groups: tuple[Group, ...] = ()) -> tuple[tuple[Block, ...], tuple[NotPrunable, ...]]:
    """Return the blocks of `model` in the order in which they end, and the additions that end none, each with a reason.

    The nodes of `model` have names of their own. `groups` are its groups of channels, whose slots are initializers.
    """
    return _Finder(model, groups).blocks()


class _Finder:
    def __init__(self, model: onnx.ModelProto, groups: tuple[Group, ...]) -> None:
        graph = model.graph
        self.groups = groups
        self.nodes = list(graph.node)
        self.reads = [_reads(node) for node in self.nodes]
        self.inputs = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.shapes: dict[str, Shape] = shapes_of(model)
        self.weights = {
            tensor.name: math.prod(tensor.dims)
            for tensor in graph.initializer
            if math.prod(tensor.dims) > 1 and np.issubdtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), np.floating)
        }
        self.constants = {tensor.name for tensor in graph.initializer} | {""}
        self.producers: dict[str, int] = {}
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, set[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in self.reads[index]:
                self.readers.setdefault(name, set()).add(index)
            self.producers.update(dict.fromkeys(node.output, index))
            self.makers.update(dict.fromkeys(node.output, node))
            if all(name in self.constants for name in self.reads[index]):
                self.constants.update(node.output)

    def blocks(self) -> tuple[tuple[Block, ...], tuple[NotPrunable, ...]]:
        found: list[_Found] = []
        refused: list[NotPrunable] = []
        names = {group.name for group in self.groups}
        for end, node in enumerate(self.nodes):
            for made in self._ends(end, node):
                name = unique_name(made.name if isinstance(made, NotPrunable) else made.block.name, names)
                if isinstance(made, NotPrunable):
                    refused.append(replace(made, name=name))
                elif any(made.branch & other.branch and not other.branch < made.branch for other in found):
                    refused.append(NotPrunable(name, OVERLAP))
                else:
                    found.append(replace(made, block=replace(made.block, name=name)))
        return tuple(self._completed(each, found) for each in found), tuple(refused)

    def _ends(self, end: int, node: onnx.NodeProto) -> Iterator[_Found | NotPrunable]:
        """The block that ends at a node, or why it cannot be dropped. Nothing if the node adds no result of layers to a value."""
        addends = addends_of(node, self.makers)
        if len(set(addends) - self.constants) < 2 or self.shapes.get(node.output[0]) is None:
            return
        if not is_plain(node):
            yield from self._refused(node, addends)
            return
        for direct in (True, False):
            for entry in (0, 1):
                branch = self._region(node, entry, direct=direct)
                if branch is not None:
                    if self._has_layer(branch):
                        yield self._judged(end, entry, branch)
                    return
        if self.shapes.get(addends[0]) == self.shapes.get(addends[1]):
            yield from self._without_region(node)

    def _region(self, node: onnx.NodeProto, entry: int, *, direct: bool) -> frozenset[int] | None:
        """The nodes between the value to which an input of `node` is added and that input, if they read nothing else.

        If `direct`, this value is the other input, `entry`. If not, it is a value that is added in the other input: in
        (x + attention(x)) + mlp(x), the MLP reads x.
        """
        start, stays = node.input[1 - entry], node.input[entry]
        if self.shapes.get(stays) != self.shapes[node.output[0]]:
            return None
        terms = [stays] if direct else terms_of(stays, self.makers, self.shapes, self.constants)
        for term in sorted(terms, key=lambda name: self.producers.get(name, -1), reverse=True):  # the smallest region first
            branch, reads = self._branch(start, term)
            if reads == {term} and branch:
                return branch
        return None

    def _refused(self, node: onnx.NodeProto, addends: tuple[str, ...]) -> Iterator[NotPrunable]:
        """The regions that are added in another way than by a node with two inputs."""
        found = False
        for start, entry in itertools.permutations(dict.fromkeys(addends), 2):
            branch, reads = self._branch(start, entry)
            if reads == {entry} and self.shapes.get(entry) == self.shapes[node.output[0]]:
                found = True
                if self._has_layer(branch):
                    yield NotPrunable(self._name(branch, node), NOT_TWO)
        if not found and node.op_type == "Sum":
            yield from self._without_region(node)

    def _without_region(self, node: onnx.NodeProto) -> Iterator[NotPrunable]:
        """Why no input of `node` is computed from another one alone, if layers compute them."""
        sides = [(*self._branch(start, entry), entry) for start, entry in itertools.permutations(dict.fromkeys(node.input), 2)]
        common = frozenset.intersection(*(branch for branch, _, _ in sides))
        apart = {branch - common for branch, _, _ in sides if self._has_layer(branch - common)}
        if apart:
            reaches = [branch - common for branch, reads, entry in sides if entry in reads and self._has_layer(branch)]
            reason = SEVERAL if reaches else PROJECTION if len(apart) > 1 else SHORTCUT
            yield NotPrunable(self._name(frozenset[int]().union(*(reaches or apart)), node), reason)

    def _judged(self, end: int, entry: int, branch: frozenset[int]) -> _Found | NotPrunable:
        node = self.nodes[end]
        name = self._name(branch, node)
        inside = branch | {end}
        values = [value for index in branch for value in self.nodes[index].output if value]
        if node.op_type == "Sub" and entry == 1:
            return NotPrunable(name, SHORTCUT)
        if self.shapes.get(node.input[1 - entry]) != self.shapes[node.output[0]]:
            return NotPrunable(name, BROADCAST)
        if any(value in self.outputs or not self.readers.get(value, set()) <= inside for value in values):
            return NotPrunable(name, READ_OUTSIDE)
        if node.output[0] in self.outputs:
            return NotPrunable(name, LAST)
        if node.input[entry] in self.inputs:
            return NotPrunable(name, FIRST)
        own = self._own(branch)
        if any(self._is_of_layer(tensor) for tensor in set(self._tensors(branch)) - set(own)):
            return NotPrunable(name, SHARED)
        return _Found(Block(name, node.name, entry, own), end, branch)

    def _branch(self, start: str, entry: str) -> tuple[frozenset[int], set[str]]:
        """The nodes from which `start` is computed, back to `entry`, and the values before them: the entry, network inputs."""
        branch: set[int] = set()
        reads: set[str] = set()
        waiting = [start]
        while waiting:
            name = waiting.pop()
            if name in self.constants:
                continue
            index = self.producers.get(name)
            if name == entry or index is None:
                reads.add(name)
            elif index not in branch:
                branch.add(index)
                waiting += self.reads[index]
        return frozenset(branch), reads

    def _tensors(self, branch: frozenset[int]) -> tuple[str, ...]:
        """The weights that the nodes of a branch read, in order."""
        return tuple(dict.fromkeys(name for index in sorted(branch) for name in self.reads[index] if name in self.weights))

    def _own(self, branch: frozenset[int]) -> tuple[str, ...]:
        """Those of them that no other node reads."""
        return tuple(name for name in self._tensors(branch) if self.readers[name] <= branch)

    def _is_of_layer(self, tensor: str) -> bool:
        """Whether a layer reads a weight. A table of positions or a mask is only added or multiplied, and blocks can share it."""
        return any(self.nodes[index].op_type not in ELEMENTWISE for index in self.readers[tensor])

    def _has_layer(self, branch: frozenset[int]) -> bool:
        return any(self._is_layer(name) for name in self._tensors(branch))

    def _is_layer(self, tensor: str) -> bool:
        """Whether a weight mixes or filters values, and does not only scale or shift them."""
        return sum(size > 1 for size in self.shapes.get(tensor, ())) > 1

    def _name(self, branch: frozenset[int], node: onnx.NodeProto) -> str:
        """The largest of the modules all of whose weights are in the branch. Modules are known by the names of weights.

        If that is a layer, and so perhaps the name of a group, it is the module that holds all layers of the branch.
        """
        own = self._own(branch) or self._tensors(branch)
        sizes: dict[str, int] = {}
        for name in own:
            owner = _outermost(name, own, self.weights)
            sizes[owner] = sizes.get(owner, 0) + self.weights[name]
        if not sizes:
            return node.name
        largest, common = max(sizes, key=lambda owner: sizes[owner]), _common([*sizes])
        return common if common and any(group.name == largest for group in self.groups) else largest

    def _completed(self, found: _Found, others: list[_Found]) -> Block:
        """The block with the groups and the blocks inside it."""
        own = set(found.block.tensors)
        return replace(
            found.block,
            groups=tuple(group.name for group in self.groups if all(slot.tensor in own for slot in group.slots)),
            inside=tuple(other.block.name for other in others if other.end in found.branch and other.branch < found.branch),
        )


def _reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, also inside its subgraphs."""
    return [*node.input, *(name for graph in subgraphs(node) for name in names_in(graph))]


def _outermost(tensor: str, own: tuple[str, ...], known: dict[str, int]) -> str:
    """The outermost module of a tensor all of whose tensors are among `own`; the tensor itself if there is none."""
    parts = tensor.split(".")
    mine = set(own)
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length]) + "."
        if all(name in mine for name in known if name.startswith(prefix)):
            return prefix[:-1]
    return tensor


def _common(modules: list[str]) -> str:
    """The innermost module that holds all of `modules`; '' if there is none."""
    parts = [module.split(".")[:-1] for module in modules if "." in module]  # a tensor that the code makes has no module
    return ".".join(first[0] for first in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False)))
