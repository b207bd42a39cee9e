"""The walk, end to end on real data: a small network, the handwritten digits, a simulated probe."""

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.small_net import SMALL_NET

from pipeline.compress import compress
from pipeline.core.artifact import Artifact, read_artifact
from pipeline.core.budget import Limit, Metric
from pipeline.core.candidate import Candidate
from pipeline.core.profile import load_profile
from pipeline.core.progress import NullCallback
from pipeline.core.run import read_trials
from pipeline.core.statistics import Estimate
from pipeline.errors import ModelError, RunError, UnreachableBudget
from pipeline.packaging.pack import load_compressed
from pipeline.search.knapsack import KnapsackSettings, knapsack
from pipeline.search.problem import Evaluation, Problem
from pipeline.stages.job import Job
from pipeline.training.load import find_model, load_data
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import OwnTask

pytestmark = pytest.mark.starts_first


def job(out: Path, **changes: object) -> Job:
    settings = {
        "target": "raspberrypi",
        "model": SMALL_NET,
        "dry_run": True,
        "trials": 6,
        "supernet_steps": 4,
        "finetuning": FinetuneSettings(epochs=0),
        "out": out,
    }
    return Job(**{**settings, **changes})  # type: ignore[arg-type]


def digits(count: int) -> torch.Tensor:
    """Training images."""
    return next(load_data("digits", find_model(SMALL_NET).preprocessing, 0).train.sample(count, 0).batches(count))[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    out = tmp_path_factory.mktemp("walk") / "run"
    return out, compress(job(out, finetuning=FinetuneSettings(epochs=2, learning_rate=0.05))).artifact


def test_the_run_directory_holds_graph_journal_and_artifact(finished: tuple[Path, Artifact]) -> None:
    out, _ = finished

    assert sorted(path.name for path in out.iterdir()) == [
        "artifact",
        "dense.onnx",
        "finetune.safetensors",
        "journal.jsonl",
        "rehearsal.json",
        "supernet.safetensors",
    ]
    assert sorted(path.name for path in (out / "artifact").iterdir()) == [
        "artifact.json",
        "golden-inputs.npy",
        "golden-outputs.npy",
        "infer.py",
        "model.onnx",
        "plan.json",
        "report.html",
        "serving.json",
        "weights.safetensors",
    ]


def test_the_journal_holds_dense_uniform_thinnest_every_trial_and_the_finalists(finished: tuple[Path, Artifact]) -> None:
    out, _ = finished
    roles = [trial.role for trial in read_trials(out)]

    assert roles[:8] == ["dense", *["uniform"] * 6, "thinnest"]
    assert roles.count("search") == 6
    assert roles[-1] == "finalist"


def test_where_accuracy_is_rewarded_no_entropy_is_computed(finished: tuple[Path, Artifact]) -> None:
    assert all(trial.candidate.entropy is None for trial in read_trials(finished[0]))


def test_the_shipped_file_is_one_valid_file_with_the_asked_opset_and_ir(finished: tuple[Path, Artifact]) -> None:
    model = onnx.load(finished[0] / "artifact" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)

    assert model.ir_version == 9
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_the_file_tells_where_it_comes_from_under_one_prefix(finished: tuple[Path, Artifact]) -> None:
    model = onnx.load(finished[0] / "artifact" / "model.onnx", load_external_data=False)
    facts = {entry.key: entry.value for entry in model.metadata_props}

    assert {key.removeprefix("edge_compress.") for key in facts} == {
        "constants", "exporter", "job", "model", "target", "version.edge-compress", "version.onnx", "version.torch", "weights"
    }  # fmt: skip
    assert facts["edge_compress.weights"] == finished[1].files["weights.safetensors"].sha256
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_small_torch_network_is_rebuilt_from_the_artifact_and_answers_like_the_onnx_file(
    finished: tuple[Path, Artifact],
) -> None:
    folder = finished[0] / "artifact"
    source = find_model(SMALL_NET)
    network = load_compressed(source.factory(), folder)
    images, _ = next(load_data("digits", source.preprocessing, 0).validation.batches(64))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(None, {"input": image[None].numpy()})[0] for image in images])

    with torch.no_grad():
        np.testing.assert_allclose(network(images).numpy(), answers, rtol=1e-3, atol=1e-4)


def test_the_widths_in_the_file_are_the_plans(finished: tuple[Path, Artifact]) -> None:
    folder, artifact = finished[0] / "artifact", finished[1]
    plan = json.loads((folder / "plan.json").read_text())["groups"]
    network = load_compressed(find_model(SMALL_NET).factory(), folder)

    for name, (kept, before, bundle) in artifact.widths.items():
        assert network.get_submodule(name).weight.shape[0] == kept * bundle == len(plan[name]["channels"]) * bundle
        assert kept <= before


def test_the_chosen_plan_is_the_best_of_those_within_the_budget(finished: tuple[Path, Artifact]) -> None:
    out, artifact = finished

    def within(*roles: str) -> list[Candidate]:
        trials = [trial.candidate for trial in read_trials(out) if trial.role in roles]
        return [c for c in trials if c.measurement and c.measurement.relative_p50 and c.measurement.relative_p50.high <= 0.5]

    def reward_of(candidate: Candidate) -> tuple[float, float]:
        """Of equal scores, the faster."""
        measured = candidate.measurement.relative_p50 if candidate.measurement else None
        return candidate.score or 0.0, -measured.high if measured else 0.0

    assert artifact.shipped.plan == max(within("thinnest", "search"), key=reward_of).plan


def test_a_plan_that_does_not_hold_when_measured_again_gives_way_to_one_with_more_room(tmp_path: Path) -> None:
    """A figure that is sure of itself in the search, and known to a tenth only when a plan is measured with care."""
    searching = 2

    def size(candidate: Candidate, dense: Candidate) -> Estimate | None:
        measured = candidate.measurement
        share = candidate.params / dense.params
        careful = measured is not None and len(measured.processes) > searching
        return Estimate(share, 0.9 * share, 1.1 * share) if careful else Estimate.exact(share)

    metric = Metric("doubtful", "doubtful", "count", absolute=size, relative=None)
    out = tmp_path / "run"
    task = OwnTask(digits(64), lambda module: sum(each.numel() for each in module.parameters()) / 1e6, lambda module: module)
    artifact = compress(
        job(
            out,
            task=task,
            limits=(Limit(metric, 0.52, relative=False),),
            budget={"latency_p50": "100%"},
            trials=8,
            searcher="uniform",
        )
    ).artifact
    trials = [trial for trial in read_trials(out) if trial.role == "finalist"]
    shares = [trial.candidate.params / artifact.dense.params for trial in trials]

    assert len(shares) > 1
    assert 1.1 * shares[0] > 0.52
    assert 1.1 * max(shares[1:]) <= 0.52
    assert artifact.shipped.plan == trials[-1].candidate.plan


@pytest.mark.parametrize(("params", "needed"), [("60%", False), ("0.4%", True)])
def test_a_supernet_is_trained_where_the_cut_knows_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: str, needed: bool
) -> None:
    for name, steps in (("MOST_STEPS", 8), ("FEWEST_STEPS", 4)):  # a few will do to see it happen
        monkeypatch.setattr(f"pipeline.stages.supernet.{name}", steps)
    budget = {"params": params, "latency_p50": "100%"}

    def interrupted(problem: Problem) -> None:
        """What comes behind the supernet makes no difference."""
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(job(tmp_path / "run", model="digits", supernet_steps=None, budget=budget, searcher=interrupted))

    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    (decided,) = (line["facts"]["supernet_steps"] for line in lines if line["kind"] == "weights")

    assert (decided > 0) == needed
    assert (tmp_path / "run" / "supernet.safetensors").is_file() == needed


def test_every_figure_says_that_nothing_was_measured(finished: tuple[Path, Artifact]) -> None:
    _, artifact = finished

    assert artifact.shipped.measurement is not None
    assert artifact.shipped.measurement.fingerprint.stamp == "simulated"


def test_the_evidence_is_complete(finished: tuple[Path, Artifact]) -> None:
    artifact = finished[1]

    assert {"torch", "onnx", "onnxruntime", "edge-compress", "python"} <= set(artifact.versions)
    assert (
        {"load", "analyse", "rehearse", "prepare", "measure", "supernet", "search", "confirm", "fine-tune", "export", "ship"}
        >= set(artifact.phase_seconds)
        > set()
    )
    assert {row.key for row in artifact.rows} >= {"latency_p50", "accuracy_drop", "file_size", "params", "macs", "peak_memory"}
    assert any("256 real inputs" in proof for proof in artifact.proofs)
    assert [forecast.made for forecast in artifact.forecasts] == ["loaded", "measured"]
    assert artifact.job["seed"] == 0
    assert artifact.learning_rate == 0.05


def test_the_report_stands_alone(finished: tuple[Path, Artifact]) -> None:
    """No script, no request to anywhere, and the figures of artifact.json in it."""
    out, artifact = finished
    page = (out / "artifact" / "report.html").read_text()

    assert "<script" not in page
    assert 'src="' not in page
    assert page.count("<svg") == 3
    assert f"{artifact.shipped.score:.2f} %" in page
    assert artifact.shipped.drop
    assert f"Of {artifact.shipped.drop.images} test images, only the dense network is right on" in page
    assert next(row for row in artifact.rows if row.key == "accuracy_drop").interval_text in page
    assert "after fine-tuning (peak rate 0.05)" in page
    for name in artifact.widths:
        assert name in page


def test_a_changed_artifact_is_noticed(tmp_path: Path, finished: tuple[Path, Artifact]) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    for path in (finished[0] / "artifact").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.onnx").write_bytes(b"something else")

    with pytest.raises(RunError, match=r"model\.onnx: missing, or changed"):
        read_artifact(folder)


def test_where_int8_was_not_asked_for_it_was_not_tried(finished: tuple[Path, Artifact]) -> None:
    assert (finished[1].precision, finished[1].precisions) == ("fp32", ())


class Told(NullCallback):
    """Keeps the lines that a user sees."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_budget_below_the_thinnest_ends_before_the_search_and_lists_the_layers_that_keep_their_width(tmp_path: Path) -> None:
    """they are also on the screen before the search"""
    layers = ["not prunable: 9: its channels are the network's output", "not prunable: 0: --freeze '0' matches 0"]
    told = Told()
    with pytest.raises(UnreachableBudget, match=r"at minimum width this network needs .* but the budget is 1\.0 %") as refused:
        compress(job(tmp_path / "run", budget={"latency_p50": "1%"}, freeze=("0",)), told)

    assert {trial.role for trial in read_trials(tmp_path / "run")} == {"dense", "uniform"}
    assert sorted(line for line in told.lines if "not prunable" in line) == sorted(layers)
    assert all(f"; {line}" in str(refused.value) for line in layers)


def test_a_function_of_ones_own_is_a_budget_like_any_other(tmp_path: Path) -> None:
    """At most two thirds of the parameters, said as a Python function."""
    energy = Metric.of("energy", lambda candidate: 2.0 * candidate.params)
    artifact = compress(job(tmp_path / "run", limits=(Limit(energy, 0.6, relative=True),))).artifact
    row = next(row for row in artifact.rows if row.key == "energy")

    assert row.verdict == "within"
    assert row.after == 2.0 * artifact.shipped.params
    assert artifact.shipped.params <= 0.6 * artifact.dense.params


def test_a_task_of_ones_own_replaces_the_classification(tmp_path: Path) -> None:
    """Score: minus the squared distance from the dense network's answers; training: none."""
    images = digits(300)
    calls: list[str] = []

    def evaluate(module: torch.nn.Module) -> float:
        calls.append("evaluate")
        with torch.no_grad():
            return -float(module(images[:32]).square().mean())

    def train(module: torch.nn.Module) -> torch.nn.Module:
        calls.append("train")
        return module

    artifact = compress(job(tmp_path / "run", task=OwnTask(images, evaluate, train), budget={"accuracy_drop": 1000.0})).artifact

    assert calls.count("train") == 1
    assert artifact.shipped.drop is None
    assert any("the accuracy drop has no interval" in notice for notice in artifact.notices)
    assert artifact.data == "the user's own task"
    assert artifact.learning_rate is None


def test_a_network_that_computes_no_number_is_the_worst_plan_and_not_the_end(tmp_path: Path) -> None:
    """Scores are negative, as losses are; that of the third plan is NaN."""
    images = digits(300)
    found: list[Evaluation] = []
    threads: list[int] = []

    def evaluate(module: torch.nn.Module) -> float:
        return float("nan") if len(found) == 2 else -1e6 / max(sum(each.numel() for each in module.parameters()), 1)

    def search(problem: Problem) -> None:
        threads.append(torch.get_num_threads())
        for share in (0.25, 0.5, 0.625, 0.375):
            found.append(problem.evaluate(problem.space.uniform(share)))  # noqa: PERF401 - they are counted meanwhile

    torch.set_num_threads(2)
    try:
        compress(job(tmp_path / "run", searcher=search, task=OwnTask(images, evaluate, lambda module: module)))
        threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(1)

    thin, half, unlucky, _ = (each.score for each in found)
    assert unlucky <= thin < half < 0
    assert [trial.candidate.score is None for trial in read_trials(tmp_path / "run") if trial.role == "search"] == [
        False, False, True, False,
    ]  # fmt: skip
    assert threads == [1, 2]  # a searcher thinks with one, so that it can be resumed anywhere


def test_a_whole_network_without_a_score_ends_at_once(tmp_path: Path) -> None:
    images = digits(64)
    with pytest.raises(ModelError, match="the dense network's score is not a finite number"):
        compress(job(tmp_path / "run", task=OwnTask(images, lambda module: float("inf"), lambda module: module)))


def test_a_searcher_with_settings_bound_to_it_is_another_job() -> None:
    searchers = [functools.partial(knapsack, settings=KnapsackSettings(rounds=rounds)) for rounds in (3, 4)]
    jobs = [Job("raspberrypi", searcher=searcher) for searcher in searchers]
    identities = [each.identity(load_profile("raspberrypi"), {}) for each in jobs]
    folders = [each.folder(identity).name for each, identity in zip(jobs, identities, strict=True)]

    assert identities[0] != identities[1]
    assert folders[0] != folders[1]
    assert folders[0].startswith("raspberrypi-digits-knapsack-")
