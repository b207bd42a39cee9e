"""Callbacks: receive the progress of a run. The command line shows it, tests collect it, and the default ignores it."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from pipeline.core.budget import Verdict
from pipeline.core.candidate import Candidate

__all__ = [
    "Callback",
    "InterruptibleCallback",
    "Notices",
    "NullCallback",
    "Progress",
    "begin_step",
    "count_images",
    "no_progress",
]

Progress = Callable[[int, int, str], None]
"""(done, total, text), as in `Callback.progress`. With a total of 0, the units of a step are not counted."""

_Part = TypeVar("_Part", bound=Sized)
_Inputs = TypeVar("_Inputs")


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
        """`done` of `total` units of the current step are finished. `text` says what is done; the time left is not part of it.

        With a total of 0, the units of the step are not counted.
        """


def no_progress(done: int, total: int, text: str) -> None:
    """Ignore the progress of a step."""


def begin_step(progress: Progress, name: str) -> Progress:
    """Report that a step begins, and return the progress of its parts. Their texts begin with the name of the step."""
    progress(0, 0, name)
    return lambda done, total, text: progress(done, total, f"{name}: {text}")


def count_images(
    batches: Iterable[tuple[_Inputs, _Part]], total: int, text: str, progress: Progress
) -> Iterator[tuple[_Inputs, _Part]]:
    """Yield `batches` of (images, labels), and report after each of them how many of `total` images were used."""
    done = 0
    progress(0, total, text)
    for images, labels in batches:
        yield images, labels
        done += len(labels)
        progress(done, total, f"{text}, image {done:,} of {total:,}")


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

    def copy(self) -> "Notices":
        """These notices, to which others can be added."""
        found = Notices(self._callback)
        found._texts = list(self._texts)
        return found

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
