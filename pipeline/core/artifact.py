"""Artifact: the shipped files and the evidence for them. The file artifact.json stores it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.core.budget import Unit, Verdict, show
from pipeline.core.candidate import Candidate
from pipeline.core.forecast import Forecast
from pipeline.core.plan import NotPrunable
from pipeline.core.profile import Precision
from pipeline.core.statistics import Estimate
from pipeline.errors import RunError
from pipeline.system.files import sha256_file
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = [
    "Artifact",
    "FileFacts",
    "PrecisionRow",
    "Row",
    "changed_files",
    "dump_artifact",
    "parse_artifact",
    "read_artifact",
]


@dataclass(frozen=True)
class FileFacts:
    """Hash and size of one file of the artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Row:
    """One row of the final table. A row without a limit is informative only and has no verdict."""

    key: str
    title: str
    unit: Unit
    dense: float | None
    """In `unit`; for accuracy_drop, the accuracy of the dense network in percent."""
    after: float | None
    ratio: Estimate | None
    """`after` divided by `dense`; null where a ratio has no meaning."""
    limit: float | None
    """In `unit`; a fraction of `dense` when `relative` is true."""
    relative: bool
    verdict: Verdict | None
    drop: Estimate | None = None
    """Points lost on the same test images, with the 95 % interval that decides the verdict; only for accuracy_drop. Null where
    the task gives no value per image; the verdict then rests on the difference alone."""
    test_images_needed: int | None = None
    """About how many test images would decide an undecided accuracy_drop; null where no number would."""
    reason: str = ""
    """Why the verdict is undecided and what to do, where the interval alone does not explain it."""

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Dense value, value after compression, change and limit, formatted for people."""
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
    """One of the four files that are compared when int8 is tried."""

    network: Literal["dense", "pruned"]
    precision: Precision
    latency_p50: Estimate | None
    """In ms; null where it could not be measured."""
    relative_p50: Estimate | None
    """p50 divided by that of the dense float32 network, which was timed in turn with this file."""
    score: float | None
    """Score of the ONNX file on validation data."""
    file_size_bytes: int
    scheme: str
    """Quantisation scheme; empty for float32."""

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """Name, latency, latency relative to dense, score and size, formatted for people."""
        relative = show(self.relative_p50.value, "ms", relative=True) if self.relative_p50 else ""
        latency = show(self.latency_p50.value if self.latency_p50 else None, "ms")
        score = f"{self.score:.2f}" if self.score is not None else "not known"
        return f"{self.network} {self.precision}", latency, relative, score, show(self.file_size_bytes, "bytes")


@dataclass(frozen=True)
class Artifact:
    """The evidence of a run: what was requested, what was done, what resulted, and where it was measured."""

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
    """The dense network. Its score is the score of the ONNX file on test data."""
    shipped: Candidate
    """The file in this folder, measured after fine-tuning. Its score is the score of the ONNX file on test data."""
    validation: Mapping[str, float]
    """Validation scores: of the dense network, and before and after fine-tuning."""
    proofs: tuple[str, ...]
    """What was compared with what, and how large the difference was."""
    notices: tuple[str, ...]
    widths: Mapping[str, tuple[int, int, int]]
    """Group -> (channels kept, channels before, outputs per channel). A group inside a dropped block keeps no channel."""
    frozen: tuple[NotPrunable, ...]
    phase_seconds: Mapping[str, float]
    learning_rate: float | None = None
    """Peak learning rate of fine-tuning; null where the user's own function trained, and where there was no training."""
    finetuned_epoch: int | None = None
    """Fine-tuning epoch whose network is shipped. 0 means the network as it was scored, because no epoch was better."""
    precision: Precision = "fp32"
    """Precision of the file in this folder."""
    precisions: tuple[PrecisionRow, ...] = ()
    """All compared files, where int8 was tried."""
    forecasts: tuple[Forecast, ...] = ()
    """How long the run was expected to take. Its actual time is the sum of `phase_seconds`."""
    network: Literal["own", "rebuilt"] | None = None
    """Whose module has the weights in this folder: the user's own, or one that is rebuilt from the exported graph. Null in
    artifacts of older versions."""
    network_reason: str = ""
    """Why it is not the user's own module, if it is not."""
    blocks: Mapping[str, bool] = field(default_factory=dict)
    """Block -> whether it was dropped, also because it is inside a dropped one. Empty where the search kept all blocks."""

    @property
    def network_text(self) -> str:
        """Whose module it is, in sentences for people; empty where it is not known."""
        if self.network == "own":
            return "The weights are those of your own module with fewer channels. load_compressed returns that module."
        if self.network == "rebuilt":
            return (
                "The weights are those of a module that is rebuilt from the exported graph, not of your own module. "
                f"The reason: {self.network_reason}. load_compressed returns the rebuilt module."
            )
        return ""

    @property
    def removed_text(self) -> str:
        """What was removed: '3 of 27 blocks and 41 % of the channels were removed'."""
        kept = sum(width * bundle for width, _, bundle in self.widths.values())
        before = sum(channels * bundle for _, channels, bundle in self.widths.values())
        channels = f"{100 * (1 - kept / before) if before else 0:.0f} % of the channels"
        blocks = f"{sum(self.blocks.values())} of {len(self.blocks)} blocks and " if self.blocks else ""
        return f"{blocks}{channels} were removed"


_ARTIFACT = TypeAdapter(Artifact)


def dump_artifact(artifact: Artifact) -> bytes:
    """Return the content of artifact.json for `artifact`."""
    return _ARTIFACT.dump_json(artifact, indent=1)


def read_artifact(folder: Path) -> Artifact:
    """Read the artifact in `folder` and check every file's hash. Raises RunError when it is missing, incomplete or changed."""
    artifact = parse_artifact(folder)
    for name in changed_files(folder, artifact):
        raise RunError(f"{folder}/{name[:200]}: missing, or changed since it was written; run the command that created it again")
    return artifact


def parse_artifact(folder: Path) -> Artifact:
    """Read the artifact in `folder` without a look at its other files. Raises RunError when it is missing or malformed."""
    try:
        return _ARTIFACT.validate_json(read_foreign(folder / "artifact.json", JSON_LIMIT_BYTES))
    except OSError as problem:
        raise RunError(f"{folder}: no artifact in this folder ({problem.strerror})") from None
    except ValidationError:
        raise RunError(
            f"{folder}/artifact.json: damaged, or written by another version of this program; run the command that created it "
            "again"
        ) from None


def changed_files(folder: Path, artifact: Artifact) -> Iterator[str]:
    """Yield the names of the files of `artifact` that are missing from `folder`, or have another hash."""
    for name, facts in artifact.files.items():
        if not _is_whole(folder, name, facts):
            yield name


def _is_whole(folder: Path, name: str, facts: FileFacts) -> bool:
    """Whether `name` is a file directly in `folder` and has the recorded hash."""
    try:
        path = folder / name
        is_here = path.parent == folder and path.name == name and path.is_file()
        return is_here and path.stat().st_size == facts.size_bytes and sha256_file(path) == facts.sha256
    except (OSError, ValueError):
        return False
