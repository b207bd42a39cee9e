"""Report: the page of one recorded run, or of several side by side."""

from collections.abc import Sequence

from pipeline.packaging.report.comparison_page import comparison_page
from pipeline.packaging.report.page import report_page
from pipeline.packaging.report.recorded_run import RecordedRun
from pipeline.packaging.report.unfinished import unfinished_page

__all__ = ["page_of_runs"]


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
