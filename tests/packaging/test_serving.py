"""What goes to a device beside the model: the measured settings, and the budget in the device's own figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.artifacts import INPUTS, answers
from helpers.graphs import conv_net, profile
from helpers.providers import IDLE, needs_idle, needs_openvino

from pipeline.core.budget import Constraint, known_metrics
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Fingerprint, Measurement, Memory, Mode, TimedProcess
from pipeline.core.profile import Runtime
from pipeline.core.providers import CPU, OPENVINO, provider_settings
from pipeline.core.statistics import p90_estimate
from pipeline.deploy import agent as device
from pipeline.packaging import infer
from pipeline.packaging.serving import GOLDEN_BYTES, device_limits, serving_files
from pipeline.probe import worker

RUNTIMES = [
    Runtime(threads=1),
    Runtime(threads=1, spinning=False, arena=False, memory_pattern=False, prepacking=False, denormal_as_zero=True),
    Runtime(threads=1, graph_optimization="basic", blocked_layout=False),
    pytest.param(Runtime(threads=1, execution_provider=OPENVINO), marks=needs_openvino),
]
CONFIG = (
    "session.intra_op.allow_spinning",
    "session.disable_prepacking",
    "session.set_denormal_as_zero",
)
STRICT = "session.disable_cpu_ep_fallback"


@pytest.mark.parametrize("runtime", RUNTIMES, ids=["usual", "all off", "basic", "OpenVINO"])
def test_what_serves_is_set_up_as_what_was_measured(tmp_path: Path, runtime: Runtime) -> None:
    """infer.py and the probe's worker, given the same profile, hand the same options to ONNX Runtime"""
    told = profile(runtime=runtime)
    model = conv_net()
    for name, data in {"model.onnx": model, **serving_files(told, {"x": INPUTS}, {"y": answers(model)}, {})}.items():
        (tmp_path / name).write_bytes(data)
    settings = {
        **{key: getattr(runtime, key) for key in ("spinning", "arena", "memory_pattern", "prepacking", "blocked_layout")},
        "denormal_as_zero": runtime.denormal_as_zero,
        "graph_optimization": runtime.graph_optimization,
        "provider": runtime.execution_provider,
        "threads": told.threads,
        **provider_settings(runtime.execution_provider, told.threads, allow_fallback=False),
    }
    measured = worker.open_session(str(tmp_path / "model.onnx"), settings)
    serving = infer.load(tmp_path)

    config = (*CONFIG, *([STRICT] if runtime.execution_provider == OPENVINO else []))

    def facts(session: object) -> dict[str, object]:
        options = session.get_session_options()  # type: ignore[attr-defined]
        names = [name for name in dir(options) if not name.startswith("_") and not callable(getattr(options, name))]
        ours = {name: getattr(options, name) for name in names if name not in ("log_severity_level", "logid")}
        return {**ours, **{key: options.get_session_config_entry(key) for key in config}}

    assert facts(serving) == facts(measured)
    assert serving.get_providers() == measured.get_providers()
    off = json.loads((tmp_path / "serving.json").read_text())["session"]["disabled_optimizers"]
    assert off == ([] if runtime.blocked_layout else ["NchwcTransformer"])


@pytest.mark.parametrize(("provider", "allowed"), [(OPENVINO, False), (OPENVINO, True), (CPU, False)])
def test_what_serves_falls_back_to_the_cpu_provider_only_if_the_profile_allows_it(provider: str, allowed: bool) -> None:
    told = profile(runtime=Runtime(threads=1, execution_provider=provider, allow_fallback=allowed))  # type: ignore[arg-type]
    session = json.loads(serving_files(told, {"x": INPUTS}, {"y": INPUTS}, {})["serving.json"])["session"]

    assert session["config"].get(STRICT) == (None if allowed or provider == CPU else "1")
    assert session.get("plugin") == (None if provider == CPU else "onnxruntime_ep_openvino")


@pytest.mark.parametrize("settings", [{}, {STRICT: "1"}], ids=["a provider that is not there", "a provider that runs no node"])
@pytest.mark.filterwarnings("ignore:Specified provider")
@needs_idle
def test_what_serves_does_not_load_with_another_provider_than_it_was_measured_with(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    model = conv_net()
    for name, data in {"model.onnx": model, **serving_files(profile(), {"x": INPUTS}, {"y": answers(model)}, {})}.items():
        (tmp_path / name).write_bytes(data)
    serving = json.loads((tmp_path / "serving.json").read_text())
    serving["session"]["provider"] = IDLE if settings else "XnnpackExecutionProvider"
    serving["session"]["config"].update(settings)
    (tmp_path / "serving.json").write_text(json.dumps(serving))

    with pytest.raises(Exception, match=r"does not use Xnnpack|fallback to CPU EP has been explicitly disabled"):
        infer.load(tmp_path)


def test_large_golden_inputs_are_few() -> None:
    inputs = np.zeros((8, 3, 512, 512), np.float32)
    files = serving_files(profile(), {"x": inputs}, {"y": np.zeros((8, 5), np.float32)}, {})

    assert len(files["golden-inputs.npy"]) == 3 * 512 * 512 * 4 + 128
    assert inputs[:1].nbytes > GOLDEN_BYTES


def test_golden_inputs_hold_no_pickle() -> None:
    files = serving_files(profile(), {"x": INPUTS}, {"y": answers(conv_net())}, {})

    assert b"|O" not in files["golden-inputs.npy"][:128] + files["golden-outputs.npy"][:128]


@pytest.mark.parametrize("runs", [63, 64, 80, 81, 197, 500, 1000])
def test_the_p90_of_the_health_check_is_the_probe_s(runs: int) -> None:
    latencies = np.random.default_rng(runs).exponential(5.0, runs).tolist()
    expected = p90_estimate((((*latencies,),),))

    assert device.p90_ms(latencies) == (expected and expected.value)


def candidate(mode: Mode, p90_ms: float, reference_ms: float) -> Candidate:
    fingerprint = Fingerprint(mode, "board", "cpu", "x86_64", "1.31", 1, 1, ())
    blocks = tuple((p90_ms,) * 8 for _ in range(16)), tuple((reference_ms,) * 8 for _ in range(16))
    timed = TimedProcess(*blocks, session_creation_ms=1, first_run_ms=1, cpu_ms_per_run=1, preemptions=0, timed_ms=1)
    measurement = Measurement(fingerprint, "s", (timed,), Memory(1000, 2000, 4000))
    return Candidate(
        plan=None,  # type: ignore[arg-type]
        params=1,
        macs=1,
        file_size_bytes=1,
        structure="s",
        measurement=measurement,
        score=None,
    )


def constraint(key: str, limit: float, *, relative: bool) -> Constraint:
    return Constraint(known_metrics()[key], limit, relative)


def test_a_share_becomes_a_figure_where_the_device_measured_the_dense_network() -> None:
    dense, shipped = candidate("device", 9.0, 9.0), candidate("device", 4.0, 10.0)
    asked = (constraint("latency_p90", 0.5, relative=True), constraint("peak_memory", 0.5, relative=True))

    assert device_limits(asked, dense, shipped) == {"latency_p90_ms": 5.0, "peak_memory_bytes": 2000.0}


def test_a_share_is_left_out_where_another_machine_stood_in() -> None:
    dense = shipped = candidate("host-emulated", 4.0, 10.0)
    asked = (constraint("latency_p90", 0.5, relative=True), constraint("latency_p50", 40.0, relative=False))

    assert device_limits(asked, dense, shipped) == {"latency_p50_ms": 40.0}


def test_what_the_health_check_cannot_see_is_left_out() -> None:
    shipped = candidate("device", 4.0, 10.0)
    asked = (constraint("params", 0.5, relative=True), constraint("model_memory", 1e6, relative=False))

    assert device_limits(asked, replace(shipped), shipped) == {}
