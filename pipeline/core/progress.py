"""Callbacks: receive the progress of a run. The command line shows it, tests collect it, and the default ignores it."""

from typing import Protocol

from pipeline.core.budget import Verdict
from pipeline.core.candidate import Candidate

__all__ = ["Callback", "InterruptibleCallback", "Notices", "NullCallback"]


class Callback(Protocol):
    """Receives the events of a run. All calls come from one thread."""

    def phase(self, name: str, detail: str) -> None:
        """A step begins."""

    def say(self, text: str) -> None:
        """A step has a result."""

    def notice(self, text: str) -> None:
        """There is something unexpected that the user should know."""

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """A candidate was evaluated; `best` is the best one within the budget so far."""

    def progress(self, done: int, total: int, text: str) -> None:
        """`done` of `total` units of the current step are finished. `text` says what is done; the time left is not part of it."""


class NullCallback:
    """Ignores every event."""

    def phase(self, name: str, detail: str) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def notice(self, text: str) -> None:
        """Do nothing."""

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Do nothing."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Do nothing."""


class InterruptibleCallback:
    """Forwards every call to another callback. Once `stop` is set, the next call raises KeyboardInterrupt.

    An interrupt that arrives while a C library calls back into Python can get lost. The flag cannot get lost.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self.stop = False

    def phase(self, name: str, detail: str) -> None:
        """Forward the call."""
        self._raise_if_stopped()
        self._callback.phase(name, detail)

    def say(self, text: str) -> None:
        """Forward the call."""
        self._raise_if_stopped()
        self._callback.say(text)

    def notice(self, text: str) -> None:
        """Forward the call."""
        self._raise_if_stopped()
        self._callback.notice(text)

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Forward the call."""
        self._raise_if_stopped()
        self._callback.trial(number, total, candidate, dense, verdict, best)

    def progress(self, done: int, total: int, text: str) -> None:
        """Forward the call."""
        self._raise_if_stopped()
        self._callback.progress(done, total, text)

    def _raise_if_stopped(self) -> None:
        if self.stop:
            raise KeyboardInterrupt


class Notices:
    """The notices of a run, in order. Each is shown when it is added, and the report contains all of them."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._texts: list[str] = []

    def add(self, *texts: str) -> None:
        """Show `texts` and keep them. A text that was added before is skipped."""
        for text in texts:
            if text not in self._texts:
                self._texts.append(text)
                self._callback.notice(text)

    @property
    def texts(self) -> tuple[str, ...]:
        """All notices so far."""
        return tuple(self._texts)
