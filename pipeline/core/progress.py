"""Watcher: what a run tells while it works. The command line shows it; tests collect it; by default nobody listens."""

from typing import Protocol

from pipeline.core.budget import Verdict
from pipeline.core.candidate import Candidate

__all__ = ["Callback", "InterruptibleCallback", "Notices", "NullCallback"]


class Callback(Protocol):
    """Called by the walk and its steps, from one thread."""

    def phase(self, name: str, detail: str) -> None:
        """A step begins."""

    def say(self, text: str) -> None:
        """What came out of a step."""

    def notice(self, text: str) -> None:
        """Something the user should know, and would not expect."""

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """A candidate is known; `best` is the best one within the budget so far."""

    def progress(self, done: int, total: int, text: str) -> None:
        """`done` of `total` units of the current step are finished."""


class NullCallback:
    """Nobody listens."""

    def phase(self, name: str, detail: str) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""

    def notice(self, text: str) -> None:
        """Ignored."""

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Ignored."""


class InterruptibleCallback:
    """Passes everything on to another watcher; once `stop` is set, the next call raises KeyboardInterrupt.

    An interrupt that arrives while a C library calls back into Python can get lost there; the flag does not.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.stop = False

    def phase(self, name: str, detail: str) -> None:
        """Passed on."""
        self._heed()
        self._callback.phase(name, detail)

    def say(self, text: str) -> None:
        """Passed on."""
        self._heed()
        self._callback.say(text)

    def notice(self, text: str) -> None:
        """Passed on."""
        self._heed()
        self._callback.notice(text)

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Passed on."""
        self._heed()
        self._callback.trial(number, total, candidate, dense, verdict, best)

    def progress(self, done: int, total: int, text: str) -> None:
        """Passed on."""
        self._heed()
        self._callback.progress(done, total, text)

    def _heed(self) -> None:
        if self.stop:
            raise KeyboardInterrupt


class Notices:
    """The notices of a run, in order: each is shown when it is added, and all stand in the report."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._texts: list[str] = []

    def add(self, *texts: str) -> None:
        """Show `texts` and keep them; a text that is known already is left out."""
        for text in texts:
            if text not in self._texts:
                self._texts.append(text)
                self._callback.notice(text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All notices so far."""
        return tuple(self._texts)
