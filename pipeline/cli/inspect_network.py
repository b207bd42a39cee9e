"""The command inspect: what can be pruned in a network, and what it costs."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.exit_codes import ALLOW_SSH_COMMANDS, handle_errors
from pipeline.cli.missing_files import refuse_missing_files
from pipeline.cli.options import MODEL_ARGS, SHAPE, restriction_options
from pipeline.cli.terminal import make_console
from pipeline.stages.job import DEPTHS

__all__ = ["inspect"]

EXAMPLES = """\b
Examples:
  compress inspect --model net.onnx
  compress inspect --model nets.py:make_net --data ./images --target board.yaml
  compress inspect --model nets.py:make_net --task tasks.py:task --target board.yaml
"""


@click.command(epilog=EXAMPLES, short_help="Show what can be pruned in a network, and what its layers cost.")
@click.option("--model", default="digits", metavar="MODEL", help="Network, as for compress.  [default: digits]")
@MODEL_ARGS
@SHAPE
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="Weights. Without any, they are random.")
@click.option("--target", metavar="PROFILE", help="Measure with this device profile.")
@click.option("--data", metavar="DATA", help="Images, as for compress. Without any, they are random.")
@click.option("--task", metavar="TASK", help="Code of your own task: FILE.py:F or MODULE:F.")
@click.option("--unlabelled", type=click.Path(path_type=Path), metavar="FOLDER", help="Images without labels.")
@restriction_options
@click.option(
    "--depth",
    type=click.Choice(DEPTHS),
    default="off",
    help="Whether whole blocks may be dropped.  [default: off]",
)
@click.option("--trials", type=click.IntRange(1), default=60, metavar="N", help="Trials of the search.  [default: 60]")
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with a picture of the network.")
@ALLOW_SSH_COMMANDS
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr.")
@handle_errors()
def inspect(as_json: bool, page: Path | None, **flags: Any) -> None:
    """Show the layers of a network, which channels can be removed together, and why others cannot.

    With --target, the dense network, the thinnest plan and each layer are measured. With --data or --task, the time of a search
    includes scoring.
    """
    from pipeline.cli.screen import Screen  # noqa: PLC0415
    from pipeline.stages.job import Job  # noqa: PLC0415

    console = make_console(stderr=as_json)
    shapes = flags.pop("shape")
    is_file = flags["model"].lower().endswith(".onnx")
    sizes = next(iter(shapes.values()), ())
    if not is_file and (len(shapes) > 1 or (sizes and len(sizes) != 4)):
        raise click.UsageError("--shape: a network from code takes one batch of images, such as 1x3x224x224")
    beside = next((name for name in ("data", "unlabelled") if flags[name]), None)
    if flags["task"] and beside:
        raise click.UsageError(f"--{beside} is not used with --task, which has its own data; leave one out.")
    refuse_missing_files(flags["model"], flags["data"])
    has_data = bool(flags["task"] or beside)
    data = flags["data"] or ("none" if flags["unlabelled"] else "digits")
    flags = {**flags, "target": flags["target"] or "", "data": data, "shape": shapes if is_file else {}}
    with Screen(make_console(stderr=True)) as screen:
        screen.progress(0, 0, "importing PyTorch")
        from pipeline.cli.screen_inspection import inspection_json, print_inspection  # noqa: PLC0415  (torch takes seconds)
        from pipeline.inspection.inspect_network import inspect_network  # noqa: PLC0415

        found = inspect_network(Job(**flags), screen, has_data=has_data, shape=sizes)
    if page:
        from pipeline.inspection.page import inspection_page  # noqa: PLC0415
        from pipeline.system.files import write_atomically  # noqa: PLC0415

        write_atomically(page, inspection_page(found))
    if as_json:
        click.echo(json.dumps(inspection_json(found)))
    else:
        print_inspection(console, found)
        if page:
            console.print(str(page), highlight=False, soft_wrap=True)
