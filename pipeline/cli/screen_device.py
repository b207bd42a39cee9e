"""Screen for a device: calibrations and findings."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.doctor import Finding

__all__ = ["calibrated_json", "print_calibrated", "print_finding"]

_MARKS = {"ok": ("ok", "green"), "warning": ("WARN", "yellow"), "failure": ("FAIL", "bold red")}


def print_finding(console: Console, finding: Finding) -> None:
    """Print a finding in one line, and its advice in another."""
    word, colour = _MARKS[finding.level]
    console.print(Text.assemble((f"{word:<5}", colour), (f"{finding.what:<26}", "bold"), finding.found), soft_wrap=True)
    if finding.advice:
        console.print(Text(f"{'':<31}{finding.advice}", style="dim"), soft_wrap=True)


def print_calibrated(console: Console, path: Path, found: LatencyPredictor) -> None:
    """Print what the calibration at `path` can predict, and whether its measurements are in doubt."""
    console.print(
        f"\n{path}: fitted to {len(found.points)} plans; cross-validated error {100 * found.error:.1f} % of the latency"
    )
    if found.doubts:
        console.print(
            Text(
                "some measurements are doubtful (see the notes above and the file), so predictions may be wrong: end the "
                "other programs on both machines, and calibrate again",
                style="yellow",
            ),
            soft_wrap=True,
        )


def calibrated_json(path: Path, found: LatencyPredictor) -> dict[str, Any]:
    """The calibration at `path`, for scripts."""
    intercept, slope = found.line
    return {
        "file": str(path),
        "points": [vars(point) for point in found.points],
        "error": found.error,
        "doubts": list(found.doubts),
        "intercept": intercept,
        "slope": slope,
    }
