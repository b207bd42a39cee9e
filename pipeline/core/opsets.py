"""Opsets: which ONNX files a release of onnxruntime reads, and which file format is written for it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["OLDEST", "TRIED", "FileFormat", "Reads", "choose_format", "reads"]


@dataclass(frozen=True)
class Reads:
    """The newest file format that a release loads."""

    opset: int
    ir_version: int
    ort_format: bool = False
    """Whether it loads the format that `convert_onnx_models_to_ort` writes now."""


OLDEST = (1, 15)
"""The oldest release that the probe's worker supports."""
_RELEASES = {
    (1, 15): Reads(19, 9),
    (1, 16): Reads(19, 9),
    (1, 17): Reads(20, 9),
    (1, 18): Reads(21, 10),
    (1, 19): Reads(21, 10),
    (1, 20): Reads(21, 10),
    (1, 21): Reads(22, 10),
    (1, 22): Reads(22, 10),
    (1, 23): Reads(23, 11),
    (1, 24): Reads(25, 13),
    (1, 25): Reads(26, 13),
    (1, 32): Reads(28, 14),
}
"""Releases up to 1.20: onnxruntime.ai/docs/reference/compatibility.html, except 1.15, for which it gives IR 8 although 9 loads.
Others up to TRIED, and 1.15: benchmarks/opsets.py with x86-64 wheels. Later releases read what earlier ones do (same page)."""
TRIED = (1, 32)
"""The newest release that was tried. A later release is assumed to read only what this one reads."""
READS_ORT_FORMAT = (1, 16)
"""The first release that reads version 6 of the format of `convert_onnx_models_to_ort`; tried with 1.15 to 1.32."""
USUAL_OPSET, USUAL_IR_VERSION = 18, 9
"""The exporter's own opset, which needs no conversion, and an IR version that all releases above read. A network gets a higher
opset only if it needs one, because older runtimes cannot read it and there is no other benefit."""


@dataclass(frozen=True)
class FileFormat:
    """The format that a file needs so that every target runtime can load it."""

    opset: int
    ir_version: int
    highest_opset: int = 0
    """At least `opset`: the highest opset to use where the network needs operators that `opset` lacks."""


def reads(onnxruntime: str) -> Reads:
    """Return what `onnxruntime`, a version such as '1.22.1', loads. Raises ValueError for other texts and below OLDEST."""
    found = re.match(r"(\d+)\.(\d+)", onnxruntime)
    release = (int(found[1]), int(found[2])) if found else (0, 0)
    if release < OLDEST:
        oldest = ".".join(str(part) for part in OLDEST)
        raise ValueError(f"onnxruntime {onnxruntime} is not supported; install {oldest} or later on the device")
    known = _RELEASES[max(known for known in _RELEASES if known <= release)]
    return replace(known, ort_format=release >= READS_ORT_FORMAT)


def choose_format(onnxruntimes: Iterable[str], opset: int | None, ir_version: int | None) -> FileFormat:
    """Choose the file format for runtimes of these versions. `opset` and `ir_version` are from the profile, or null.

    Raises ValueError when one of the runtimes cannot read the requested version.
    """
    limits = {version: reads(version) for version in onnxruntimes}
    for version, limit in limits.items():
        for name, wish, highest in (("opset", opset, limit.opset), ("ir_version", ir_version, limit.ir_version)):
            if wish is not None and wish > highest:
                raise ValueError(
                    f"onnxruntime {version} reads files up to {name} {highest} (got {wish}); remove {name} from the profile, "
                    f"set it to {highest} or less, or install a later onnxruntime on the device"
                )
    highest_opset = min(limit.opset for limit in limits.values())
    return FileFormat(
        opset=opset or USUAL_OPSET,
        ir_version=ir_version or USUAL_IR_VERSION,
        highest_opset=opset or highest_opset,
    )
