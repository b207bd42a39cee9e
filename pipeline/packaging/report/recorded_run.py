"""Recorded run: everything that a run directory says, also of a run that was stopped, or that another version made.

The directory may come from someone else. Files are read up to a limit, figures must be plausible, and nothing is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.core.alignment import Alignment
from pipeline.core.artifact import Artifact, changed_files, parse_artifact
from pipeline.core.budget import Budget, Constraint, known_metrics, limits_in, read_limit, violations
from pipeline.core.candidate import Candidate
from pipeline.core.journal import Journal, Role, Trial
from pipeline.core.plausible import implausible_candidate
from pipeline.core.run import read_run
from pipeline.errors import BudgetError, RunError
from pipeline.foreign_text import clean_path, clean_text
from pipeline.packaging.report.chart import drawable
from pipeline.search.problem import Evaluation
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["RecordedRun", "read_recorded_run", "read_recorded_runs"]

JOURNAL, ARTIFACT, ALIGNMENT = "journal.jsonl", "artifact.json", "alignment.json"
ARTIFACT_FOLDER = "artifact"
ALIGNMENT_LIMIT_BYTES = 2**20
MOST_BUDGETS = 50
"""Of a run for more budgets, the first are read."""
MOST_NAMED = 5
"""Of more changed files, these are named."""

_ALIGNMENT = TypeAdapter(Alignment)


@dataclass(frozen=True)
class RecordedRun:
    """A run as its files show it."""

    folder: Path
    """The run directory; or the artifact's folder, if it was given without its run."""
    journal: Journal | None
    """None if only an artifact was given."""
    artifact: Artifact | None
    """None if the run is unfinished."""
    alignment: Alignment | None = None
    remarks: tuple[str, ...] = ()
    """What is missing, damaged or changed."""
    budget: Budget | None = None
    """Which of several budgets of the run this is; None if the run has one."""

    @property
    def name(self) -> str:
        """The folder's name, to show, and the budget if there are several."""
        name = clean_path(self.folder.resolve().name or str(self.folder))
        return f"{name}, {self.budget.text}" if self.budget else name

    @property
    def job(self) -> Mapping[str, Any]:
        """What was asked for; see `Job.identity`. Empty if the run was stopped before it was written down."""
        if self.artifact:
            return self.artifact.job
        return {**self.facts("job"), **({"budget": self.budget.facts} if self.budget else {})}

    def facts(self, kind: str) -> Mapping[str, Any]:
        """What the run is bound to; see `pipeline.core.journal.FACTS`. Empty where it is not known."""
        return self.journal.facts.get(kind, {}) if self.journal else {}

    def trials(self, role: Role) -> list[Trial]:
        """The trials of one role, in order."""
        return [trial for trial in self.journal.trials if trial.role == role] if self.journal else []

    @property
    def dense(self) -> Candidate | None:
        """The dense network as it was measured before the search, with its validation score; of a lone artifact, with that of the
        test."""
        measured = self.trials("dense")
        return measured[0].candidate if measured else self.artifact.dense if self.artifact else None

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The limits of the budget, as far as they can be judged here. A limit on the user's own function cannot be."""
        if self.artifact:
            rows = [row for row in self.artifact.rows if row.limit is not None and drawable(row.limit)]
            return tuple(
                Constraint(known_metrics()[row.key], float(row.limit or 0.0), row.relative)
                for row in rows
                if row.key in known_metrics()
            )
        found = []
        for key, text in _items(self.job.get("budget")):
            try:
                found.append(read_limit(key, text))
            except BudgetError:
                continue
        return tuple(found)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Those of the search's trials, in order. Their score is the validation score, whatever the search was rewarded for."""
        return [self._evaluation(trial.candidate) for trial in self.trials("search")]

    def best(self) -> Trial | None:
        """The trial with the best score within the budget: of the search, or the thinnest plan."""
        known = [trial for trial in (*self.trials("search"), *self.trials("thinnest")) if trial.candidate.score is not None]
        within = [trial for trial in known if self._evaluation(trial.candidate).feasible]
        return max(within, key=lambda trial: trial.candidate.score or 0.0, default=None)

    def _evaluation(self, candidate: Candidate) -> Evaluation:
        searched = [constraint for constraint in self.constraints if not constraint.metric.after_finetuning]
        if self.dense is None:
            return Evaluation(candidate.plan, candidate.score or 0.0, (1.0,))
        with np.errstate(all="ignore"):
            found = violations(searched, candidate, self.dense)
        return Evaluation(candidate.plan, candidate.score or 0.0, tuple(violation.high for violation in found))


def read_recorded_runs(folder: Path) -> list[RecordedRun]:
    """Read the run directory `folder`, or an artifact's folder, as `read_recorded_run` does. A run for several budgets gives one
    recorded run for each of them; the folder of one of its artifacts gives that one.
    """
    if found := [run for run in _whole_run_of(folder) if run.budget and _folder_of(run.budget) == folder.resolve().name]:
        return found
    whole = read_recorded_run(folder)
    runs = []
    for budget in _several(whole.facts("job").get("budget"))[:MOST_BUDGETS]:
        remarks = list(whole.remarks)
        artifact = _artifact(whole.folder / _folder_of(budget), remarks, required=False)
        runs.append(replace(whole, artifact=artifact, remarks=tuple(remarks), budget=budget))
    return runs or [whole]


def _whole_run_of(folder: Path) -> list[RecordedRun]:
    """The run for several budgets, if `folder` is that of one of its artifacts; otherwise nothing."""
    try:
        place = folder.resolve()
        if place.name.startswith(f"{ARTIFACT_FOLDER}-") and (place.parent / JOURNAL).exists():
            return read_recorded_runs(place.parent)
    except (OSError, ValueError):
        pass  # `read_recorded_run` says why the folder cannot be read
    return []


def _several(facts: object) -> list[Budget]:
    """The budgets of a run for several; empty if it has one, or if they are damaged."""
    texts = dict(_items(facts))
    key = next((key for key, text in texts.items() if "," in text), None)
    if key is None:
        return []
    try:
        return [
            Budget(tuple(read_limit(each, part if each == key else text) for each, text in texts.items()), key)
            for part in limits_in(texts[key])
        ]
    except BudgetError:
        return []


def _folder_of(budget: Budget) -> str:
    return f"{ARTIFACT_FOLDER}-{budget.name}"


def read_recorded_run(folder: Path) -> RecordedRun:
    """Read the run directory `folder`, or an artifact's folder. Raises RunError if it is neither, or if its journal is of another
    version.

    A damaged artifact or line of the journal does not hide the rest: the run's remarks name it.
    """
    try:
        is_folder, journal, artifact = folder.is_dir(), (folder / JOURNAL).exists(), (folder / ARTIFACT).exists()
        if not journal and artifact and folder.resolve().name == "artifact" and (folder.resolve().parent / JOURNAL).exists():
            folder = folder.resolve().parent
            journal = True
    except (OSError, ValueError) as problem:  # the name is too long, or the folder cannot be searched
        raise RunError(f"{folder}: cannot be read ({getattr(problem, 'strerror', problem)}); give a run directory") from None
    if not is_folder:
        raise RunError(f"{folder}: no such folder; give a run directory, such as runs/NAME, or an artifact's folder")
    if not journal and not artifact:
        raise RunError(f"{folder}: no run: it has neither {JOURNAL} nor {ARTIFACT}; give a run directory, such as runs/NAME")
    remarks: list[str] = []
    found = read_run(folder, JSON_LIMIT_BYTES) if journal else None
    if found and found.damage:
        numbers = ", ".join(str(each.number) for each in found.damage[:MOST_NAMED])
        remarks.append(f"damaged lines of the journal were left out: {len(found.damage)} (the first: {numbers})")
    evidence = _artifact(folder / "artifact" if journal else folder, remarks, required=not journal)
    alignment = _alignment(folder / ALIGNMENT, remarks) if journal else None
    return RecordedRun(folder, found, evidence, alignment, tuple(remarks))


def _artifact(folder: Path, remarks: list[str], *, required: bool) -> Artifact | None:
    """The artifact in `folder`; None if there is none. One that is damaged adds to `remarks`, unless it is `required`."""
    if not (folder / ARTIFACT).exists():
        return None
    try:
        artifact = parse_artifact(folder)
        for candidate in (artifact.dense, artifact.shipped):
            if wrong := implausible_candidate(candidate) or _impossible(artifact):
                raise RunError(
                    f"{folder / ARTIFACT}: its figures are impossible ({wrong}); run the command that created it again"
                )
    except RunError as problem:
        if required:
            raise
        remarks.append(f"the artifact cannot be read: {problem}")
        return None
    changed = list(changed_files(folder, artifact))
    if changed:
        names = ", ".join(clean_text(name, 100) for name in changed[:MOST_NAMED])
        remarks.append(
            f"files of the artifact are missing or changed: {names}{' and others' if len(changed) > MOST_NAMED else ''}"
        )
    return artifact


def _impossible(artifact: Artifact) -> str | None:
    """Why other figures of `artifact` are impossible; None where they are not."""
    if artifact.shipped.measurement is None or artifact.dense.measurement is None:
        return "a network was not measured"
    scores = (*artifact.validation.values(), artifact.dense.score or 0.0, artifact.shipped.score or 0.0)
    if not all(map(drawable, scores)):
        return "a score is not a finite number"
    if any(not 0 <= kept <= before or not 0 < before * bundle < 2**40 for kept, before, bundle in artifact.widths.values()):
        return "a width is out of range"
    return None


def _alignment(path: Path, remarks: list[str]) -> Alignment | None:
    if not path.exists():
        return None
    try:
        found = _ALIGNMENT.validate_json(read_foreign(path, ALIGNMENT_LIMIT_BYTES))
        figures = [ms for sweep in found.sweeps for width, each in sweep.latency_ms.items() for ms in (width, *(each or (-1.0,)))]
        if all(drawable(ms) and ms > 0 for ms in figures):
            return found
    except (OSError, ValidationError):
        pass
    remarks.append(f"{path.name} cannot be read, so the measured widths are not shown")
    return None


def _items(budget: object) -> list[tuple[str, str]]:
    return [(str(key), str(text)) for key, text in budget.items()] if isinstance(budget, dict) else []
