"""Node times: how long each node runs, and which provider ran it, in runs of their own."""

import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.graphs import HEAD, TWO_INPUTS, conv_net, graph, profile, two_by_two, unknown_op
from helpers.providers import IDLE, needs_idle, needs_openvino
from helpers.sshd import Board, needs_sshd
from helpers.workers import WORKER, until

from pipeline.core.measurement import Failure
from pipeline.core.node_times import NodeTime, fallback
from pipeline.core.onnx_outputs import all_outputs
from pipeline.core.profile import Profile, Runtime
from pipeline.core.providers import CPU, OPENVINO, PLUGINS
from pipeline.errors import ProbeError
from pipeline.probe.interface import MeasurementOptions, Reference, Workload
from pipeline.probe.local import LocalProbe
from pipeline.probe.ssh import SshProbe


@pytest.fixture(scope="module")
def worker_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("worker_of_a_test", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def probe() -> Iterator[LocalProbe]:
    probe = LocalProbe(profile(), Reference(graph(two_by_two()), TWO_INPUTS))
    yield probe
    probe.close()


def event(name: str, start: int, dur: int, op: str = "Add") -> dict[str, Any]:
    """a node of onnxruntime's profiler, with times in us"""
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": dur, "args": {"op_name": op, "provider": "P"}}


def run(start: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": dur, "args": {}}


def test_each_node_has_the_time_of_its_fastest_run(worker_module: ModuleType) -> None:
    events = [run(0, 100), event("a", 1, 30), event("b", 40, 50), run(200, 80), event("a", 201, 20), event("b", 230, 55)]

    assert worker_module.node_times(events) == [["a", "Add", "P", 0.02], ["b", "Add", "P", 0.05]]


def test_a_node_that_runs_several_times_in_a_run_counts_each_time_and_a_loop_counts_without_its_nodes(
    worker_module: ModuleType,
) -> None:
    """a loop of 100 us runs `a` twice: 30 and 40 us"""
    events = [run(0, 110), event("a", 10, 30), event("a", 50, 40), event("loop", 5, 100, "Loop"), event("b", 105, 5)]

    assert worker_module.node_times(events) == [["loop", "Loop", "P", 0.03], ["a", "Add", "P", 0.07], ["b", "Add", "P", 0.005]]


def test_the_worker_and_its_client_know_the_same_plugins(worker_module: ModuleType) -> None:
    assert worker_module.PLUGINS == PLUGINS


def test_all_nodes_of_a_network_with_two_inputs_are_timed_and_the_next_measurement_works(probe: LocalProbe) -> None:
    found = probe.node_times(graph(two_by_two()), runs=2)
    assert not isinstance(found, Failure)
    assert {node.operator for node in found} >= {"Conv", "GlobalAveragePool", "Cast", "Mul"}
    assert {node.provider for node in found} == {CPU}
    assert all(node.ms >= 0 for node in found)

    assert isinstance(probe.node_times(graph(unknown_op()), (np.zeros((1, 3, 16, 16), np.float32),)), Failure)
    assert not isinstance(probe.measure(graph(two_by_two()), MeasurementOptions(1, memory=False)), Failure)


@needs_idle
def test_a_provider_that_leaves_nodes_to_another_one_is_refused_unless_that_is_allowed(probe: LocalProbe) -> None:
    """The session of each timed process is strict, so a pruned network cannot fall back silently either."""
    strict, tolerant = (probe.with_runtime(IDLE, 1, allow_fallback=allowed) for allowed in (False, True))
    options, load = MeasurementOptions(1, memory=False, ahead=False), Workload(reference=False)
    nodes = strict.node_times(graph(two_by_two()), runs=1)

    assert not isinstance(nodes, Failure)
    assert str(fallback(nodes, IDLE)).startswith(f"{CPU} ran {len(nodes)} of {len(nodes)} nodes (")
    assert strict.measure(graph(two_by_two()), options, load) == Failure("fallback", f"{IDLE} does not run every node")
    assert not isinstance(tolerant.measure(graph(two_by_two()), options, load), Failure)


def test_a_provider_that_the_machine_does_not_have_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, probe: LocalProbe
) -> None:
    """OpenVINO's plugin runs on Intel processors only, and a build of onnxruntime on all"""
    plugin, build = (
        "install onnxruntime-ep-openvino there, or ",
        "install onnxruntime-openvino in place of onnxruntime there, or ",
    )
    monkeypatch.setitem(probe.machine, "providers", [CPU])
    monkeypatch.setitem(probe.machine, "architecture", "x86_64")
    for cpu, install in (("Intel(R) N100", plugin), ("AMD EPYC", build)):
        monkeypatch.setitem(probe.machine, "cpu", cpu)
        with pytest.raises(
            ProbeError, match=rf"has no OpenVINO\w+ \(available: CPU\w+\); {install}change runtime.execution_provider"
        ):
            probe.with_runtime(OPENVINO, 1, allow_fallback=False)
    monkeypatch.setitem(probe.machine, "unusable", {OPENVINO: "it supports no processor"})
    with pytest.raises(
        ProbeError, match=rf"cannot use OpenVINO\w+: it supports no processor; {build}change runtime.execution_provider"
    ):
        probe.with_runtime(OPENVINO, 1, allow_fallback=False)


def test_nodes_on_other_providers_are_summed_up() -> None:
    nodes = [NodeTime(f"n{i}", f"Op{i}", 1.0, CPU if i else "Fast") for i in range(8)]

    assert fallback(nodes, "Fast") == f"{CPU} ran 7 of 8 nodes (Op1, Op2, Op3, Op4, Op5 and 2 more), 88 % of the time"
    assert fallback(nodes[:1], "Fast") is None


@needs_sshd
def test_over_ssh_the_device_times_the_nodes(board: Board) -> None:
    probe = SshProbe(board.profile(), Reference(graph(conv_net()), TWO_INPUTS[0]))
    found = probe.node_times(graph(conv_net()), runs=2)
    probe.close()

    assert not isinstance(found, Failure)
    assert [node.operator for node in found if node.operator in ("Conv", "Gemm")] == ["Conv", "Conv", "Gemm"]
    assert until(lambda: not board.workers())
    assert not list(board.tmp.iterdir())


def openvino(**runtime: Any) -> Profile:
    return profile(runtime=Runtime(execution_provider=OPENVINO, threads=1, **runtime))


@needs_openvino
def test_openvino_runs_a_whole_network_with_two_inputs_and_its_figures_say_so() -> None:
    probe = LocalProbe(openvino(), Reference(graph(two_by_two()), TWO_INPUTS))
    nodes = probe.node_times(graph(two_by_two()), runs=2)
    measured = probe.measure(graph(two_by_two(16)), MeasurementOptions(1))
    probe.close()

    assert not isinstance(nodes, Failure)
    assert fallback(nodes, OPENVINO) is None
    assert not isinstance(measured, Failure)
    assert dict(measured.fingerprint.settings)["provider"] == OPENVINO
    assert measured.relative_p50 is not None


@needs_openvino
def test_openvino_and_the_cpu_provider_give_the_same_output() -> None:
    data = two_by_two()
    probe = LocalProbe(openvino(), Reference(graph(data), TWO_INPUTS))
    measured = probe.measure(graph(data, lambda: all_outputs(data, TWO_INPUTS)), MeasurementOptions(1, memory=False))
    probe.close()

    assert not isinstance(measured, Failure)


@needs_openvino
def test_openvino_is_refused_where_it_leaves_an_operator_to_the_cpu_provider() -> None:
    """x -> relu -> determinant, for which OpenVINO has no operator"""
    data = onnx.parser.parse_model(f"{HEAD} net (float[3,3] x) => (float y) {{ a = Relu (x) y = Det (a) }}").SerializeToString()
    probe = LocalProbe(openvino(), Reference(graph(data), np.eye(3, dtype=np.float32)))
    nodes, refused = probe.node_times(graph(data), runs=1), probe.measure(graph(data), MeasurementOptions(1, memory=False))
    probe.close()

    assert not isinstance(nodes, Failure)
    assert [node.operator for node in nodes if node.provider == CPU] == ["Det"]
    assert refused == Failure("fallback", f"{OPENVINO} does not run every node")
