"""Options that several commands share."""

import click

from pipeline.training.model_args import Argument, read_arguments

__all__ = ["MODEL_ARGS"]


def _arguments(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Argument]:
    try:
        return read_arguments(texts)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


MODEL_ARGS = click.option(
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_arguments,
    help="Argument of the factory: width=0.5. Repeatable.",
)
