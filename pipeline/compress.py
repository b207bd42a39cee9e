"""The whole run: load, export, find channel groups, check slicing, choose how grouped layers are pruned, rehearse, measure the
dense and the thinnest plan, train the supernet, search, and then for each budget: fine-tune, package."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.alignment import Alignment
from pipeline.core.artifact import Artifact
from pipeline.core.budget import Budget, all_constraints, budget_facts, read_budgets
from pipeline.core.compute_device import computing_on, find_device
from pipeline.core.profile import load_profile
from pipeline.core.progress import Callback, Notices, NullCallback
from pipeline.core.run import Run, open_run
from pipeline.data.loader import loading
from pipeline.errors import BudgetError
from pipeline.graph.structure import load_graph
from pipeline.packaging.build import final_file, ship, with_int8
from pipeline.packaging.rehearse import rehearse
from pipeline.packaging.report.budgets import write_budgets_page
from pipeline.packaging.report.page import report_page
from pipeline.probe.interface import Probe
from pipeline.search.problem import TrialsSpent
from pipeline.search.several_budgets import several_budgets
from pipeline.stages.block_losses import with_block_losses
from pipeline.stages.choose_grouped import choose_grouped, known_grouped
from pipeline.stages.context import Provenance, RunContext, open_stage
from pipeline.stages.dense_and_thinnest import measure_dense_and_thinnest, score_thinnest, widest_uniform
from pipeline.stages.evaluate import Evaluator, places_of
from pipeline.stages.finetune_chosen import finetune_chosen
from pipeline.stages.finished import finished_artifact
from pipeline.stages.forecast import (
    costs_so_far,
    estimate_after_loading,
    estimate_before_search,
    forecast_outcome,
    say_forecast,
    sizes_of,
)
from pipeline.stages.initial_weights import cut_from_dense, cut_from_supernet
from pipeline.stages.input_hashes import bind_input_hashes
from pipeline.stages.job import Job
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.stages.not_prunable import not_prunable
from pipeline.stages.parallel_trials import run_search
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.probes import aligned_space, final_probe, search_probe
from pipeline.stages.reevaluate import reevaluate
from pipeline.stages.reward import start_reward_function
from pipeline.stages.sensitivity import images_to_compare, sensitivity_path
from pipeline.stages.shared_device import SharedDevice, share_device
from pipeline.stages.try_int8 import quantise
from pipeline.system.versions import UNSAFE_BELOW, installed_versions, refuse_unsafe
from pipeline.training.threads import compute_threads
from pipeline.training.user_errors import network_errors

__all__ = ["Finished", "compress", "compress_budgets"]


@dataclass(frozen=True)
class Finished:
    """A run's end: the artifact, and where it lies."""

    artifact: Artifact
    folder: Path
    budget: str = ""
    """The limit in which this budget differs from the others of the run, in words. Empty if it is the only one."""


def compress(job: Job, callback: Callback | None = None) -> Finished:
    """Compress the job's network until it meets the budget. The artifact lies in the run directory.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pipeline import Job, compress
    >>> from pipeline.training.settings import FinetuneSettings
    >>> out = Path(tempfile.mkdtemp()) / "run"
    >>> job = Job(target="raspberrypi", dry_run=True, trials=1, supernet_steps=0, finetuning=FinetuneSettings(epochs=0), out=out)
    >>> finished = compress(job)
    >>> (finished.folder / "model.onnx").is_file()
    True

    What was done before in the run directory is not done again. The artifact's `verdict` says whether the budget is met. Raises
    the errors of `pipeline.errors`; every one of them leaves a run that can be resumed. Raises BudgetError if a key of the budget
    has several limits: see `compress_budgets`.
    """
    budgets = read_budgets(load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands), job.budget, job.limits)
    if len(budgets) > 1:
        raise BudgetError(
            f"budget: {budgets[0].key} has {len(budgets)} limits, which give several artifacts; use compress_budgets"
        )
    return compress_budgets(job, callback)[0]


def compress_budgets(job: Job, callback: Callback | None = None) -> tuple[Finished, ...]:
    """Compress the job's network for each limit of a budget such as latency_p50=50%,35%,25%. All of them share one search.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pipeline import Job, compress_budgets
    >>> from pipeline.training.settings import FinetuneSettings
    >>> out, none, budget = Path(tempfile.mkdtemp()) / "run", FinetuneSettings(epochs=0), {"latency_p50": "50%,25%"}
    >>> job = Job(target="raspberrypi", dry_run=True, trials=2, supernet_steps=0, budget=budget, finetuning=none, out=out)
    >>> [finished.folder.name for finished in compress_budgets(job)]
    ['artifact-latency_p50-50', 'artifact-latency_p50-25']

    The artifacts lie in the run directory, each in a folder of its own, and report.html compares them. They are returned in the
    order of their limits, the largest first. See also `compress`.
    """
    callback = callback or NullCallback()
    refuse_unsafe(installed_versions(tuple(UNSAFE_BELOW)))
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    budgets = read_budgets(profile, job.budget, job.limits)
    constraints = all_constraints(budgets)
    computes_on = find_device(job.device)
    identity = job.identity(profile, budget_facts(budgets))
    identity |= {"computes_on": str(computes_on)} if computes_on.type != "cpu" else {}  # other devices round differently

    with (
        open_run(job.folder(identity), identity) as run,
        computing_on(computes_on),
        loading(job.loader_workers, callback.notice),
        share_device(profile, callback.notice) as device,
    ):
        notices, stage = Notices(callback), functools.partial(open_stage, run, callback)
        for text in run.notices:
            callback.notice(text)
        if run.facts("sources") is not None:
            bind_input_hashes(run, job.model, job.weights, job.data_source, job.unlabelled)
        finished = _finished(run, budgets, callback)
        if len(finished) == len(budgets) and run.is_intact(run.dense_graph):
            return _ended(run, finished, callback)

        with stage("load", f"{job.model}, {job.data_words}"):
            loaded = load_model_and_task(job, profile, callback.progress)
            bind_input_hashes(run, job.model, job.weights, job.data_source, job.unlabelled)
            run.bind("inputs", loaded.facts)
            notices.add(*loaded.notices, *loaded.test_set_notices(constraints))
            sizes, image_s = sizes_of(job, loaded.task, profile, len(budgets)), loaded.image_s or 0.0
            say_forecast(run, callback, estimate_after_loading(sizes, profile, image_s), own_training=job.task is not None)

        with (
            stage("analyse", "export the network, find channel groups, check slicing"),
            run.derived(run.dense_graph, load_graph, callback.notice),
        ):
            builder = start_building(job, loaded, run.dense_graph, device, callback.progress, known_grouped(run))
            for text in (builder.proof, *not_prunable(builder.space)):
                callback.say(text)
        if len(finished) == len(budgets):
            return _ended(run, finished, callback)

        provenance = Provenance(job.command, identity, identity["model"])
        context = RunContext(run, builder, loaded.task, profile, constraints, callback, notices, provenance)
        context = choose_grouped(job, loaded, context, device)
        with stage("rehearse", "run every later step once with a pruned network"):
            context = rehearse(context, job.seed)

        with network_errors("the run", only_own=True), contextlib.ExitStack() as opened:
            with stage("prepare", "start the probe, prepare the initial weights"):
                probe = opened.enter_context(search_probe(job, context, device))
                run.bind("device", probe.fingerprint.facts)
                measurer = PlanMeasurer(context, probe, start_reward_function(job.search_reward(), context.builder, context.task))
                weights = cut_from_dense(context)
            space, alignment = aligned_space(context, probe, job.seed)
            space = with_block_losses(weights, space)
            with stage("measure", f"measure the dense and the thinnest plan, {probe.fingerprint.stamp}"):
                ends = measure_dense_and_thinnest(measurer, space, weights)

            with stage("supernet", "train one set of weights for all plans, if it helps"):
                widest = functools.partial(widest_uniform, measurer, space, ends.dense)
                weights = cut_from_supernet(weights, space, widest, ends.dense.score or 0.0, job.supernet_steps, job.seed)
                ends = score_thinnest(measurer, ends, weights)
                costs = costs_so_far(run, image_s, images_to_compare(context, space) if job.starts_on_path else 0)
                say_forecast(run, callback, estimate_before_search(sizes, costs), own_training=job.task is not None)

            evaluator = Evaluator(measurer, ends, weights, job.trials, budgets)
            path = sensitivity_path(context, space, weights) if job.starts_on_path else None
            search = several_budgets(job.search_function(), places_of(budgets, context.searched_constraints))
            together = f" for {len(budgets)} budgets" if len(budgets) > 1 else ""
            trials = f"{job.trials} trial{'' if job.trials == 1 else 's'}"
            searching = stage("search", f"{identity['searcher']}, {trials}{together}")
            with searching, contextlib.suppress(TrialsSpent), compute_threads(1):
                run_search(search, evaluator, evaluator.problem(space, job.seed, path), job.workers)

            for place, budget in enumerate(budgets):
                if budget not in finished:
                    own = evaluator.for_budget(context.for_budget(budget, place))
                    artifact = _after_search(job, own, budget, device, probe, alignment)
                    finished[budget] = Finished(artifact, own.measurer.context.run.artifact, budget.text)
            callback.say(forecast_outcome(run))
            return _ended(run, {budget: finished[budget] for budget in budgets}, callback)


def _after_search(
    job: Job, evaluator: Evaluator, budget: Budget, device: SharedDevice, probe: Probe, alignment: Alignment | None
) -> Artifact:
    """Choose a plan for one budget, fine-tune it, and package it."""
    context, weights, dense = evaluator.measurer.context, evaluator.weights, evaluator.ends.dense
    aim = f" for {budget.text}" if budget.text else ""
    stage = functools.partial(open_stage, context.run, context.callback)
    with stage("confirm", f"measure the best plans again{aim}"):
        chosen = reevaluate(evaluator)

    with stage("fine-tune", f"{context.task.training_plan}{aim}"):
        tuned = finetune_chosen(weights, chosen, job.seed)

    with final_probe(job, context, device, probe, dense) as judge:
        with stage("export", "export the final network and compare it with torch"):
            final = final_file(context, tuned.module, chosen)

        if "int8" in context.profile.precision:
            with stage("quantise", "try int8, and use it if it is faster and accurate enough"):
                final = with_int8(context, final, quantise(context, final.pruned, judge.probe, judge.dense))

        def page(artifact: Artifact) -> bytes:
            return report_page(artifact, *evaluator.searched(), context.constraints, alignment)

        with stage("ship", "measure and test the final network, write the artifact"):
            return ship(context, tuned, chosen, final, judge, page)


def _finished(run: Run, budgets: tuple[Budget, ...], callback: Callback) -> dict[Budget, Finished]:
    """What an earlier process finished, by budget."""
    found = {}
    for place, budget in enumerate(budgets):
        part = run.for_budget(budget.name, place)
        artifact = finished_artifact(part, callback.notice)
        if artifact:
            found[budget] = Finished(artifact, part.artifact, budget.text)
    return found


def _ended(run: Run, finished: Mapping[Budget, Finished], callback: Callback) -> tuple[Finished, ...]:
    """The artifacts of all budgets. If there are several, a page compares them."""
    if len(finished) > 1:
        write_budgets_page(run.folder, callback.notice)
    return tuple(finished.values())
