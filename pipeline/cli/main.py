"""The command line: turns flags into a job. Only the `cli` files and their screens print or exit."""

import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from pipeline.cli.deploy import rollback, ship, status
from pipeline.cli.device import calibrate, doctor
from pipeline.cli.exit_codes import ALLOW_SSH_COMMANDS, handle_errors, handle_interrupts
from pipeline.cli.inspect_network import inspect
from pipeline.cli.keys import keys, sign
from pipeline.cli.measure import measure
from pipeline.cli.missing_files import refuse_missing_files
from pipeline.cli.options import EPOCHS, MODEL_ARGS, SHAPE, WORKERS, restriction_options
from pipeline.cli.report import report
from pipeline.cli.terminal import make_console, run_command
from pipeline.core.plan import IMPORTANCES
from pipeline.errors import BUDGET_MISSED, BudgetError
from pipeline.foreign_text import escape_text
from pipeline.search.problem import NAMED_REWARDS
from pipeline.search.searchers import SEARCHERS
from pipeline.stages.job import DEPTHS, Job
from pipeline.system.memory_errors import watch_limited
from pipeline.training.options_file import read_training_options
from pipeline.training.settings import RECOVERIES, FinetuneSettings

__all__ = ["main"]

DEFAULTS = Job(target="")
"""The defaults of all options. They are defined only in `Job`."""
REPLACED_BY_TASK = {"data", "unlabelled", "epochs", "finetune_minutes", "recover", "learning_rate", "batch_size", "training"}
"""Options that have no effect with --task."""

EXAMPLES = """\b
Examples:
  compress --target raspberrypi
  compress --target local --budget latency_p50=4ms --budget accuracy_drop=1
  compress --target raspberrypi --model nets.py:make_net --weights net.safetensors --data ./images
"""


@click.group(
    invoke_without_command=True,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXAMPLES,
    options_metavar="--target PROFILE [OPTIONS]",
    subcommand_metavar="",
)
@click.option("--target", metavar="PROFILE", help="Device profile: file or name.  [required]")
@click.option(
    "--model",
    default=DEFAULTS.model,
    metavar="MODEL",
    help=f"FILE.onnx, a name in models/, torchvision:NAME, or code: FILE.py:F or MODULE:F.  [default: {DEFAULTS.model}]",
)
@MODEL_ARGS
@SHAPE
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="A .safetensors file, or a saved state dict.")
@click.option(
    "--data",
    metavar="DATA",
    help=f"A folder, FILE.npy, FILE.npz, torchvision:NAME, or code: FILE.py:F or MODULE:F.  [default: {DEFAULTS.data}]",
)
@click.option("--task", metavar="TASK", help="Code of your own task: FILE.py:F or MODULE:F.")
@click.option(
    "--unlabelled",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images without labels.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Limit: latency_p50=50%,25%, params=1M. Repeatable.",
)
@click.option(
    "--searcher",
    default=DEFAULTS.searcher,
    metavar="NAME",
    help=f"docs/searchers.md  [default: {DEFAULTS.searcher}]",
)
@click.option(
    "--reward",
    type=click.Choice(NAMED_REWARDS),
    metavar="NAME",
    help=f"Reward: {', '.join(NAMED_REWARDS)}.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=DEFAULTS.trials,
    metavar="N",
    help=f"Plans to measure.  [default: {DEFAULTS.trials}]",
)
@click.option(
    "--supernet",
    "supernet_steps",
    type=click.IntRange(0),
    metavar="N",
    help="Steps of the supernet.  [default: auto]",
)
@EPOCHS
@click.option(
    "--finetune-minutes",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULTS.finetuning.minutes,
    metavar="MIN",
    help=f"Time of --epochs auto.  [default: {DEFAULTS.finetuning.minutes:g}]",
)
@click.option(
    "--recover",
    type=click.Choice(RECOVERIES),
    default=DEFAULTS.finetuning.recover,
    metavar="METHOD",
    help="auto, distil, mimic, blocks or none.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    metavar="RATE",
    help="Peak rate.  [default: tried]",
)
@click.option("--batch-size", type=click.IntRange(2), metavar="N", help="Images per batch.  [default: auto]")
@click.option("--training", type=click.Path(path_type=Path), metavar="FILE", help="YAML: optimizer, schedule, averaged weights.")
@click.option(
    "--importance",
    type=click.Choice(IMPORTANCES),
    default=DEFAULTS.importance,
    metavar="METHOD",
    help=f"{', '.join(IMPORTANCES[:-1])} or {IMPORTANCES[-1]}.",
)
@restriction_options
@click.option(
    "--depth",
    type=click.Choice(DEPTHS),
    default=DEFAULTS.depth,
    help=f"Drop whole blocks too.  [default: {DEFAULTS.depth}]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=DEFAULTS.seed,
    metavar="N",
    help=f"Random seed.  [default: {DEFAULTS.seed}]",
)
@click.option("--device", default=DEFAULTS.device, metavar="DEVICE", help="Runs networks: auto, cpu, cuda or cuda:N.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run directory, also to resume.  [default: runs/]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file of `compress calibrate`.",
)
@WORKERS
@ALLOW_SSH_COMMANDS
@click.option("--dry-run", is_flag=True, help="Simulate all measurements.")
@click.option("--quiet", is_flag=True, help="Print only the final table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr.")
@click.version_option(package_name="edge-compress", prog_name="compress")
@click.pass_context
@handle_errors("; all finished trials are saved: run the same command again to continue")
def compress(context: click.Context, /, **flags: Any) -> None:
    """Compress a trained vision network to a measured budget, and prove it."""
    if context.invoked_subcommand is not None:
        return
    if flags["target"] is None:
        raise click.UsageError("Missing option '--target'. Try --target raspberrypi, or --target local for this machine.")
    if flags["task"] is not None:
        _refuse_beside_task(context)
    sys.exit(_run(flags, make_console(stderr=flags["as_json"])))


compress.add_command(measure)
compress.add_command(doctor)
compress.add_command(inspect)
compress.add_command(report)
compress.add_command(calibrate)
compress.add_command(sign)
compress.add_command(keys)
compress.add_command(ship)
compress.add_command(status)
compress.add_command(rollback)


def main() -> None:
    """Entry point of the `compress` command."""
    sys.exit(watch_limited(lambda: run_command(compress)))


def _run(flags: Mapping[str, Any], console: Console) -> int:
    """Run the job, and return the exit code."""
    refuse_missing_files(flags["model"], flags["data"])
    budget = dict(_budget(text) for text in flags["budgets"])
    if flags["searcher"] not in SEARCHERS:
        raise click.UsageError(
            f"--searcher: unknown searcher '{flags['searcher']}'; choose one of {', '.join(sorted(SEARCHERS))}"
        )
    training = read_training_options(flags["training"])
    job = Job(
        target=flags["target"],
        model=flags["model"],
        weights=flags["weights"],
        data=flags["data"] or ("none" if flags["unlabelled"] else DEFAULTS.data),
        unlabelled=flags["unlabelled"],
        task=flags["task"],
        budget=budget,
        searcher=flags["searcher"],
        reward=flags["reward"],
        trials=flags["trials"],
        seed=flags["seed"],
        device=flags["device"],
        out=flags["out"],
        dry_run=flags["dry_run"],
        allow_ssh_commands=flags["allow_ssh_commands"],
        calibration=flags["calibration"],
        importance=flags["importance"],
        freeze=flags["freeze"],
        only=flags["only"],
        min_width=flags["min_width"],
        depth=flags["depth"],
        supernet_steps=flags["supernet_steps"],
        finetuning=FinetuneSettings(
            epochs=flags["epochs"],
            learning_rate=flags["learning_rate"],
            batch_size=flags["batch_size"],
            recover=flags["recover"],
            minutes=flags["finetune_minutes"],
            **training.settings(),
        ),
        command=("compress", *map(escape_text, sys.argv[1:])),
        model_args=flags["model_args"],
        shape=flags["shape"],
        workers=flags["workers"],
        loader_workers=training.loader_workers,
    )
    # --help and a wrong flag must not wait for these imports
    from pipeline.cli.screen import Screen  # noqa: PLC0415
    from pipeline.core.progress import InterruptibleCallback, NullCallback  # noqa: PLC0415

    # output of a user's own file must not get into the JSON
    aside = contextlib.redirect_stdout(sys.stderr) if flags["as_json"] else contextlib.nullcontext()
    with contextlib.nullcontext(NullCallback()) if flags["quiet"] else Screen(console) as screen:
        callback = InterruptibleCallback(screen)
        callback.progress(0, 0, "importing PyTorch")
        from pipeline.cli.screen_result import print_results, results_json  # noqa: PLC0415  (torch takes seconds)
        from pipeline.compress import compress_budgets  # noqa: PLC0415
        from pipeline.system.malloc import keep_freed_memory  # noqa: PLC0415

        keep_freed_memory()
        handle_interrupts(callback)
        with aside:
            finished = compress_budgets(job, callback)
    print_results(console, finished)
    if flags["as_json"]:
        click.echo(json.dumps(results_json(finished)))
    return 0 if all(each.artifact.verdict == "within" for each in finished) else BUDGET_MISSED


def _refuse_beside_task(context: click.Context) -> None:
    """Refuse options that a task of the user's own replaces."""
    for option in context.command.params:
        if option.name in REPLACED_BY_TASK and context.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
            raise click.UsageError(
                f"{option.opts[0]} is not used with --task, which has its own data and training; leave one out."
            )


def _budget(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not value:
        raise BudgetError(f"--budget {shlex.quote(text)}: expected KEY=VALUE, for example --budget latency_p50=50%")
    return key.strip(), value.strip()
