"""Report: the page of one recorded run, or of several side by side."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.packaging.report.comparison_page import comparison_page
from pipeline.packaging.report.page import report_page
from pipeline.packaging.report.recorded_run import RecordedRun
from pipeline.packaging.report.unfinished import unfinished_page
from pipeline.system.foreign_file import open_foreign

__all__ = ["is_report", "page_of_runs"]

MARK = b'<meta name="generator" content="compress">'
HEAD_BYTES = 1000
"""The mark is in the first bytes of a page."""


def page_of_runs(runs: Sequence[RecordedRun]) -> bytes:
    """The page of `runs`, in UTF-8. One finished run has the page that its artifact has; of an unfinished one, what is known so
    far is shown; several runs are compared.
    """
    if len(runs) > 1:
        return comparison_page(runs)
    (run,) = runs
    if run.artifact is None:
        return unfinished_page(run)
    return report_page(run.artifact, run.trials("search"), run.evaluations, run.constraints, run.alignment, run.remarks)


def is_report(path: Path) -> bool:
    """Whether the file `path` is a page that this program wrote, which may be replaced. Raises OSError if it cannot be read."""
    with open_foreign(path, 2**31) as file:
        return MARK in file.read(HEAD_BYTES)
