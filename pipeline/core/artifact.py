"""Artifact: what is shipped, with its evidence; artifact.json is this noun on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.core.budget import Unit, Verdict, show
from pipeline.core.candidate import Candidate
from pipeline.core.plan import NotPrunable
from pipeline.core.profile import Precision
from pipeline.core.statistics import Estimate
from pipeline.errors import RunError
from pipeline.system.files import sha256_file
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["Artifact", "FileFacts", "PrecisionRow", "Row", "dump_artifact", "read_artifact"]


@dataclass(frozen=True)
class FileFacts:
    """A file of the artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Row:
    """One line of the final table. A row without a limit is for information and has no verdict."""

    key: str
    title: str
    unit: Unit
    dense: float | None
    """In `unit`; for accuracy_drop, the dense network's accuracy in percent."""
    after: float | None
    ratio: Estimate | None
    """After over dense; null where that has no meaning."""
    limit: float | None
    """In `unit`, or a fraction of dense when `relative`."""
    relative: bool
    verdict: Verdict | None
    drop: Estimate | None = None
    """accuracy_drop alone: the points lost on the same test images, with the 95 % interval that the verdict rests on; null where
    the task gives no value per image, and the verdict rests on the difference alone."""
    test_images_needed: int | None = None
    """accuracy_drop alone, where it is undecided: about how many test images would decide it; null where none would."""
    reason: str = ""
    """Why it is undecided and what to do, where the interval alone does not say so."""

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """dense, after, change and limit as people write them."""
        limit = "" if self.limit is None else show(self.limit, self.unit, self.relative)
        if self.unit == "points":
            change = "" if self.dense is None or self.after is None else f"{self.after - self.dense:+.2f} points"
            dense, after = (f"{value:.2f} %" if value is not None else "not known" for value in (self.dense, self.after))
            return dense, after, change, limit
        change = show(self.ratio.value, self.unit, relative=True) if self.ratio else ""
        return show(self.dense, self.unit), show(self.after, self.unit), change, limit

    @property
    def interval_text(self) -> str:
        """The 95 % interval of the change: '[46.1, 46.8]' in %, '[-0.61, +1.12]' in points; empty where there is none."""
        if self.drop:
            return f"[{-self.drop.high:+.2f}, {-self.drop.low:+.2f}]"
        if self.ratio and self.ratio.high > self.ratio.low:
            return f"[{100 * self.ratio.low:.1f}, {100 * self.ratio.high:.1f}]"
        return ""


@dataclass(frozen=True)
class PrecisionRow:
    """One of the four files that are compared where int8 was tried."""

    network: Literal["dense", "pruned"]
    precision: Precision
    latency_p50: Estimate | None
    """In ms; null where it could not be measured."""
    relative_p50: Estimate | None
    """Over the dense network in float32, timed in turn with it."""
    score: float | None
    """Of the ONNX file, on validation data."""
    file_size_bytes: int
    scheme: str
    """How it was quantised; empty for float32."""

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """Name, latency, latency over dense, score and size as people write them."""
        relative = show(self.relative_p50.value, "ms", relative=True) if self.relative_p50 else ""
        latency = show(self.latency_p50.value if self.latency_p50 else None, "ms")
        score = f"{self.score:.2f}" if self.score is not None else "not known"
        return f"{self.network} {self.precision}", latency, relative, score, show(self.file_size_bytes, "bytes")


@dataclass(frozen=True)
class Artifact:
    """The evidence: what was asked, what was done, what came out, where it was measured."""

    format: int
    created: str
    command: tuple[str, ...]
    job: Mapping[str, Any]
    profile: Mapping[str, Any]
    data: str
    versions: Mapping[str, str]
    files: Mapping[str, FileFacts]
    verdict: Verdict
    rows: tuple[Row, ...]
    dense: Candidate
    """The whole network; its score is on the test data, of the ONNX file."""
    shipped: Candidate
    """The file in this folder, measured after fine-tuning; its score is on the test data, of the ONNX file."""
    validation: Mapping[str, float]
    """Validation scores: dense, before and after fine-tuning."""
    proofs: tuple[str, ...]
    """What was compared with what, and how far apart it was."""
    notices: tuple[str, ...]
    widths: Mapping[str, tuple[int, int, int]]
    """Group -> (channels kept, channels before, outputs per channel)."""
    frozen: tuple[NotPrunable, ...]
    phase_seconds: Mapping[str, float]
    learning_rate: float | None = None
    """At the peak of fine-tuning; null where the user's own function trained, and where there was no training."""
    finetuned_epoch: int | None = None
    """Of fine-tuning, whose network is shipped; 0: the network as it was scored, which no epoch beat."""
    precision: Precision = "fp32"
    """Of the file in this folder."""
    precisions: tuple[PrecisionRow, ...] = ()
    """Side by side, where int8 was tried."""


_ARTIFACT = TypeAdapter(Artifact)


def dump_artifact(artifact: Artifact) -> bytes:
    """artifact.json."""
    return _ARTIFACT.dump_json(artifact, indent=1)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, every file's hash checked. Raises RunError when it is not whole."""
    try:
        artifact = _ARTIFACT.validate_json(read_foreign(folder / "artifact.json", JSON_LIMIT_BYTES))
    except OSError as problem:
        raise RunError(f"{folder}: no artifact there ({problem.strerror})") from None
    except ValidationError:
        raise RunError(
            f"{folder}/artifact.json: not written by this version of the program, or damaged; run the command that made it again"
        ) from None
    for name, facts in artifact.files.items():
        if not _is_whole(folder, name, facts):
            raise RunError(f"{folder}/{name[:200]}: missing or changed since it was written; run the command that made it again")
    return artifact


def _is_whole(folder: Path, name: str, facts: FileFacts) -> bool:
    """Whether `name` is a file of this folder, and no other, with that content."""
    try:
        path = folder / name
        return path.parent == folder and path.name == name and path.is_file() and sha256_file(path) == facts.sha256
    except OSError:
        return False
