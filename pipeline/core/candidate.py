"""Candidate: one plan with everything that is known about it."""

from dataclasses import dataclass, replace

from pipeline.core.measurement import Failure, Measurement
from pipeline.core.paired_difference import PairedDrop
from pipeline.core.plan import ChannelPlan

__all__ = ["Candidate"]


@dataclass(frozen=True)
class Candidate:
    """A plan with the measurement of its ONNX graph and the score of its torch module.

    A candidate with a `failure` has no measurement and may have no score.
    """

    plan: ChannelPlan
    params: int
    """Learnable parameters in the ONNX file, biases included."""
    macs: int
    """Multiply-accumulate operations of one inference, in convolutions, matrix products (attention too) and recurrent layers."""
    file_size_bytes: int
    structure: str
    measurement: Measurement | None
    score: float | None
    """Higher is better; for classification the accuracy in percent on the validation split."""
    failure: Failure | None = None
    entropy: float | None = None
    """Spatial entropy of the activations, 0 to 1; null where the search does not use it."""
    kept_entropy: float | None = None
    """Share of the dense network's spatial entropy that remains, 0 to 1; null for a plan without some of its blocks."""
    dead_share: float | None = None
    """Share of channels whose activations never change; computed with the spatial entropy."""
    kept_channel_entropy: float | None = None
    """Share of the dense network's effective channels that remains, 0 to 1; null where the search does not use it, and for a plan
    without some of its blocks."""
    scored_images: int | None = None
    """Number of images of the score of a clear loser; null if it was scored on all of them."""
    drop: PairedDrop | None = None
    """Score lost against the dense network on the same test images; null until both have been tested."""

    def with_score_of(self, other: "Candidate") -> "Candidate":
        """Return a copy with the score and the activation statistics of `other`, which has the same plan."""
        return replace(
            self,
            score=other.score,
            scored_images=other.scored_images,
            entropy=other.entropy,
            kept_entropy=other.kept_entropy,
            dead_share=other.dead_share,
            kept_channel_entropy=other.kept_channel_entropy,
        )
