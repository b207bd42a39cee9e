"""int8 is tried and shipped, or not; and the file in onnxruntime's own format. With a small network, or with one made to be difficult."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime
import pytest
import torch
import yaml
from helpers.analysed import exported
from helpers.nets import ZOO, build
from helpers.small_net import SMALL_NET

from pipeline.compress import compress
from pipeline.core.artifact import Artifact, read_artifact
from pipeline.core.budget import Constraint, known_metrics
from pipeline.core.candidate import Candidate
from pipeline.core.latency_predictor import LatencyPredictor, Point
from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import Profile, load_profile
from pipeline.core.progress import Notices, NullCallback
from pipeline.core.run import open_run, read_trials
from pipeline.errors import ShipError
from pipeline.graph.export import stripped
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.packaging.ort import CONFIG, MODEL, ort_files
from pipeline.probe.calibrated import CalibratedProbe
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.job import Job
from pipeline.stages.prepare import start_local
from pipeline.stages.probe_adapter import graph_of, reference_of
from pipeline.stages.sequential_measurement import candidate_of
from pipeline.stages.try_int8 import Quantised, quantise
from pipeline.system.bundled import shipped_folder
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import OwnTask

pytestmark = pytest.mark.starts_first


def profile_file(folder: Path, **runtime: object) -> Path:
    """The Raspberry Pi's profile, with int8."""
    text = yaml.safe_load((shipped_folder("hw_profiles") / "raspberrypi.yaml").read_text())
    path = folder / "board.yaml"
    path.write_text(yaml.safe_dump({**text, "precision": ["fp32", "int8"], "runtime": {**text["runtime"], **runtime}}))
    return path


def job(folder: Path, accuracy_drop: float) -> Job:
    return Job(
        target=str(profile_file(folder, ort_format=True)),
        model=SMALL_NET,
        dry_run=True,
        trials=3,
        supernet_steps=4,
        searcher="uniform",
        finetuning=FinetuneSettings(epochs=1, learning_rate=0.05),
        budget={"latency_p50": "80%", "accuracy_drop": accuracy_drop},
        out=folder / "run",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A dry run, in whose cost model int8 takes half the time, with a budget that any accuracy is good enough for."""
    folder = tmp_path_factory.mktemp("int8")
    return folder / "run", compress(job(folder, 100.0)).artifact


def test_int8_ships_where_it_is_faster_and_accurate_enough(finished: tuple[Path, Artifact]) -> None:
    out, artifact = finished
    model = onnx.load(out / "artifact" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)

    assert artifact.precision == "int8"
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 18)}
    assert {entry.key.partition(".")[0] for entry in model.metadata_props} == {"edge_compress"}


def test_dense_and_pruned_in_float32_and_int8_stand_side_by_side(finished: tuple[Path, Artifact]) -> None:
    out, artifact = finished
    sizes = {(row.network, row.precision): row.file_size_bytes for row in artifact.precisions}
    page = (out / "artifact" / "report.html").read_text()

    assert list(sizes) == [("dense", "fp32"), ("pruned", "fp32"), ("dense", "int8"), ("pruned", "int8")]
    assert sizes["dense", "fp32"] > 3 * sizes["dense", "int8"]
    assert sizes["pruned", "int8"] == artifact.files["model.onnx"].size_bytes
    for row in artifact.precisions:
        assert row.score is not None
        assert all(text in page for text in row.texts)


def test_what_is_claimed_of_an_int8_file_is_not_that_it_answers_equally(finished: tuple[Path, Artifact]) -> None:
    proofs = finished[1].proofs

    assert any("the same decision on all of them" in proof for proof in proofs), "of the float32 file that it was made of"
    assert any(
        "outputs may differ, and its decision is the same on 2" in proof and "of 256 real inputs" in proof for proof in proofs
    )
    assert any("calibrated with 128 training inputs (SHA-256 " in proof for proof in proofs)


def test_a_device_is_allowed_the_rounding_of_other_int8_kernels(finished: tuple[Path, Artifact]) -> None:
    assert json.loads((finished[0] / "artifact" / "serving.json").read_text())["tolerance"] == 0.05


def test_every_scheme_of_both_networks_is_in_the_journal(finished: tuple[Path, Artifact]) -> None:
    roles = [trial.role for trial in read_trials(finished[0])]

    assert (roles.count("int8"), roles.count("int8-dense")) == (6, 6)


def test_a_run_that_lost_its_artifact_makes_the_same_one_without_judging_again(finished: tuple[Path, Artifact]) -> None:
    out, _ = finished
    before = (out / "artifact" / "model.onnx").read_bytes()
    (out / "artifact").rename(out.parent / "lost")
    trials = len(read_trials(out))
    compress(job(out.parent, 100.0))

    assert len(read_trials(out)) == trials
    assert (out / "artifact" / "model.onnx").read_bytes() == before


def test_the_own_format_lies_beside_and_answers_the_same(finished: tuple[Path, Artifact]) -> None:
    folder = finished[0] / "artifact"
    example = torch.randn(1, 1, 8, 8).numpy()
    first, second = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]).run(None, {"input": example})[0]
        for name in ("model.onnx", MODEL)
    )

    assert abs(first - second).max() <= 0.05 * abs(first).max()
    assert {MODEL, CONFIG} <= set(read_artifact(folder).files)


def test_the_operators_for_a_reduced_build_are_listed_without_the_place_where_they_were_found(
    finished: tuple[Path, Artifact],
) -> None:
    config = (finished[0] / "artifact" / CONFIG).read_text()

    assert "com.microsoft;1;" in config
    assert "QLinearConv" in config
    assert "/" not in config


@pytest.mark.parametrize("architecture", ["x86_64", pytest.param("aarch64", marks=pytest.mark.slow)])
def test_no_layout_of_this_machine_is_baked_in(tmp_path: Path, architecture: str) -> None:
    """ONNX Runtime would give convolutions of 16 channels to its blocked layout, com.microsoft.nchwc"""
    path = profile_file(tmp_path, blocked_layout=True)
    path.write_text(path.read_text().replace("aarch64", architecture))
    images = torch.randn(4, 3, 8, 8)
    data = stripped(exported(ZOO["chain"]), 9).SerializeToString()
    files, shown = ort_files(data, "fp32", load_profile(str(path)), images)

    assert b"nchwc" not in files[CONFIG]
    assert shown.startswith("model.ort against model.onnx on 4 real inputs: largest difference ")


def test_a_file_that_cannot_be_converted_is_told_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ShipError, match=r"cannot be converted to .* own format: it exited with 1; set runtime.ort_format: false"):
        ort_files(b"no ONNX file", "fp32", load_profile(str(profile_file(tmp_path))), torch.randn(1, 3, 8, 8))


# ------------------------------------------------------------------------- a network with a layer that int8 destroys

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@cache
def difficult_builder() -> PrunedModelBuilder:
    module = build(ZOO["chain"])
    with torch.no_grad():
        module.a[1].weight[0], module.a[1].bias[0] = 0.0, -1.0
        module.b[0].weight[:, 0] = 1000.0
    with TemporaryDirectory() as folder:
        return start_builder(module, IMAGES[:1], FileFormat(18, 9), PruningSettings(), Path(folder) / "dense.onnx")


class Difficult:
    """x -> conv(8) -> conv(12) -> mean -> linear(5). Channel 0 of the first convolution is always 0, and the second one multiplies it
    by 1000: next to that its other weights are rounded to 0. The score: on how many images the dense network decides the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.builder = difficult_builder()
        with torch.no_grad():
            self.right = self.builder.module(IMAGES).argmax(1)
        self.fp32: PrunedModel = self.builder.make(self.builder.space.dense())
        self.task = OwnTask(IMAGES, self.evaluate, lambda module: module)
        self.profile: Profile = load_profile(str(profile_file(folder)))

    def evaluate(self, module: torch.nn.Module) -> float:
        with torch.no_grad():
            return 100 * float((module(IMAGES).argmax(1) == self.right).float().mean())

    def quantised(self, probe: Probe, accuracy_drop: float) -> Quantised:
        measured = probe.measure(graph_of(self.fp32), MeasurementOptions(2))
        assert isinstance(measured, Measurement)
        dense: Candidate = candidate_of(self.fp32, measured, 100.0)
        limits = (
            Constraint(known_metrics()["latency_p50"], 2.0, relative=True),
            Constraint(known_metrics()["accuracy_drop"], accuracy_drop, relative=False),
        )
        with open_run(self.folder / "run", {"a": 1}) as run:
            return quantise(
                RunContext(
                    run,
                    self.builder,
                    self.task,
                    self.profile,
                    limits,
                    NullCallback(),
                    Notices(NullCallback()),
                    Provenance((), {}, "net"),
                ),
                self.fp32,
                probe,
                dense,
            )


@pytest.fixture
def difficult(tmp_path: Path) -> Difficult:
    return Difficult(tmp_path)


def test_the_layer_that_int8_destroys_is_left_in_float32(difficult: Difficult) -> None:
    found = difficult.quantised(SimulatedProbe(difficult.profile, reference_of(difficult.builder)), accuracy_drop=15.0)
    asked = [trial.candidate for trial in read_trials(difficult.folder / "run") if trial.role == "int8"]

    assert all((candidate.score or 0) < 85 for candidate in asked[:6]), "no scheme alone is accurate enough"
    assert found.pruned is not None
    assert found.rows[3].scheme.endswith(", 1 layer left in fp32")
    assert (found.rows[3].score or 0) >= 85


def test_int8_that_stays_too_inaccurate_is_not_shipped_and_the_table_shows_it(difficult: Difficult) -> None:
    found = difficult.quantised(SimulatedProbe(difficult.profile, reference_of(difficult.builder)), accuracy_drop=-1.0)

    assert found.pruned is None
    assert "is not shipped: its validation score is " in found.said[0]
    assert "below the 101.00 that the budget requires" in found.said[0]
    assert len(found.rows) == 4


def test_on_a_real_clock_int8_ships_only_if_the_whole_interval_says_faster(difficult: Difficult) -> None:
    """any accuracy will do; which of the two it is, this machine decides"""
    profile = difficult.profile
    quick = {"warmup_runs": 1, "runs": 16, "block_runs": 4, "processes": 1, "final_processes": 1, "retries": 0}
    difficult.profile = profile.model_copy(update={"probe": profile.probe.model_copy(update=quick)})
    one_core = difficult.profile.runtime.model_copy(update={"threads": 1})
    probe = start_local(difficult.profile.model_copy(update={"runtime": one_core}), difficult.builder, lambda text: None)
    try:
        found = difficult.quantised(probe, accuracy_drop=100.0)
    finally:
        probe.close()
    asked = [trial.candidate for trial in read_trials(difficult.folder / "run") if trial.role == "int8"]

    assert all(candidate.measurement is not None for candidate in asked)
    assert all(row.latency_p50 is not None for row in found.rows)
    said = json.dumps(found.said)
    assert ("it is not faster" in said or "would be" in said) if found.pruned is None else "median latency" in said


def test_a_prediction_from_float32_files_says_nothing_about_int8(difficult: Difficult) -> None:
    reference = reference_of(difficult.builder)
    simulated = SimulatedProbe(difficult.profile, reference)
    points = tuple(Point(share, share) for share in (0.2, 0.4, 0.6, 0.8))
    known = LatencyPredictor(simulated.fingerprint.facts, {}, reference.graph.structure, 1.0, 2.0, points)
    found = difficult.quantised(CalibratedProbe(simulated, reference, known), accuracy_drop=100.0)

    assert (found.pruned, found.rows) == (None, ())
    assert found.said == ("int8 was not tried: latencies are predicted from those of float32 files",)
