"""The command measure: latency and memory of ONNX files from anywhere."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.exit_codes import ALLOW_SSH_COMMANDS, handle_errors
from pipeline.cli.missing_files import refuse_missing_files
from pipeline.cli.options import JSON, SHAPE, TARGET
from pipeline.cli.terminal import make_console
from pipeline.errors import ProbeError, ProviderFallback
from pipeline.system.units import parse_quantity

if TYPE_CHECKING:
    from pipeline.core.measurement import Failure

__all__ = ["measure"]

EXAMPLES = """\b
Examples:
  compress measure --target board.yaml model.onnx
  compress measure --target board.yaml dense.onnx pruned.onnx
  compress measure --target board.yaml detector.onnx --shape image=1x3x320x320 --profile-layers
  compress measure --target board.yaml text.onnx --inputs example.npz
  compress measure --target local model.onnx --everywhere
"""


def _quantity(unit: str) -> Callable[[click.Context, click.Parameter, str | None], float]:
    """A callback that reads an option in `unit`. A missing option is 0."""

    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> float:
        if text is None:
            return 0.0
        try:
            value = parse_quantity(text, unit)
        except ValueError as problem:
            raise click.BadParameter(str(problem)) from None
        if not 0 < value < 1e6:
            raise click.BadParameter(f"{text!r} is out of range")
        return value

    return read


@click.command(epilog=EXAMPLES, short_help="Measure latency and memory of ONNX files, and compare them.")
@TARGET
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx ...")
@SHAPE
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Real inputs, by name. Integer inputs that are positions or sizes may need them.  [default: random values]",
)
@click.option("--profile-layers", is_flag=True, help="Also time each node, in runs of its own, with the runtime's profiler.")
@click.option("--everywhere", is_flag=True, help="Rank the device's execution providers and numbers of threads.")
@click.option("--allow-fallback", is_flag=True, help="Accept that the CPU provider runs what the profile's provider does not.")
@click.option(
    "--duty",
    "duty_hz",
    metavar="RATE",
    callback=_quantity("hz"),
    help="Start one run at a time at this rate, such as 10Hz for a camera.  [default: without pauses]",
)
@click.option(
    "--sustained",
    "sustain_s",
    metavar="TIME",
    callback=_quantity("s"),
    help="Keep the file running for this long, such as 10min, to see the effect of heat.",
)
@ALLOW_SSH_COMMANDS
@JSON
@handle_errors()
def measure(target: str, models: tuple[Path, ...], **flags: Any) -> None:
    """Measure latency and memory of ONNX files on a device.

    The files may have any inputs. Each further file is compared with the first. Compared files run in turns.
    """
    from pipeline.cli.screen import Screen  # noqa: PLC0415
    from pipeline.core.profile import load_profile  # noqa: PLC0415

    _refuse_contradictions(models, flags)
    for model in models:
        refuse_missing_files(str(model), str(flags["inputs"] or ""))
    console = make_console(stderr=flags["as_json"])
    profile = load_profile(target, allow_ssh_commands=flags["allow_ssh_commands"])

    with Screen(make_console(stderr=True), "measure") as screen:
        # importing these imports torch, which takes seconds
        from pipeline.cli.screen_measured import measured_json, print_measured  # noqa: PLC0415
        from pipeline.cli.screen_ranking import print_ranking, ranking_json  # noqa: PLC0415
        from pipeline.core.measurement import Failure  # noqa: PLC0415
        from pipeline.measuring.everywhere import measure_everywhere  # noqa: PLC0415
        from pipeline.measuring.measure_files import HowToMeasure, measure_files  # noqa: PLC0415

        def notify(text: str) -> None:
            with screen.printing():
                console.print(f"note: {text}", soft_wrap=True)

        options = ("sustain_s", "inputs", "profile_layers", "allow_fallback")
        period_ms = 1e3 / flags["duty_hz"] if flags["duty_hz"] else 0.0
        how = HowToMeasure(period_ms=period_ms, shapes=flags["shape"], **{name: flags[name] for name in options})
        if flags["everywhere"]:
            ranking = measure_everywhere(profile, models[0], how, notify, screen.progress)
        else:
            found = measure_files(profile, models, how, notify, screen.progress)
    if flags["everywhere"]:
        failures = [] if ranking.ranked else [failure for _, failure in ranking.failed]
        shown = ranking_json(ranking) if flags["as_json"] else None
    else:
        failures = [each.measured for each in found.files if isinstance(each.measured, Failure)]
        shown = measured_json(found) if flags["as_json"] else None
    if shown is not None:
        click.echo(json.dumps(shown))
    elif flags["everywhere"]:
        print_ranking(console, ranking, random_inputs=how.inputs is None)
    else:
        print_measured(console, found)
    if failures:
        sys.exit(_exit_code(failures))


def _refuse_contradictions(models: tuple[Path, ...], flags: dict[str, Any]) -> None:
    """Raise UsageError for options that exclude each other."""
    if flags["sustain_s"] and len(models) > 1:
        raise click.UsageError("--sustained takes one file, because the heat of one would slow the next")
    if flags["everywhere"] and len(models) > 1:
        raise click.UsageError("--everywhere takes one file")
    for option, key in (("--sustained", "sustain_s"), ("--profile-layers", "profile_layers")):
        if flags["everywhere"] and flags[key]:
            raise click.UsageError(f"--everywhere and {option} exclude each other; give one of them")
    if flags["inputs"] and flags["shape"]:
        raise click.UsageError("--inputs and --shape exclude each other: the arrays of --inputs have the shapes")


def _exit_code(failures: "list[Failure]") -> int:
    """Of an error that all files share; otherwise that of measuring in general."""
    return (ProviderFallback if all(each.kind == "fallback" for each in failures) else ProbeError).exit_code
