"""How every command ends when something is wrong: one line, and the exit code of its class."""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from pipeline.errors import CompressError, Interrupted

__all__ = ["told"]

Command = Callable[..., Any]


def told(after_interrupt: str = "") -> Callable[[Command], Command]:
    """Wrap a command's function: no traceback for what a user can cause. `after_interrupt`: what Ctrl-C leaves."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*arguments: Any, **flags: Any) -> Any:
            try:
                return command(*arguments, **flags)
            except KeyboardInterrupt:
                _die(Interrupted(f"interrupted{after_interrupt}"), as_json=flags["as_json"])
            except CompressError as problem:
                _die(problem, as_json=flags["as_json"])

        return wrapped

    return decorate


def _die(problem: CompressError, *, as_json: bool) -> NoReturn:
    message = " ".join(str(problem).split())
    click.echo(f"compress: {message}", err=True)
    if as_json:
        click.echo(json.dumps({"error": type(problem).__name__, "message": message, "exit_code": problem.exit_code}))
    sys.exit(problem.exit_code)
