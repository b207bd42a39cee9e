"""The table of providers and numbers of threads."""

import io
from pathlib import Path

import pytest
from helpers.graphs import conv_net, graph, profile, reference
from rich.console import Console

from pipeline.cli.screen_ranking import print_ranking
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.providers import CPU, OPENVINO
from pipeline.core.statistics import Estimate
from pipeline.measuring.everywhere import Configuration, Ranked, Ranking
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe


@pytest.fixture
def lines() -> list[str]:
    """two configurations that are clearly different, a third that is like the second, and a provider that fails"""
    measured = SimulatedProbe(profile(), reference()).measure(graph(conv_net()), MeasurementOptions(2))
    assert isinstance(measured, Measurement)
    ranked = (
        Ranked(Configuration(OPENVINO, 2), measured, None),
        Ranked(
            Configuration(CPU, 2),
            measured,
            "CPUExecutionProvider ran 3 of 4 nodes (Conv), 50 % of the time",
            Estimate(1.5, 1.4, 1.6),
        ),
        Ranked(Configuration(CPU, 1), measured, None, Estimate(1.01, 0.99, 1.03)),
    )
    failed = (("XnnpackExecutionProvider", Failure("fallback", "CPUExecutionProvider ran 1 of 4 nodes (Erf), 1 % of the time")),)
    found = Ranking(Path("net.onnx"), 1000, (), measured.fingerprint, 0.0, ranked, failed)
    stream = io.StringIO()
    print_ranking(Console(file=stream, width=80), found, random_inputs=True)
    return stream.getvalue().splitlines()


def test_a_row_says_how_it_compares_with_the_row_above_and_nothing_is_cut_off(lines: list[str]) -> None:
    rows = [line.split() for line in lines[1:4]]

    assert [row[:3] for row in rows] == [["1", "OpenVINO", "2"], ["2", "CPU", "2"], ["3", "CPU", "1"]]
    assert [row[-3:] for row in rows[1:]] == [["1.50", "[1.40,", "1.60]"], ["undecided", "[0.99,", "1.03]"]]
    assert not [line for line in lines if "…" in line]


def test_fall_backs_and_failures_are_said_with_their_reason_and_what_to_do(lines: list[str]) -> None:
    assert f"{CPU}: CPUExecutionProvider ran 3 of 4 nodes (Conv), 50 % of the time" in lines
    (failure,) = (line for line in lines if line.startswith("XnnpackExecutionProvider: fallback: "))
    assert failure.endswith("figures of such a mixture are refused: choose another provider, or give --allow-fallback")


def test_the_fastest_configuration_is_given_as_lines_of_a_profile(lines: list[str]) -> None:
    (fastest,) = (line for line in lines if line.startswith("fastest: "))

    assert fastest == (f"fastest: {OPENVINO}, 2 threads; in a profile: runtime: {{execution_provider: {OPENVINO}, threads: 2}}")
