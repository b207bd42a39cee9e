"""Standard streams and Ctrl-C. Printed text is escaped, and a command that can no longer print ends as other tools do."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any, TextIO

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from pipeline.errors import Interrupted, StorageError
from pipeline.foreign_text import escape_text

__all__ = ["BROKEN_PIPE", "OutputLost", "make_console", "print_line", "run_command"]

BROKEN_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended: 128 + 13."""
TOLERATED_INTERRUPTS = 2
"""Number of Ctrl-C that let the command clean up. The next one ends the process immediately, like a kill."""


class OutputLost(BaseException):
    """Standard output can no longer be written. Like KeyboardInterrupt, this ends the command at any point."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(f"standard output cannot be written ({problem.strerror})")
        self.exit_code = BROKEN_PIPE if problem.errno == errno.EPIPE else StorageError.exit_code


class _SafeConsole(Console):
    """A console whose text can only be read: only rich itself moves the cursor or sets colours."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_text(text, keep="\n"), **options)  # before its width is known

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_text(segment.text, keep="\n"))


def make_console(*, stderr: bool = False) -> Console:
    """The console of a command. Brackets and colons in a path are not markup, and control characters are escaped.

    It keeps the stream that is there now. A block that silences a library by `redirect_stdout` does not silence the console.
    """
    return _SafeConsole(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)


def print_line(text: str, *, err: bool = False) -> None:
    """Print `text` with control characters escaped."""
    click.echo(escape_text(text, keep="\n"), err=err)


def run_command(command: click.Command) -> int:
    """Run a command line program to its end, and return its exit code.

    Ctrl-C gives 130. If standard output cannot be written, the code is 53, with a message; if its reader has gone, as in `|
    head`, it is 141 without one. Closed standard streams are opened on /dev/null first, so that no other file gets their number.
    """
    _open_streams()
    interrupts = _handle_interrupts()
    code = 1
    try:
        code = _run(command)
        sys.stdout.flush()
    except OutputLost as loss:
        code = loss.exit_code
        if code != BROKEN_PIPE:
            print_line(f"compress: {loss}", err=True)
    finally:
        interrupts.exit_code = code
        interrupts.remaining = 0  # Python still waits for threads, and would print a traceback
    return code


def _run(command: click.Command) -> int:
    try:
        ended = command.main(standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_line("compress: interrupted", err=True)
        return Interrupted.exit_code
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print_line(ending.code, err=True)
            return 1
        return ending.code or 0
    return ended if isinstance(ended, int) else 0


class _Interrupts:
    """Handles SIGINT: raises KeyboardInterrupt, and ends the process immediately after several of them."""

    def __init__(self) -> None:
        self.remaining = TOLERATED_INTERRUPTS
        self.exit_code = Interrupted.exit_code

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.remaining -= 1
        if self.remaining < 0:
            os._exit(self.exit_code)
        raise KeyboardInterrupt


def _handle_interrupts() -> _Interrupts:
    interrupts = _Interrupts()
    signal.signal(signal.SIGINT, interrupts)
    show_unraisable, show_in_thread = sys.unraisablehook, threading.excepthook

    # Python would print an interrupt in a finaliser or another thread as a defect
    def unraisable(facts: Any) -> None:
        if not isinstance(facts.exc_value, KeyboardInterrupt | OutputLost):
            show_unraisable(facts)

    def in_thread(facts: Any) -> None:
        if not isinstance(facts.exc_value, KeyboardInterrupt | OutputLost):
            show_in_thread(facts)

    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    return interrupts


class _Stream(io.TextIOWrapper):
    """A standard stream. Errors are caught here, not in the file below it: an interrupt between the system's write and its return
    would write the text a second time there.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as problem:
            self._failed(problem)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as problem:
            self._failed(problem)

    def _failed(self, problem: OSError) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is still buffered must not fail again


class _Output(_Stream):
    """Standard output."""

    def _failed(self, problem: OSError) -> None:
        super()._failed(problem)
        raise OutputLost(problem)


def _open_streams() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    sys.stdout = _writer(_Output, 1, sys.stdout)
    # what cannot be written to standard error is lost, because there is nowhere left to report it
    sys.stderr = _writer(_Stream, 2, sys.stderr)


def _writer(kind: type[_Stream], number: int, before: TextIO | None) -> TextIO:
    """A standard stream as Python opens it, but characters that the encoding lacks are written as escapes."""
    raw = io.FileIO(number, "w", closefd=False)
    encoding = before.encoding if before else "utf-8"
    by_line = raw.isatty() or kind is _Stream
    return kind(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)
