"""The commands that examine a device: calibrate and doctor. They turn flags into a page of results."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.exit_codes import ALLOW_SSH_COMMANDS, handle_errors
from pipeline.cli.options import JSON, MODEL_ARGS, TARGET
from pipeline.cli.terminal import make_console
from pipeline.errors import ProbeError
from pipeline.stages.job import DEPTHS

if TYPE_CHECKING:
    from pipeline.stages.job import Job  # at run time this would import torch

__all__ = ["calibrate", "doctor"]


@click.command(short_help="Fit a predictor of a device's latency from this machine's.")
@TARGET
@click.option("--model", default="digits", metavar="MODEL", help="Network, as for compress.  [default: digits]")
@MODEL_ARGS
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="Weights, as for compress.")
@click.option("--data", default="digits", metavar="DATA", help="Images, as for compress.  [default: digits]")
@click.option(
    "--plans",
    type=click.IntRange(4, 100),
    default=8,
    metavar="N",
    help="Number of plans, besides the dense and the thinnest one.  [default: 8]",
)
@click.option(
    "--depth",
    type=click.Choice(DEPTHS),
    default="off",
    help="Also measure plans without some of their blocks, for searches with --depth auto.  [default: off]",
)
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed that chooses the plans.  [default: 0]")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="File to write.  [default: PROFILE.calibration.json]"
)
@ALLOW_SSH_COMMANDS
@JSON
@handle_errors()
def calibrate(plans: int, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Measure some plans of a network on the device and on this machine, and fit a latency predictor.

    With the predictor, a search needs the device only at its end.
    """
    from pipeline.cli.screen import Screen  # noqa: PLC0415
    from pipeline.stages.job import Job  # noqa: PLC0415

    console = make_console(stderr=as_json)
    path = out or Path(f"{Path(flags['target']).stem}.calibration.json")
    job = Job(**flags)
    with Screen(console) as screen:
        from pipeline.calibrate import calibrate as measure_both  # noqa: PLC0415  (torch takes seconds)
        from pipeline.cli.screen_device import calibrated_json, print_calibrated  # noqa: PLC0415

        found = measure_both(job, plans, path, screen)
    if as_json:
        click.echo(json.dumps(calibrated_json(path, found)))
    else:
        print_calibrated(console, path, found)
        console.print(f"to search with it: {_search_command(job, path)}", soft_wrap=True)


def _search_command(job: "Job", path: Path) -> str:
    """The command that searches with the calibration at `path`."""
    arguments = [text for name, value in job.model_args.items() for text in ("--model-arg", f"{name}={json.dumps(value)}")]
    weights = ["--weights", str(job.weights)] if job.weights else []
    depth = ["--depth", job.depth] if job.depth != "off" else []
    network = ["--model", job.model, *arguments, *weights, "--data", job.data, *depth]
    return shlex.join(["compress", "--target", job.target, *network, "--calibration", str(path)])


@click.command(short_help="Check a device before a long run.")
@TARGET
@ALLOW_SSH_COMMANDS
@JSON
@handle_errors()
def doctor(target: str, allow_ssh_commands: bool, as_json: bool) -> None:
    """Check a device before a long run: connection, software, other load, noise, and the smallest difference it can show."""
    from pipeline.cli.screen import Screen  # noqa: PLC0415
    from pipeline.core.profile import load_profile  # noqa: PLC0415

    console, profile = make_console(stderr=as_json), load_profile(target, allow_ssh_commands=allow_ssh_commands)
    findings: list[Any] = []
    with Screen(make_console(stderr=True), "doctor") as screen:
        from pipeline.cli.screen_device import print_finding  # noqa: PLC0415  (torch takes seconds)
        from pipeline.doctor import examine  # noqa: PLC0415

        for finding in examine(profile):
            findings.append(finding)
            if not as_json:
                with screen.printing():
                    print_finding(console, finding)
    if as_json:
        click.echo(json.dumps({"findings": [vars(finding) for finding in findings]}))
    failed = [finding for finding in findings if finding.level == "failure"]
    if not as_json:
        console.print(f"\n{len(failed)} failure{'s' if len(failed) > 1 else ''}" if failed else "\nready")
    if failed:
        sys.exit(next((finding.exit_code for finding in failed if finding.exit_code), ProbeError.exit_code))
