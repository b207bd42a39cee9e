"""Options that several commands share."""

import click

from pipeline.training.model_args import Argument, read_arguments

__all__ = ["EPOCHS", "MODEL_ARGS"]


def _arguments(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Argument]:
    try:
        return read_arguments(texts)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def _epochs(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise click.BadParameter(f"got {text!r}; give auto, 0 for no training, or a positive number")
    return int(text)


EPOCHS = click.option(
    "--epochs",
    default="auto",
    metavar="N",
    callback=_epochs,
    help="Epochs of fine-tuning.  [default: auto]",
)
MODEL_ARGS = click.option(
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_arguments,
    help="Argument of the factory: width=0.5. Repeatable.",
)
