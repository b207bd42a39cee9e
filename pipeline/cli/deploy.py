"""The commands that change what a device serves: ship, status, rollback. They turn flags into one line per device."""

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.exit_codes import ALLOW_SSH_COMMANDS, handle_errors
from pipeline.cli.terminal import make_console, print_line

if TYPE_CHECKING:
    from pipeline.deploy.deliver import Delivered, Progress
    from pipeline.deploy.fleet import Rollout, Target

__all__ = ["rollback", "ship", "status"]

Command = Callable[..., Any]
AFTER_INTERRUPT = "; the old release is still active: run the same command again to continue"


def device_options(command: Command) -> Command:
    """Add the options that select devices."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr."),
        ALLOW_SSH_COMMANDS,
        click.option("--group", metavar="NAME", help="Only the devices of this group of the inventory."),
        click.option(
            "--inventory",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="YAML file that lists devices with their profiles and hosts.",
        ),
        click.option(
            "--target",
            "targets",
            multiple=True,
            metavar="PROFILE",
            help="Device profile: a YAML file, or a name in hw_profiles/. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def rollout_options(command: Command) -> Command:
    """Add the options that control how many devices are done at once, and when to stop."""
    for option in (
        click.option(
            "--results",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File to which a line of JSON is appended for each device.",
        ),
        click.option(
            "--max-failures",
            default="25%",
            metavar="SHARE",
            help="Start no further device when more than this share has failed.  [default: 25%]",
        ),
        click.option(
            "--canary",
            type=click.IntRange(0),
            default=1,
            metavar="N",
            help="Number of devices that come first; if one fails, no other is touched.  [default: 1]",
        ),
        click.option(
            "--parallel", type=click.IntRange(1, 64), default=4, metavar="N", help="Number of devices at a time.  [default: 4]"
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Deploy an artifact to devices.")
@click.argument("artifact", type=click.Path(path_type=Path))
@device_options
@rollout_options
@click.option("--keys", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the keys, as for sign.")
@click.option("--ignore-budget", is_flag=True, help="Activate it even if it is too slow or too large on the device.")
@handle_errors(AFTER_INTERRUPT)
def ship(artifact: Path, folder: Path | None, ignore_budget: bool, **flags: Any) -> None:
    """Deploy an artifact to devices: upload, verify, health check, switch, commit.

    If a step fails on a device, its old release stays active. An artifact without a signature is signed first.
    """
    from pipeline.deploy.deliver import deliver  # noqa: PLC0415
    from pipeline.deploy.keys import keys_folder, read_trusted  # noqa: PLC0415
    from pipeline.deploy.manifest import Trust  # noqa: PLC0415
    from pipeline.deploy.sign import ensure_signed  # noqa: PLC0415

    now, keys = datetime.datetime.now(datetime.UTC), keys_folder(folder)
    chosen = _chosen(**flags)
    ensure_signed(artifact, keys, now, lambda text: print_line(f"note: {text}", err=True))
    trusted = read_trusted(keys)

    def action(target: "Target", progress: "Progress") -> "Delivered":
        return deliver(target.profile, artifact, Trust(trusted, now), budget=not ignore_budget, progress=progress)

    _run_on_all(chosen, action, **flags)


@click.command(short_help="Return to the previous release.")
@device_options
@rollout_options
@handle_errors(AFTER_INTERRUPT)
def rollback(**flags: Any) -> None:
    """Make the previous release active again, after checking that its outputs are still correct."""
    from pipeline.deploy.deliver import roll_back  # noqa: PLC0415

    _run_on_all(_chosen(**flags), lambda target, progress: roll_back(target.profile, progress=progress), **flags)


@click.command(short_help="Show the active release of devices.")
@device_options
@handle_errors()
def status(as_json: bool, **flags: Any) -> None:
    """Show the active release of devices, and their other releases. Nothing on a device is changed."""
    from pipeline.cli.screen_deploy import print_status  # noqa: PLC0415
    from pipeline.deploy.deliver import look  # noqa: PLC0415
    from pipeline.errors import CompressError  # noqa: PLC0415
    from pipeline.foreign_text import clean_text  # noqa: PLC0415

    console, chosen, found, last = make_console(stderr=as_json), _chosen(**flags), [], 0
    for target in chosen:
        try:
            store = look(target.profile)
        except Exception as problem:
            if len(chosen) == 1:
                raise
            ours = isinstance(problem, CompressError)
            last = problem.exit_code if isinstance(problem, CompressError) else 1
            message = clean_text(str(problem) if ours else f"{target.name}: a defect of this program: {problem!r}")
            found.append({"name": target.name, "error": type(problem).__name__, "message": message})
            console.print(f"{target.name}  {message}", style="red", soft_wrap=True)
            continue
        found.append({"name": target.name, **asdict(store)})
        print_status(console, target.name, store)
    if as_json:
        click.echo(json.dumps({"devices": found}))
    if last:
        sys.exit(last)


def _chosen(
    targets: Sequence[str], inventory: Path | None, group: str | None, allow_ssh_commands: bool, **_others: Any
) -> "tuple[Target, ...]":
    """The devices that the options select."""
    from pipeline.core.profile import load_profile  # noqa: PLC0415
    from pipeline.deploy.fleet import Target  # noqa: PLC0415
    from pipeline.deploy.inventory import read_inventory  # noqa: PLC0415

    if bool(targets) == bool(inventory) or (group and not inventory):
        raise click.UsageError("give either --target PROFILE (repeatable) or --inventory FILE (with an optional --group NAME)")
    if inventory:
        return read_inventory(inventory, group, allow_ssh_commands=allow_ssh_commands)
    if len(set(targets)) < len(targets):
        raise click.UsageError("the same --target is given twice; remove one")
    return tuple(Target(target, load_profile(target, allow_ssh_commands=allow_ssh_commands)) for target in targets)


def _run_on_all(
    chosen: "tuple[Target, ...]",
    action: "Callable[[Target, Progress], Delivered]",
    as_json: bool,
    results: Path | None,
    **flags: Any,
) -> None:
    from pipeline.cli.screen_deploy import ShipScreen, outcome_json  # noqa: PLC0415
    from pipeline.deploy.fleet import Outcome, roll_out  # noqa: PLC0415
    from pipeline.errors import FleetFailed, StorageError  # noqa: PLC0415

    rollout = _rollout(**flags)
    outcomes: tuple[Outcome, ...] = ()
    with ShipScreen(make_console(stderr=as_json), max(len(target.name) for target in chosen)) as screen:

        def act(target: "Target") -> "Delivered":
            return action(target, lambda step, done, total: screen.step(target.name, step, done, total))

        def write_down(outcome: Outcome) -> None:
            screen.done(outcome)
            if results:
                try:
                    with results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(outcome_json(outcome)) + "\n")
                except OSError as problem:
                    raise StorageError(
                        f"{results}: cannot be written ({problem.strerror}); choose another file for --results"
                    ) from None

        if len(chosen) == 1:  # in this thread, so that its error is the command's error, and Ctrl-C works immediately
            delivered = act(chosen[0])
            outcomes = (Outcome(chosen[0].name, "shipped" if delivered.changed else "unchanged", delivered),)
            write_down(outcomes[0])
        else:
            outcomes = roll_out(chosen, act, rollout, write_down)
    if as_json:
        click.echo(json.dumps({"devices": [outcome_json(outcome) for outcome in outcomes]}))
    failed, left = (sum(outcome.result == each for outcome in outcomes) for each in ("failed", "not tried"))
    if failed:
        print_line(
            f"compress: {failed} of {len(outcomes)} devices failed and {left} were not tried; their old releases stay active: "
            "run the same command again for these devices",
            err=True,
        )
        sys.exit(FleetFailed.exit_code)


def _rollout(parallel: int, canary: int, max_failures: str, **_others: Any) -> "Rollout":
    from pipeline.deploy.fleet import Rollout  # noqa: PLC0415

    number = max_failures.strip().removesuffix("%").strip()
    if not number.isdigit() or int(number) > 100:
        raise click.UsageError(f"--max-failures {max_failures!r}: expected a share from 0% to 100%")
    return Rollout(parallel, canary, int(number) / 100)
