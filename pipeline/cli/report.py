"""The command report: the page of one run again, or of several runs side by side."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.exit_codes import handle_errors
from pipeline.cli.terminal import make_console
from pipeline.errors import StorageError
from pipeline.system.files import write_atomically

__all__ = ["report"]

EXAMPLES = """\b
Examples:
  compress report runs/raspberrypi-digits-ppo-lagrangian-758b4c2e
  compress report runs/* --out comparison.html
"""


@click.command(epilog=EXAMPLES, short_help="Write the page of a run again, or of several runs side by side.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The page.  [default: report.html in the run directory; of several runs, comparison.html beside the first]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout, all else to stderr.")
@handle_errors()
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write the page of one run directory again, or of several runs side by side: accuracy against measured latency, widths, and
    what differs.

    A run for several budgets has one page for all of them. Of an unfinished run, what is known so far is shown. Runs that cannot
    be compared are shown with a remark.
    """
    from pipeline.packaging.report.recorded_run import read_recorded_runs  # noqa: PLC0415  (numpy and pydantic take half a second)
    from pipeline.packaging.report.report import page_of_runs  # noqa: PLC0415

    found = [each for run in runs for each in read_recorded_runs(run)]
    page = page_of_runs(found)
    path = out or _usual_path(found[0].folder, alone=len(runs) == 1)
    _refuse_artifact(path)
    write_atomically(path, page)
    if as_json:
        click.echo(json.dumps({"page": str(path), "runs": [_facts(run) for run in found]}))
    else:
        make_console().print(str(path), highlight=False, soft_wrap=True)


def _usual_path(folder: Path, *, alone: bool) -> Path:
    """The path without --out. A file that is there must be such a page, so that nothing else is overwritten."""
    from pipeline.packaging.report.report import is_report  # noqa: PLC0415  (see above)

    folder = folder.resolve()
    is_artifact = not (folder / "journal.jsonl").exists()
    path = (folder.parent if is_artifact or not alone else folder) / ("report.html" if alone else "comparison.html")
    try:
        ours = is_report(path)
    except FileNotFoundError:
        return path
    except OSError as problem:
        raise StorageError(f"{path}: cannot be replaced ({problem.strerror}); choose another --out") from None
    if not ours:
        raise StorageError(f"{path}: is another file, which would be overwritten; remove it, or choose another --out")
    return path


def _refuse_artifact(path: Path) -> None:
    """Raises StorageError if `path` is in an artifact's folder, whose files are listed and signed."""
    if (path.parent / "artifact.json").exists():
        raise StorageError(
            f"{path}: the files of an artifact are listed with their hashes and may be signed; choose another --out"
        )


def _facts(run: Any) -> dict[str, Any]:
    artifact = run.artifact
    return {
        "folder": str(run.folder),
        **({"budget": run.budget.text} if run.budget else {}),
        "verdict": artifact.verdict if artifact else None,
        "finished": artifact is not None,
        "trials": len(run.trials("search")),
        "remarks": list(run.remarks),
    }
