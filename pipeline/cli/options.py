"""Options that several commands share."""

from collections.abc import Callable
from typing import Any

import click

from pipeline.training.model_args import Argument, read_arguments

__all__ = ["EPOCHS", "JSON", "MODEL_ARGS", "SHAPE", "TARGET", "WORKERS", "restriction_options"]


def _arguments(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Argument]:
    try:
        return read_arguments(texts)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def _sizes(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        parts = sizes.split("x")
        if not all(part.isascii() and part.isdecimal() and 0 < int(part) < 2**31 for part in parts):
            raise click.BadParameter(f"got {text!r}; give NAME=SIZES, such as input=1x3x224x224")
        if found.setdefault(name, tuple(int(part) for part in parts)) != tuple(int(part) for part in parts):
            raise click.BadParameter(f"{name or 'the input'} is given twice; keep one")
    return found


def _workers(_context: click.Context, _option: click.Parameter, text: str | None) -> int | str | None:
    if text in (None, "auto"):
        return text
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= 1024):
        raise click.BadParameter(f"got {text!r}; give auto, or a number from 1 to 1024")
    return int(text)


def _shares(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        pattern, separator, value = (part.strip() for part in text.rpartition("="))
        number = value.removesuffix("%")
        try:
            share = float(number) / (100 if number != value else 1)
        except ValueError:
            share = 0.0
        if not separator or not pattern or not 0 < share <= 1:
            raise click.BadParameter(f"got {text!r}; give GROUP=SHARE with a share above 0 and at most 1, such as 'layer1.*=50%'")
        if found.setdefault(pattern, share) != share:
            raise click.BadParameter(f"{pattern} is given twice; keep one")
    return found


def _epochs(_context: click.Context, _option: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise click.BadParameter(f"got {text!r}; give auto, 0 for no training, or a positive number")
    return int(text)


TARGET = click.option(
    "--target", required=True, metavar="PROFILE", help="Device profile: a YAML file, or a name in hw_profiles/."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr.")
EPOCHS = click.option(
    "--epochs",
    default="auto",
    metavar="N",
    callback=_epochs,
    help="Epochs of fine-tuning.  [default: auto]",
)
WORKERS = click.option(
    "--workers",
    metavar="N|auto",
    callback=_workers,
    help="Processes that score plans.  [default: 1]",
)
MODEL_ARGS = click.option(
    "--model-arg",
    "model_args",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_arguments,
    help="Factory argument: width=0.5. Repeatable.",
)
SHAPE = click.option(
    "--shape",
    multiple=True,
    metavar="NAME=SIZES",
    callback=_sizes,
    help="Input of an ONNX file: input=1x3x224x224.",
)


def restriction_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which layers may lose channels."""
    for option in (
        click.option(
            "--min-width",
            multiple=True,
            metavar="GROUP=SHARE",
            callback=_shares,
            help="Smallest widths: 'layer4.*=50%'.",
        ),
        click.option("--only", multiple=True, metavar="GLOB", help="Prune only these layers."),
        click.option("--freeze", multiple=True, metavar="GLOB", help="Keep these layers whole: 'layer1.*'."),
    ):
        function = option(function)
    return function
