"""The page of a run for several budgets, which compares their artifacts."""

from collections.abc import Callable
from pathlib import Path

from pipeline.errors import one_line
from pipeline.packaging.report.recorded_run import read_recorded_runs
from pipeline.packaging.report.report import is_report, page_of_runs
from pipeline.system.files import write_atomically

__all__ = ["budgets_page", "write_budgets_page"]


def budgets_page(folder: Path) -> Path:
    """The place of the page in the run directory `folder`."""
    return folder / "report.html"


def write_budgets_page(folder: Path, notify: Callable[[str], None]) -> None:
    """Write the page into the run directory `folder`. A failure does not cost the run its artifacts: `notify` gets the reason.

    A file of that name that this program did not write is kept.
    """
    path = budgets_page(folder)
    try:
        if path.exists() and not is_report(path):
            notify(
                f"{path}: is another file, so the page of all budgets is not written; compress report {folder} --out FILE does"
            )
            return
        write_atomically(path, page_of_runs(read_recorded_runs(folder)))
    except Exception as problem:
        notify(f"{path}: the page of all budgets could not be written ({type(problem).__name__}: {one_line(problem)})")
