"""How accurate the probe's ratios are: judges the lines of probe_load.py, and prints one row for each load.

The *quiet ratio* of a pair is the mean of its turns within NEAR_S of the measurement that is judged. Turns lie minutes apart, as
measurements of users do. Its interval is Student's t over these turns. A measurement with fewer than LEAST_TURNS turns is not
judged.

A measurement is *inside* when it differs from the quiet ratio by no more than two estimates with these intervals differ:
|measured - quiet| <= sqrt(reach^2 + quiet reach^2), where a reach is the distance from the value to the end of its interval
that faces the other value. The rule was fixed before the turns were measured. *Strictly* counts the measurements whose own
interval holds the value of the quiet ratio. That is a stricter rule, because the quiet ratio is an estimate too.

A verdict *within* is wrong when the whole interval lies below a limit that the file exceeds on the quiet machine: below
WRONG_LIMIT of the quiet ratio, and below the interval of the quiet ratio. An alarm is a file whose interval against itself does
not hold 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from probe_load import AGAIN, LOADS, THREADS, Key, Line, Turn

from pipeline.core import statistics
from pipeline.core.measurement import Measurement
from pipeline.core.statistics import Estimate

WRONG_LIMIT = 0.98
"""A limit of this share of the quiet ratio is violated by the file. The verdict *within* is wrong there."""
LEAST_TURNS = 3
NEAR_S = 3600
"""The ratio of some pairs changes over hours, so a measurement is judged by turns of the same hour."""


def quiet_ratio(line: Line, turns: Sequence[Turn]) -> Estimate | None:
    """The quiet ratio that `line` is judged by; None if there are too few turns."""
    ratios = [turn.ratio for turn in turns if turn.pair == line.key[1:4] and abs(turn.at - line.at) <= NEAR_S]
    if len(ratios) < LEAST_TURNS:
        return None
    mean = float(np.mean(ratios))
    reach = statistics.student(len(ratios) - 1) * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
    return Estimate(mean, mean - reach, mean + reach)


def is_inside(measured: Estimate, quiet: Estimate) -> bool:
    """Whether the two differ by no more than two estimates with these intervals differ."""
    if measured.value <= quiet.value:
        reach, quiet_reach = measured.high - measured.value, quiet.value - quiet.low
    else:
        reach, quiet_reach = measured.value - measured.low, quiet.high - quiet.value
    return abs(measured.value - quiet.value) <= math.hypot(reach, quiet_reach)


@dataclass
class _Row:
    """The counts of one load and number of threads."""

    pairs: int = 0
    inside: int = 0
    strictly: int = 0
    undecided: int = 0
    wrong: int = 0
    same: int = 0
    alarms: int = 0
    widths: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    def count(self, key: Key, measured: Measurement, quiet: Estimate | None) -> None:
        """Add one measurement."""
        ratio = measured.relative_p50
        if ratio is None:
            return
        if key[3] == 1.0:
            self.same += 1
            self.alarms += not measured.doubts and not ratio.low <= 1 <= ratio.high
        if key[4] not in (0, AGAIN) or quiet is None:
            return
        self.pairs += 1
        if measured.doubts:
            self.undecided += 1
            return
        self.inside += is_inside(ratio, quiet)
        self.strictly += ratio.low <= quiet.value <= ratio.high
        self.wrong += ratio.high <= min(WRONG_LIMIT * quiet.value, quiet.low)
        self.widths.append((ratio.high - ratio.low) / ratio.value)
        every = statistics.ratio_estimate(*_blocks(measured), statistics.MEDIAN)
        if every:
            self.plain.append((every.high - every.low) / every.value)

    @property
    def text(self) -> str:
        """The cells of the row."""
        widths = [f"{100 * np.median(each):.1f} %" if each else "" for each in (self.widths, self.plain)]
        good = f"{100 * (self.inside + self.undecided) / self.pairs:.0f} %" if self.pairs else ""
        outside = self.pairs - self.inside - self.undecided
        cells = (self.pairs, self.inside, self.undecided, outside, good, self.strictly, self.wrong)
        return " | ".join(map(str, (*cells, f"{self.alarms} of {self.same}", *widths)))


def table(lines: Sequence[Line], turns: Sequence[Turn]) -> list[str]:
    """One row for each load and number of threads."""
    names = "loops, threads, measured, inside, undecided, outside, good, strictly, wrong *within*, A/A alarms, width, all runs"
    rows = [f"| {names.replace(', ', ' | ')} |", "| --: " * (1 + names.count(",")) + "|"]
    for load in LOADS:
        for threads in THREADS:
            row = _Row()
            for line in lines:
                if line.key[0] == load and line.key[2] == threads:
                    row.count(line.key, line.measurement, quiet_ratio(line, turns))
            if row.pairs:
                rows.append(f"| {load} | {threads} | {row.text} |")
    known = [quiet_ratio(line, turns) for line in lines if line.key[4] in (0, AGAIN)]
    reaches = [(each.high - each.low) / 2 / each.value for each in known if each]
    middle = f"{100 * np.median(reaches):.1f} %" if reaches else "not known"
    count = len({turn.number for turn in turns})
    drifts = (f"{100 * np.median(drift(turns, threads)):.1f} % with {threads} thread{'s' * (threads > 1)}" for threads in THREADS)
    return [
        *rows,
        "",
        f"{count} turns; the quiet ratio is known to +- {middle} (median of the measurements)",
        f"standard deviation of a ratio between turns, beyond that of its processes (median of the pairs): {', '.join(drifts)}",
    ]


def drift(turns: Sequence[Turn], threads: int) -> list[float]:
    """The standard deviation of the ratio of each pair between turns, as a share of the ratio, beyond what its processes explain.

    The variance of the turns is that of the mean of a turn's processes plus that between turns. The dense network is left out.
    """
    found = []
    for pair in dict.fromkeys(turn.pair for turn in turns if turn.pair[1] == threads and turn.pair[2] != 1.0):
        own = [turn for turn in turns if turn.pair == pair]
        total = np.var(np.log([turn.ratio for turn in own]), ddof=1)
        inside = np.mean([np.var(np.log(turn.processes), ddof=1) / len(turn.processes) for turn in own])
        found.append(math.sqrt(max(0.0, float(total - inside))))
    return found


def _blocks(measured: Measurement) -> tuple[statistics.Blocks, statistics.Blocks]:
    """Every timed run of the file and of the reference, whoever disturbed it."""
    processes = measured.processes
    return tuple(each.latency_ms for each in processes), tuple(each.reference_latency_ms for each in processes)
