"""Run context: what one run is about. It is made once and passed to every stage that needs most of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.budget import Budget, Constraint
from pipeline.core.profile import Profile
from pipeline.core.progress import Callback, Notices
from pipeline.core.run import Run
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.training.task import Task

__all__ = ["Provenance", "RunContext", "open_stage"]


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from."""

    command: tuple[str, ...]
    job: Mapping[str, Any]
    """Identity of the job; see `Job.identity`."""
    model: str


@dataclass(frozen=True)
class RunContext:
    """The network, its task, the profile and budget it must meet, and where results are written."""

    run: Run
    builder: PrunedModelBuilder
    """Builds the torch module and the ONNX file of any plan of the dense network."""
    task: Task
    profile: Profile
    constraints: tuple[Constraint, ...]
    """Those of all budgets, until the search is over."""
    callback: Callback
    notices: Notices
    """Everything that the user should know at the end. A notice is shown when it is added, and it is kept for the report."""
    provenance: Provenance

    @property
    def searched_constraints(self) -> tuple[Constraint, ...]:
        """The constraints that can be judged before fine-tuning. The search sees only these."""
        return tuple(constraint for constraint in self.constraints if not constraint.metric.after_finetuning)

    def for_budget(self, budget: Budget, place: int) -> "RunContext":
        """The context of what follows the search for `budget`, the number `place` from 0: its limits, notices and artifact."""
        job = {**self.provenance.job, "budget": budget.facts}
        return replace(
            self,
            run=self.run.for_budget(budget.name, place),
            constraints=budget.constraints,
            notices=self.notices.copy(),
            provenance=replace(self.provenance, job=job),
        )


@contextmanager
def open_stage(run: Run, callback: Callback, name: str, detail: str) -> Iterator[None]:
    """Announce a stage on the screen, and record in the journal how long the block took, even if it is interrupted."""
    callback.phase(name, detail)
    with run.phase(name):
        yield
