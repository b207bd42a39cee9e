"""A whole run for several budgets: stopped between two of them and resumed, with an artifact for each and one page."""

from pathlib import Path

import pytest

from pipeline.compress import compress, compress_budgets
from pipeline.core.progress import NullCallback
from pipeline.core.run import read_trials
from pipeline.errors import BudgetError
from pipeline.stages.job import Job
from pipeline.training.settings import FinetuneSettings

LIMITS = ("latency_p50-60", "latency_p50-40")


class StopsBeforeTheSecondBudget(NullCallback):
    """Raises KeyboardInterrupt when the second budget begins."""

    confirmed = 0

    def phase(self, name: str, detail: str) -> None:
        self.confirmed += name == "confirm"
        if self.confirmed == 2:
            raise KeyboardInterrupt


class Listening(NullCallback):
    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, name: str, detail: str) -> None:
        self.phases.append(name)


def job(out: Path) -> Job:
    """The demo network with simulated measurements, 6 trials for two budgets, and no training."""
    settings = FinetuneSettings(epochs=0)
    budget = {"latency_p50": "60%,40%", "accuracy_drop": "100"}
    return Job(
        "raspberrypi", budget=budget, searcher="uniform", trials=6, dry_run=True, supernet_steps=0, finetuning=settings, out=out
    )


def test_one_artifact_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="latency_p50 has 2 limits, which give several artifacts; use compress_budgets"):
        compress(job(tmp_path / "run"))

    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_was_stopped_between_two_budgets_finishes_the_second_and_keeps_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        compress_budgets(job(folder), StopsBeforeTheSecondBudget())
    first = (folder / f"artifact-{LIMITS[0]}" / "artifact.json").read_bytes()
    searched = [trial for trial in read_trials(folder) if trial.role == "search"]
    resumed = Listening()
    finished = compress_budgets(job(folder), resumed)

    assert [each.folder.name for each in finished] == [f"artifact-{name}" for name in LIMITS]
    assert [each.artifact.verdict for each in finished] == ["within", "within"]
    assert (folder / f"artifact-{LIMITS[0]}" / "artifact.json").read_bytes() == first
    assert [trial for trial in read_trials(folder) if trial.role == "search"] == searched
    assert resumed.phases.count("fine-tune") == 1
    assert len(searched) <= 6
    used = [each.artifact.shipped.measurement.relative_p50.value for each in finished]  # type: ignore[union-attr]
    assert used[1] <= 0.4 < used[0] <= 0.6
    assert "2 budgets of one run" in (folder / "report.html").read_text()
    assert [each.artifact for each in compress_budgets(job(folder))] == [each.artifact for each in finished]
