"""The walk: load, export once, analyse, prove the slice, measure dense and thinnest, train the supernet, search,
fine-tune, ship."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from pipeline.core.artifact import Artifact
from pipeline.core.budget import read_budget, sample_size_notices
from pipeline.core.profile import load_profile
from pipeline.core.progress import Callback, NullCallback
from pipeline.core.run import open_run
from pipeline.graph.structure import load_graph
from pipeline.packaging.build import Provenance, final_file, ship, with_int8
from pipeline.packaging.rehearse import rehearse
from pipeline.packaging.report.page import report_page
from pipeline.search.problem import Problem, TrialsSpent
from pipeline.stages.context import RunContext
from pipeline.stages.evaluate import Evaluator
from pipeline.stages.finished import finished_artifact
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.input_hashes import bind_origins
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.probes import aligned_space, final_probe, search_probe
from pipeline.stages.try_int8 import quantise
from pipeline.system.versions import UNSAFE_BELOW, installed_versions, refuse_unsafe
from pipeline.training.threads import compute_threads
from pipeline.training.user_errors import network_errors

__all__ = ["Finished", "compress"]


@dataclass(frozen=True)
class Finished:
    """A run's end: the artifact, and where it lies."""

    artifact: Artifact
    folder: Path


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
    the errors of `pipeline.errors`; every one of them leaves a run that can be resumed.
    """
    callback = callback or NullCallback()
    refuse_unsafe(installed_versions(tuple(UNSAFE_BELOW)))
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    constraints = read_budget(profile, job.budget, job.limits)
    identity = job.identity(profile, {constraint.metric.key: constraint.show(constraint.limit) for constraint in constraints})

    with open_run(job.folder(identity), identity) as run:
        for notice in run.notices:
            callback.notice(notice)
        data = None if job.task else job.data
        if run.facts("sources") is not None:
            bind_origins(run, job.model, job.weights, data)
        finished = finished_artifact(run, callback.notice)
        if finished and run.is_intact(run.dense_graph):
            return Finished(finished, run.artifact)

        callback.phase("load", f"{job.model}, {job.data}")
        with run.phase("load"):
            loaded = load_model_and_task(job, profile)
            task = loaded.task
            bind_origins(run, job.model, job.weights, data)
            run.bind("inputs", loaded.facts)
            said = (
                *loaded.notices,
                *sample_size_notices(
                    constraints,
                    images=task.test_images,
                    tests_each_image=task.tests_each_image,
                    dense_accuracy=loaded.validation_score,
                ),
            )
            for notice in said:
                callback.notice(notice)

        callback.phase("analyse", "export once, find the groups, prove the slice")
        with run.phase("analyse"), run.derived(run.dense_graph, load_graph, callback.notice):
            builder = start_building(job, profile, loaded, run.dense_graph, callback.notice)
            (callback.say if builder.sliceable else callback.notice)(builder.proof)
        if finished:
            return Finished(finished, run.artifact)

        callback.phase("rehearse", "the whole way with a narrowed network")
        with run.phase("rehearse"):
            context = RunContext(run, builder, task, profile, constraints, callback)
            provenance = Provenance(job.command, identity, identity["model"], loaded.notices)
            builder, rehearsed = rehearse(context, provenance, job.seed)
            for notice in rehearsed:
                callback.notice(notice)

        with network_errors("the run", only_own=True), search_probe(job, profile, builder, callback) as probe:
            run.bind("device", probe.fingerprint.facts)
            reward = job.search_reward()
            context = RunContext(run, builder, task, profile, constraints, callback)
            initial_weights = InitialWeights(context)
            evaluator = Evaluator(context, initial_weights, probe, job.trials, reward)
            with run.derived(run.alignment, json.loads, callback.notice):
                space, alignment = aligned_space(probe, builder, profile, run, job.seed, callback)
            callback.phase("measure", f"dense and thinnest, {probe.fingerprint.stamp}")
            with run.phase("measure"):
                evaluator.measure_ends(space)

            callback.phase("supernet", "one for all plans, if the cut knows too little")
            with run.phase("supernet"), run.derived(run.supernet, safetensors.torch.load, callback.notice):
                initial_weights.settle(
                    space, evaluator.widest_uniform, evaluator.dense.score or 0.0, job.supernet_steps, job.seed
                )
                evaluator.score_thinnest(space)

            callback.phase("search", f"{identity['searcher']}, {job.trials} trials")
            with run.phase("search"), contextlib.suppress(TrialsSpent), compute_threads(1):
                problem = Problem(space, evaluator, job.trials, evaluator.constraint_count, job.seed, evaluator.ends)
                job.search_function()(problem)

            callback.phase("confirm", "the best plans, measured afresh")
            with run.phase("confirm"):
                chosen = evaluator.confirm()

            callback.phase("fine-tune", f"{job.finetuning.epochs} epochs")
            with run.phase("fine-tune"), run.derived(run.checkpoint, safetensors.torch.load, callback.notice):
                tuned = task.finetune(initial_weights(chosen.plan), loaded.module, job.seed, run.checkpoint, callback.progress)
                for notice in tuned.notices:
                    callback.notice(notice)

            with final_probe(job, profile, builder, probe, evaluator, callback) as (judge, dense):
                notices = (*said, *rehearsed, *evaluator.notices, *initial_weights.notices, *tuned.notices)
                provenance = Provenance(job.command, identity, identity["model"], notices)
                callback.phase("export", "and prove")
                with run.phase("export"):
                    final = final_file(context, tuned.module, chosen, provenance)

                if "int8" in profile.precision:
                    callback.phase("quantise", "int8, if it is faster and accurate enough")
                    with run.phase("quantise"):
                        tried = quantise(context, final.pruned, judge, dense)
                        final, provenance = with_int8(final, provenance, tried)

                def page(artifact: Artifact) -> bytes:
                    return report_page(artifact, *evaluator.searched(), constraints, alignment)

                callback.phase("ship", "measure, test, pack")
                with run.phase("ship"):
                    artifact = ship(context, tuned, chosen, final, judge, dense, provenance, page)
                return Finished(artifact, run.artifact)
