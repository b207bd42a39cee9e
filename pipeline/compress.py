"""The walk: load, export once, analyse, prove the slice, measure dense and thinnest, train the supernet, search,
fine-tune, ship."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from pipeline.artifact import Artifact
from pipeline.blame import network_errors
from pipeline.budget import read_budget, sample_size_notices
from pipeline.case import Case
from pipeline.cores import compute_threads
from pipeline.devices import aligned_space, final_probe, search_probe
from pipeline.evaluate import Evaluator
from pipeline.finished import finished_artifact
from pipeline.graph.structure import load_graph
from pipeline.inherit import Inheritance
from pipeline.job import Job
from pipeline.origins import bind_origins
from pipeline.prepare import draft_subject, load_subject
from pipeline.profile import load_profile
from pipeline.quantise import quantise
from pipeline.rehearse import rehearse
from pipeline.report.page import report_page
from pipeline.run import open_run
from pipeline.search.problem import Problem, TrialsSpent
from pipeline.ship.ship import Provenance, final_file, ship, with_int8
from pipeline.software import UNSAFE_BELOW, installed_versions, refuse_unsafe
from pipeline.watch import Silent, Watcher

__all__ = ["Finished", "compress"]


@dataclass(frozen=True)
class Finished:
    """A run's end: the artifact, and where it lies."""

    artifact: Artifact
    folder: Path


def compress(job: Job, watcher: Watcher | None = None) -> Finished:
    """Compress the job's network until it meets the budget; the artifact lies in the run directory.

    Whatever was done before in the run directory is not done again. The artifact's `verdict` says whether the budget
    is met. Raises the errors of `pipeline.errors`; every one of them leaves a run that can be resumed.
    """
    watcher = watcher or Silent()
    refuse_unsafe(installed_versions(tuple(UNSAFE_BELOW)))
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    constraints = read_budget(profile, job.budget, job.limits)
    identity = job.identity(profile, {constraint.metric.key: constraint.show(constraint.limit) for constraint in constraints})

    with open_run(job.folder(identity), identity) as run:
        for notice in run.notices:
            watcher.notice(notice)
        data = None if job.task else job.data
        if run.facts("sources") is not None:
            bind_origins(run, job.model, job.weights, data)
        finished = finished_artifact(run, watcher.notice)
        if finished and run.is_intact(run.dense_graph):
            return Finished(finished, run.artifact)

        watcher.phase("load", f"{job.model}, {job.data}")
        with run.phase("load"):
            subject = load_subject(job, profile)
            task = subject.task
            bind_origins(run, job.model, job.weights, data)
            run.bind("inputs", subject.facts)
            said = (
                *subject.notices,
                *sample_size_notices(
                    constraints,
                    images=task.test_images,
                    tests_each_image=task.tests_each_image,
                    dense_accuracy=subject.validation_score,
                ),
            )
            for notice in said:
                watcher.notice(notice)

        watcher.phase("analyse", "export once, find the groups, prove the slice")
        with run.phase("analyse"), run.derived(run.dense_graph, load_graph, watcher.notice):
            drafts = draft_subject(job, profile, subject, run.dense_graph, watcher.notice)
            (watcher.say if drafts.sliceable else watcher.notice)(drafts.proof)
        if finished:
            return Finished(finished, run.artifact)

        watcher.phase("rehearse", "the whole way with a narrowed network")
        with run.phase("rehearse"):
            case = Case(run, drafts, task, profile, constraints, watcher)
            provenance = Provenance(job.command, identity, identity["model"], subject.notices)
            drafts, rehearsed = rehearse(case, provenance, job.seed)
            for notice in rehearsed:
                watcher.notice(notice)

        with network_errors("the run", only_own=True), search_probe(job, profile, drafts, watcher) as probe:
            run.bind("device", probe.fingerprint.facts)
            reward = job.search_reward()
            case = Case(run, drafts, task, profile, constraints, watcher)
            inherit = Inheritance(case)
            evaluator = Evaluator(case, inherit, probe, job.trials, reward)
            with run.derived(run.alignment, json.loads, watcher.notice):
                space, alignment = aligned_space(probe, drafts, profile, run, job.seed, watcher)
            watcher.phase("measure", f"dense and thinnest, {probe.fingerprint.stamp}")
            with run.phase("measure"):
                evaluator.measure_ends(space)

            watcher.phase("supernet", "one for all plans, if the cut knows too little")
            with run.phase("supernet"), run.derived(run.supernet, safetensors.torch.load, watcher.notice):
                inherit.settle(space, evaluator.widest_uniform, evaluator.dense.score or 0.0, job.supernet_steps, job.seed)
                evaluator.score_thinnest(space)

            watcher.phase("search", f"{identity['searcher']}, {job.trials} trials")
            with run.phase("search"), contextlib.suppress(TrialsSpent), compute_threads(1):
                problem = Problem(space, evaluator, job.trials, evaluator.constraint_count, job.seed, evaluator.ends)
                job.search_function()(problem)

            watcher.phase("confirm", "the best plans, measured afresh")
            with run.phase("confirm"):
                chosen = evaluator.confirm()

            watcher.phase("fine-tune", f"{job.finetuning.epochs} epochs")
            with run.phase("fine-tune"), run.derived(run.checkpoint, safetensors.torch.load, watcher.notice):
                tuned = task.finetune(inherit(chosen.plan), subject.module, job.seed, run.checkpoint, watcher.progress)
                for notice in tuned.notices:
                    watcher.notice(notice)

            with final_probe(job, profile, drafts, probe, evaluator, watcher) as (judge, dense):
                notices = (*said, *rehearsed, *evaluator.notices, *inherit.notices, *tuned.notices)
                provenance = Provenance(job.command, identity, identity["model"], notices)
                watcher.phase("export", "and prove")
                with run.phase("export"):
                    final = final_file(case, tuned.module, chosen, provenance)

                if "int8" in profile.precision:
                    watcher.phase("quantise", "int8, if it is faster and accurate enough")
                    with run.phase("quantise"):
                        tried = quantise(case, final.draft, judge, dense)
                        final, provenance = with_int8(final, provenance, tried)

                def page(artifact: Artifact) -> bytes:
                    return report_page(artifact, *evaluator.searched(), constraints, alignment)

                watcher.phase("ship", "measure, test, pack")
                with run.phase("ship"):
                    artifact = ship(case, tuned, chosen, final, judge, dense, provenance, page)
                return Finished(artifact, run.artifact)
