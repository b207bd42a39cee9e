"""Heartbeat: knows when a stage has been silent for too long, and what to say about it: its name, its age, and what is left."""

import time
from collections import deque
from collections.abc import Callable

from pipeline.system.units import format_duration

__all__ = ["SILENCE_S", "Heartbeat"]

SILENCE_S = 3.25
"""Something is shown after so much silence. The rest of five seconds is for steps during which Python runs no other thread."""
PACE_S = 60.0
"""The time left is computed from the pace of so many last seconds, because the parts of a stage differ in speed."""

Clock = Callable[[], float]


class Heartbeat:
    """The present stage, how far it is, and when something was last shown. Times are those of `clock`, in seconds."""

    def __init__(self, stage: str, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._advances: deque[tuple[float, int]] = deque()
        self._done, self._total, self._counted_from = 0, 0, 0.0
        self._text, self._several_steps = "", False
        self._step_began, self._took = 0.0, dict[str, float]()
        self.begin(stage)

    def begin(self, stage: str) -> None:
        """A stage begins. What is known of the last one is forgotten."""
        self._end_step()
        self._stage, self._began, self._shown = stage, self.clock(), self.clock()
        self._restart(0, "")
        self._counted_from, self._several_steps = self._began, False

    def advance(self, done: int, total: int, text: str) -> None:
        """`done` of `total` units of the stage are finished. With a total of 0, units are not counted.

        Another total, or fewer units than before, begins a new count. A count that begins above 1 goes on where an interrupted
        run ended, and its units took no time here.
        """
        now = self.clock()
        if text != self._text:
            self._end_step()
            self._step_began = now
        if total != self._total or done < self._done:
            self._several_steps |= bool(self._text)
            self._restart(total, text)
            if done == 1:
                self._advances.append((self._counted_from, 0))
        self._counted_from = now
        self._done, self._text = done, text
        self._advances.append((now, done))
        while len(self._advances) > 2 and self._advances[1][0] < now - PACE_S:
            self._advances.popleft()

    def shown(self) -> None:
        """Something was shown to the user just now."""
        self._shown = self.clock()

    @property
    def due(self) -> bool:
        """Whether nothing was shown for `SILENCE_S`."""
        return self.clock() - self._shown >= SILENCE_S

    @property
    def elapsed_s(self) -> float:
        """Age of the stage."""
        return self.clock() - self._began

    @property
    def share(self) -> float | None:
        """Finished share of the present count, from 0 to 1. None if units are not counted, or all are finished."""
        return self._done / self._total if self._done < self._total else None

    @property
    def left_s(self) -> float | None:
        """The expected time until the last unit is finished, or None. It grows while a unit takes longer than those before."""
        if self.share is None or len(self._advances) < 2:
            return None
        first_s, first = self._advances[0]
        passed_s, passed = self.clock() - first_s, self._done - first
        return passed_s / passed * (self._total - self._done) if passed else None

    def line(self) -> str:
        """The state of the stage in one line. If it has several counts, share and time left are those of the present one."""
        elapsed, left = format_duration(self.elapsed_s), self.left_s
        if self.share is None:
            step = f"; {self._text}{self._before()}" if self._text and not self._total else ""
            return f"{self._stage}: at work for {elapsed}{step}"
        remaining = "" if left is None else f", {format_duration(left)} left"
        if self._several_steps:
            return f"{self._stage}: at work for {elapsed}; {self._text}: {100 * self.share:.0f} %{remaining}"
        return f"{self._stage}: {100 * self.share:.0f} % after {elapsed}{remaining}; {self._text}"

    def _before(self) -> str:
        """What the last step of the same name, as in the rehearsal, says about the present one."""
        took_s = self._took.get(self._text)
        if took_s is None or took_s < 1:
            return ""
        left_s = took_s - (self.clock() - self._step_began)
        left = f", about {format_duration(left_s)} left" if left_s >= 1 else ""
        return f"{left} (it took {format_duration(took_s)} before)"

    def _end_step(self) -> None:
        """Remember how long the present step took, if its units are not counted."""
        if self._text and not self._total:
            self._took[self._text] = self.clock() - self._step_began

    def _restart(self, total: int, text: str) -> None:
        self._done, self._total, self._text = 0, total, text
        self._advances.clear()
