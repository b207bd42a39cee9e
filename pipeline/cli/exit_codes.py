"""Error handling of every command: an error ends it with one line and the exit code of the error's class."""

import functools
import json
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Protocol

import click

from pipeline.cli.terminal import print_line
from pipeline.errors import CompressError, Interrupted
from pipeline.system.memory_errors import out_of_memory
from pipeline.system.ssh_config import ALLOW_OPTION

__all__ = ["ALLOW_SSH_COMMANDS", "handle_errors", "handle_interrupts"]

ALLOW_SSH_COMMANDS = click.option(ALLOW_OPTION, is_flag=True, help="Let the profile's ssh_config run programs.")

Command = Callable[..., Any]


def handle_errors(after_interrupt: str = "") -> Callable[[Command], Command]:
    """Wrap a command's function, so that a user's mistake gives no traceback. `after_interrupt`: text to show after Ctrl-C."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **flags: Any) -> Any:
            try:
                return command(*arguments, **flags)
            except KeyboardInterrupt:
                _exit_with(Interrupted(f"interrupted{after_interrupt}"), as_json=flags["as_json"])
            except CompressError as problem:
                _exit_with(problem, as_json=flags["as_json"])
            except Exception as problem:
                if shortage := out_of_memory(problem):
                    _exit_with(shortage, as_json=flags["as_json"])
                raise

        return wrapped

    return decorate


class _Stoppable(Protocol):
    stop: bool


def handle_interrupts(callback: _Stoppable) -> None:
    """From now on Ctrl-C raises KeyboardInterrupt. It also sets `callback.stop`, because the exception may get lost."""

    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        callback.stop = True
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)


def _exit_with(problem: CompressError, *, as_json: bool) -> NoReturn:
    message = str(problem)
    print_line(f"compress: {message}", err=True)
    if as_json:
        click.echo(json.dumps({"error": type(problem).__name__, "message": message, "exit_code": problem.exit_code}))
    sys.exit(problem.exit_code)
