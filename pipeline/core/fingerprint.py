"""Fingerprint: where and how a figure was measured."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Fingerprint", "Mode"]

Mode = Literal["device", "host-emulated", "predicted", "simulated"]


@dataclass(frozen=True)
class Fingerprint:
    """Where and how a figure was measured. Figures with different fingerprints are never compared."""

    mode: Mode
    device: str
    """Name of the device in the profile."""
    machine: str
    """Processor that ran the file."""
    architecture: str
    onnxruntime: str
    threads: int
    """Threads that were used."""
    profile_threads: int
    """Threads that the profile asks for."""
    settings: tuple[tuple[str, str | int | bool], ...]
    """ONNX Runtime settings as they were passed: provider, optimisation level, spinning, arena and others."""
    identity: str = ""
    """Distinguishes machines of the same kind; empty for simulated machines."""
    system: str = ""
    """Kernel and its version."""
    wheel: str | None = None
    """Python, ABI and platform tags of the onnxruntime wheel; null where it has none."""
    error: float = 0.0
    """Relative error of a prediction; see `LatencyPredictor`."""

    @property
    def facts(self) -> dict[str, str]:
        """Everything that must be equal for figures to be compared, as plain text."""
        return {key: str(value) for key, value in vars(self).items() if key != "settings"} | {
            key: str(value) for key, value in self.settings
        }

    @property
    def stamp(self) -> str:
        """Label of every figure: 'device', or 'host-emulated, 2 of 4 threads'."""
        mode = f"predicted ± {100 * self.error:.1f} % from figures of this machine" if self.mode == "predicted" else self.mode
        if self.threads < self.profile_threads:
            return f"{mode}, {self.threads} of {self.profile_threads} threads"
        return mode
