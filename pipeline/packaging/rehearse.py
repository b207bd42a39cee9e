"""Rehearsal: run all steps once with a pruned network before the search, so that failures are found early.

A batch is scored, a step is trained, and the changed weights are exported, simplified, compared, reported and packed by the
same functions that end a run. Nothing is measured, no test data are read, and the written files are removed.
"""

import importlib.metadata
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.core.artifact import Artifact
from pipeline.core.plan import ChannelPlan
from pipeline.core.progress import no_progress
from pipeline.core.run import Trial, open_run
from pipeline.errors import NetworkError, ShipError, TraceError, one_line
from pipeline.graph.move_weights import move_weights
from pipeline.graph.prunable_network import Origin
from pipeline.packaging.build import final_file, ship
from pipeline.packaging.report.page import report_page
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe
from pipeline.search.problem import Evaluation
from pipeline.stages.context import RunContext
from pipeline.stages.probe_adapter import graph_of, reference_of
from pipeline.stages.probes import FinalProbe
from pipeline.stages.sequential_measurement import candidate_of
from pipeline.system.files import sha256_bytes, sha256_file, temporary_beside, write_atomically
from pipeline.system.user_files import own_line
from pipeline.training.execution_mode import ExecutionMode, execution_mode_of, set_execution_mode
from pipeline.training.finetune import Finetuned
from pipeline.training.folded_norms import find_folds, set_folds
from pipeline.training.user_errors import network_errors

__all__ = ["rehearse"]

OPTIONS = MeasurementOptions(2)
REASON = "its own code failed in the rehearsal"


@dataclass(frozen=True)
class _Outcome:
    """The result of a rehearsal, as it is saved for a resumed run."""

    key: str
    origin: Origin
    channels_last: bool
    whole_training: bool
    notices: tuple[str, ...]
    reason: str = REASON
    """Why the network is rebuilt, if it was rebuilt in the rehearsal."""


_OUTCOME = TypeAdapter(_Outcome)


def rehearse(context: RunContext, seed: int) -> RunContext:
    """Run all steps with half of all channels, and return the context to continue with.

    `context.builder.module` and its copies keep the mode that works: if the fastest fails, other layouts and training modes are
    tried. If the user's own network fails in each of them, one that is rebuilt from the graph takes its place. The outcome is
    saved in the run directory, and read from there if nothing has changed.

    Raises NetworkError if the network's own code fails, ShipError if no file could be shipped, StorageError.
    """
    kept = context.run.folder / "rehearsal.json"
    key = _key(context)
    outcome = _read(kept, key)
    if outcome is None:
        with _untouched_generators():
            outcome = _rehearsed(context, seed, key)
        write_atomically(kept, _OUTCOME.dump_json(outcome))
    if outcome.origin != context.builder.network.origin:
        context = _with_rebuilt(context, outcome.reason)
    set_execution_mode(context.builder.module, ExecutionMode(outcome.channels_last, outcome.whole_training))
    with network_errors("a batch of two inputs"), _untouched_generators():
        set_folds(context.builder.module, find_folds(context.builder.module, context.task.inputs(2)))
    context.notices.add(*outcome.notices)
    return context


def _rehearsed(context: RunContext, seed: int, key: str) -> _Outcome:
    notices: list[str] = []
    reason = REASON
    space = context.builder.space
    halves = {group.name: max(1, group.channels // 2) for group in space.groups}
    plan = space.plan(halves, [block.name for block in space.blocks[::2]])
    context = replace(context, task=context.task.rehearsal())
    scratch = temporary_beside(context.run.folder / "rehearsal")
    try:
        try:
            mode = _whole_way(context, plan, seed, scratch)
        except (NetworkError, ShipError) as problem:
            if context.builder.network.origin == "rebuilt":
                raise
            try:
                reason = _reason(problem)
                context = _with_rebuilt(context, reason)
                mode = _whole_way(context, plan, seed, scratch)
            except (NetworkError, ShipError, TraceError):
                raise problem from None
            notices.append(f"{problem}; the network is therefore rebuilt from its exported graph, with the same weights")
        if not mode.whole_training:
            notices.append(
                "in training mode the network has other outputs than one tensor of scores, or fails when pruned: it is "
                "trained in evaluation mode, without auxiliary outputs, and only BatchNorm and dropout are in training mode"
            )
        context.callback.progress(2, 2, "rehearsal: done")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _Outcome(key, context.builder.network.origin, mode.channels_last, mode.whole_training, tuple(notices), reason)


def _reason(problem: Exception) -> str:
    cause = problem.__cause__ or problem
    line = own_line(cause)
    return f"{REASON}: {one_line(cause, 120)}{f' ({line})' if line else ''}"


def _whole_way(context: RunContext, plan: ChannelPlan, seed: int, scratch: Path) -> ExecutionMode:
    """Score, train, ship. Returns the execution mode that works. Raises NetworkError, ShipError, StorageError."""
    context.callback.progress(0, 2, "rehearsal: scoring and training a pruned network")
    mode, tuned = _trained(context, plan, seed)
    context.callback.progress(1, 2, "rehearsal: exporting, checking and packing the trained network")
    shutil.rmtree(scratch, ignore_errors=True)
    _ship(context, plan, tuned, scratch)
    return mode


def _trained(context: RunContext, plan: ChannelPlan, seed: int) -> tuple[ExecutionMode, Finetuned]:
    """The first execution mode in which a pruned network can be scored and trained, and that network.

    Raises NetworkError, with the first failure, if there is none.
    """
    found = execution_mode_of(context.builder.module)
    failure: NetworkError | None = None
    for channels_last in (True, False) if found.channels_last else (False,):
        for whole_training in (True, False):
            mode = ExecutionMode(channels_last, whole_training)
            student, teacher = context.builder.make(plan).module, context.builder.make(context.builder.space.dense()).module
            for module in (student, teacher):
                set_execution_mode(module, mode)
            checkpoint = temporary_beside(context.run.folder / "rehearsal.safetensors")
            try:
                with network_errors("scoring a batch of images"):
                    context.task.score(student)
                with network_errors("a step of training"):
                    tuned = context.task.finetune(student, teacher, seed, checkpoint, no_progress)
                move_weights(tuned.module)
                return mode, tuned
            except NetworkError as problem:
                failure = failure or problem
            finally:
                checkpoint.unlink(missing_ok=True)
    raise failure or NetworkError("no execution mode was tried")


def _ship(context: RunContext, plan: ChannelPlan, tuned: Finetuned, scratch: Path) -> None:
    """All steps from fine-tuning to a packed artifact, in the folder `scratch`, with simulated figures.

    Raises ShipError, StorageError.
    """
    builder = context.builder
    probe = SimulatedProbe(context.profile, reference_of(builder))
    small, whole = builder.make(plan), builder.make(builder.space.dense())
    chosen, dense = (candidate_of(pruned, probe.measure(graph_of(pruned), OPTIONS), 0.0) for pruned in (small, whole))

    def page(artifact: Artifact) -> bytes:
        trial = Trial("search", 1, chosen, 0.0)
        return report_page(artifact, [trial], [Evaluation(plan, 0.0, ())], context.constraints)

    with open_run(scratch, {"rehearsal": True}) as run:
        context = replace(context, run=run)
        with network_errors("the comparison with its ONNX file"):
            final = final_file(context, tuned.module, chosen)
        ship(context, tuned, chosen, final, FinalProbe(probe, dense), page)
    shutil.rmtree(scratch)


def _with_rebuilt(context: RunContext, reason: str) -> RunContext:
    return replace(context, builder=context.builder.rebuilt(reason))


def _key(context: RunContext) -> str:
    """Hash of everything that the outcome depends on."""
    facts = {
        "graph": sha256_file(context.run.dense_graph),
        "job": context.provenance.job,
        "versions": [importlib.metadata.version(name) for name in ("edge-compress", "torch", "onnxscript", "onnxsim")],
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True, default=str).encode())


def _read(path: Path, key: str) -> _Outcome | None:
    """The saved outcome of the same rehearsal; None if there is none that can be read."""
    with suppress(OSError, ValidationError):
        outcome = _OUTCOME.validate_json(path.read_bytes())
        return outcome if outcome.key == key else None
    return None


@contextmanager
def _untouched_generators() -> Iterator[None]:
    """Restore the random generators afterwards, so that the search and the training do not depend on the rehearsal."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
