"""Network input: name, type and shape of one input of an ONNX file."""

from dataclasses import dataclass

__all__ = ["NUMBERS", "UNNAMED_ARRAY", "NetworkInput"]

NUMBERS = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
"""The types of inputs that can be measured, as numpy names them."""
UNNAMED_ARRAY = "arr_0"
"""Name that `numpy.savez` gives an array that has none."""


@dataclass(frozen=True)
class NetworkInput:
    """One input, with a size for every dimension.

    >>> str(NetworkInput("image", "uint8", (1, 320, 320, 3)))
    'image: uint8 1x320x320x3'
    """

    name: str
    type: str
    """One of NUMBERS."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.type} {self.sizes}"

    @property
    def sizes(self) -> str:
        """The shape for people: 1x3x224x224, or scalar."""
        return "x".join(map(str, self.shape)) or "scalar"
