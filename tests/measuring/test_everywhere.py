"""Ranking of providers and numbers of threads."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.graphs import conv_net, graph, profile, reference
from helpers.profiles import command, here
from helpers.providers import needs_openvino
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.measurement import Measurement, TimedProcess
from pipeline.core.profile import available_cores
from pipeline.core.providers import CPU, OPENVINO, REMOTE
from pipeline.core.remark import Remark, RemarkKind
from pipeline.measuring.everywhere import Configuration, compare_neighbours, thread_counts
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe

FAST, LIKE_IT, SLOW = Configuration(CPU, 2), Configuration(CPU, 1), Configuration("Other", 1)


@given(st.integers(1, 300))
def test_thread_counts_grow_from_one_to_all_cores(cores: int) -> None:
    counts = thread_counts(cores)

    assert counts[0] == 1
    assert counts[-1] == cores
    assert counts[: min(cores, 4)] == list(range(1, min(cores, 4) + 1))
    assert all(a < b <= 1.5 * a for a, b in itertools.pairwise(counts[3:]))


def measured(ms: float, noise: float, seed: int) -> Measurement:
    """five processes of 64 runs around `ms`"""
    found = SimulatedProbe(profile(), reference()).measure(graph(conv_net()), MeasurementOptions(5))
    assert isinstance(found, Measurement)
    generator = np.random.default_rng(seed)

    def process(each: TimedProcess) -> TimedProcess:
        blocks = ms * (1 + noise * generator.standard_normal((8, 8)))
        return replace(each, latency_ms=tuple(tuple(block) for block in blocks.tolist()))

    return replace(found, processes=tuple(map(process, found.processes)))


def test_neighbours_that_differ_clearly_are_ranked_and_others_are_undecided() -> None:
    found = {SLOW: measured(2.0, 0.02, 0), LIKE_IT: measured(1.001, 0.02, 1), FAST: measured(1.0, 0.02, 2)}
    ranked = compare_neighbours(found, {SLOW.provider: "CPU ran 1 node"})

    assert ranked[2].configuration == SLOW
    assert {ranked[0].configuration, ranked[1].configuration} == {FAST, LIKE_IT}
    assert [each.slower for each in ranked] == [False, False, True]
    assert ranked[2].above is not None
    assert ranked[2].above.low < 2.0 < 1.05 * ranked[2].above.high
    assert [each.fallback for each in ranked] == [None, None, "CPU ran 1 node"]


def test_a_remark_that_forbids_a_verdict_makes_an_order_undecided() -> None:
    doubtful = replace(measured(1.0, 0.02, 0), remarks=(Remark(RemarkKind.THROTTLED, "throttled"),))
    ranked = compare_neighbours({FAST: doubtful, SLOW: measured(2.0, 0.02, 1)}, {})

    assert [each.slower for each in ranked] == [False, False]


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(conv_net())
    return path


def test_every_number_of_threads_is_measured_and_the_fastest_comes_first(tmp_path: Path, net: Path) -> None:
    result = command("measure", "--target", here(tmp_path, final_processes=1), "--everywhere", "--json", net)
    found = json.loads(result.stdout)
    on_the_cpu = [each for each in found["ranked"] if each["provider"] == CPU]
    p50 = [each["latency_p50_ms"]["value"] for each in found["ranked"]]

    assert result.exit_code == 0
    assert sorted(each["threads"] for each in on_the_cpu) == thread_counts(len(available_cores()))
    assert p50 == sorted(p50)
    assert found["ranked"][0]["slower_than_the_one_above"] is None
    assert all(each["fingerprint"]["threads"] == each["threads"] for each in found["ranked"])
    assert not {each["provider"] for each in found["ranked"]} & set(REMOTE)


@pytest.mark.slow
def test_the_page_says_what_to_write_into_the_profile(tmp_path: Path, net: Path) -> None:
    result = command("measure", "--target", here(tmp_path), "--everywhere", net)
    (fastest,) = (line for line in result.output.splitlines() if line.startswith("fastest: "))

    assert result.exit_code == 0
    assert "in a profile: runtime: {execution_provider: CPUExecutionProvider, threads: " in fastest


@needs_openvino
def test_openvino_takes_part(tmp_path: Path, net: Path) -> None:
    found = json.loads(command("measure", "--target", here(tmp_path, final_processes=1), "--everywhere", "--json", net).stdout)

    assert OPENVINO in {each["provider"] for each in found["ranked"]}
    assert found["failed"] == []
