"""Read: a network that the user gives as an ONNX file, prepared in a child process with limited memory and time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from pipeline.errors import ModelError
from pipeline.foreign_text import clean_text
from pipeline.graph.bounded_child import Limits, bytes_of, refusing, run_bounded
from pipeline.graph.given.door import Door, Shapes
from pipeline.graph.given.prepare import Facts
from pipeline.graph.metadata import opset_of
from pipeline.graph.structure import load_graph

__all__ = ["GivenNetwork", "read_given"]

LIMITS = Limits(base_bytes=4 * 2**30, per_byte=24, time_s=300.0)
"""ONNX Runtime and onnxscript need some address space themselves, and several copies of the weights exist for a while."""
REFUSED = "not an ONNX file that can be compressed"


@dataclass(frozen=True)
class GivenNetwork:
    """A trainable graph, whose images are float32 (1, C, H, W), and where it comes from."""

    model: onnx.ModelProto
    facts: Facts

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the changes."""
        found = []
        for door in self.facts.doors:
            what = "images" if len(self.facts.doors) == 1 else f"'{door.name}'"
            if door.channels_last:
                found.append(f"the file takes {what} as {_text(door.own_shape)}; the compressed file takes {_text(door.shape)}")
            if door.own_type != door.type and len(self.facts.doors) == 1:
                found.append(
                    f"the file takes {door.own_type} images; the compressed file takes float32 ones with the same values"
                )
            elif door.own_type != door.type:
                found.append(f"the file takes {door.own_type} for {what}; the compressed file takes {door.type}, the same values")
        if self.facts.single:
            found.append("the file is not in single precision (float32); the compressed file is")
        if self.facts.opset != opset_of(self.model):
            found.append(f"the file has opset {self.facts.opset}; the compressed file has {opset_of(self.model)}")
        return tuple(clean_text(text, 300) for text in found)


def read_given(path: Path, shapes: Shapes, opset: int, highest_opset: int, limits: Limits = LIMITS) -> GivenNetwork:
    """Return the network in the ONNX file `path`, prepared for pruning; see `prepare`. No other file is opened.

    Raises ModelError when the file cannot be read, keeps weights in other files, does not fit `shapes`, has
    operators that are not standard, or needs more memory or time than `limits`.
    """
    data = bytes_of(path, REFUSED)
    asked = {"shapes": {name: list(shape) for name, shape in shapes.items()}, "opset": opset, "highest_opset": highest_opset}
    with refusing(path, REFUSED, len(data), limits):
        head, body = _answer(data, asked, limits)
    if "refused" in head:
        raise ModelError(f"{path}: {head['refused']}")
    return GivenNetwork(load_graph(body), _facts(head))


def _answer(data: bytes, asked: Mapping[str, Any], limits: Limits) -> tuple[dict[str, Any], bytes]:
    """The answer of the child. If it dies, it is asked again not to convert the opset, because the converter may crash."""
    for convert in (True, False):
        question = json.dumps({**asked, "convert": convert})
        text, _, body = run_bounded("pipeline.graph.given.prepare", (question,), data, limits).partition(b"\n")
        if text:
            break
    return json.loads(text), body


def _facts(head: Mapping[str, Any]) -> Facts:
    doors = [{**door, "shape": tuple(door["shape"]), "own_shape": tuple(door["own_shape"])} for door in head["doors"]]
    return Facts(**{**head, "doors": tuple(Door(**door) for door in doors), "outputs": tuple(head["outputs"])})


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
