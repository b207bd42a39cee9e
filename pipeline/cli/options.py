"""Options that several commands share."""

from typing import Any

import click

from pipeline.training.model_args import Argument, read_arguments

__all__ = ["EPOCHS", "MODEL_ARGS"]


def _arguments(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Argument]:
    try:
        return read_arguments(texts)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


class _Epochs(click.ParamType[int | None]):
    """A number of epochs, or auto, which is None."""

    name = "epochs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Raise BadParameter for anything else."""
        if value is None or value == "auto":
            return None
        found = click.IntRange(0).convert(value, param, ctx)
        return int(found)


EPOCHS = _Epochs()

MODEL_ARGS = click.option(
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_arguments,
    help="Argument of the factory: width=0.5. Repeatable.",
)
