"""From this machine's latencies to a device's: the map, its honest error, and what may be said with it."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from helpers.graphs import conv_net, graph, profile, reference
from helpers.profiles import command, to_walk
from helpers.small_net import SMALL_NET
from helpers.sshd import Board, needs_sshd
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.calibrate import Pair, fitted
from pipeline.cli.screen_device import calibrated_json, print_calibrated
from pipeline.core.latency_predictor import LatencyPredictor, Point, predictor_json, read_predictor
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.statistics import Estimate
from pipeline.errors import ProbeError
from pipeline.probe.calibrated import CalibratedProbe
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe

pytestmark = pytest.mark.starts_first


def calibration(points: list[tuple[float, float]], dense_p50_ms: float = 20.0) -> LatencyPredictor:
    """of the simulated machine, whose reference is the small convolutional network"""
    probe = SimulatedProbe(profile(), reference())
    return LatencyPredictor(
        host=probe.fingerprint.facts,
        device={},
        network=reference().graph.structure,
        dense_p50_ms=dense_p50_ms,
        dense_p90_ms=2 * dense_p50_ms,
        points=tuple(Point(*point) for point in points),
    )


def law(host: float) -> float:
    """device = 0.8 host^0.9"""
    return 0.8 * host**0.9


EXACT = [(host, law(host)) for host in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]


def test_a_power_law_is_found_exactly() -> None:
    found = calibration(EXACT)
    intercept, slope = found.line

    assert (math.exp(intercept), slope) == pytest.approx((0.8, 0.9))
    assert found.error == pytest.approx(0, abs=1e-9)
    assert found.relative(Estimate(0.5, 0.4, 0.6)) == Estimate(*(pytest.approx(law(host)) for host in (0.5, 0.4, 0.6)))  # type: ignore[arg-type]


def test_the_error_is_the_largest_of_plans_that_the_map_had_not_seen() -> None:
    """one plan twice as slow on the device as the others' law says: left out, it is predicted at half its latency"""
    odd = [*EXACT, (0.5, 2 * law(0.5))]

    assert calibration(odd).error == pytest.approx(0.5, abs=0.02)
    assert calibration(odd).relative(Estimate.exact(0.5)).high > 2 * law(0.5) * 0.7


def test_three_points_say_nothing_of_their_error() -> None:
    assert calibration(EXACT[:3]).error == math.inf


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=4, max_size=12),
    st.floats(0.01, 1),
    st.floats(0, 0.3),
)
def test_the_interval_holds_the_prediction(points: list[tuple[float, float]], host: float, width: float) -> None:
    told = calibration(points).relative(Estimate(host, host * (1 - width), host * (1 + width)))

    assert told.low <= told.value <= told.high


# ---------------------------------------------------------------- on a probe


def predicted(found: LatencyPredictor) -> Measurement:
    probe = CalibratedProbe(SimulatedProbe(profile(), reference()), reference(), found)
    measured = probe.measure(graph(conv_net(8)), MeasurementOptions(8))
    assert not isinstance(measured, Failure)
    assert measured.fingerprint == probe.fingerprint
    return measured


def test_a_prediction_is_stamped_as_one_with_its_error() -> None:
    noisy = [(host, device * (1.06 if index % 2 else 0.94)) for index, (host, device) in enumerate(EXACT)]
    found = calibration(noisy)

    assert predicted(found).fingerprint.stamp == f"predicted ± {100 * found.error:.1f} % from figures of this machine"


def test_latencies_are_the_device_s_and_raw_runs_are_this_machine_s() -> None:
    """the reference against itself: as fast as dense by the law, 0.8 of 20 ms"""
    here = SimulatedProbe(profile(), reference()).measure(graph(conv_net(8)), MeasurementOptions(8))
    there = predicted(calibration(EXACT))

    assert isinstance(here, Measurement)
    assert there.processes == here.processes
    assert there.latency_p50_ms.value == pytest.approx(0.8 * 20.0, rel=0.02)
    assert there.latency_p90_ms is not None
    assert there.latency_p90_ms.value == pytest.approx(0.8 * 40.0, rel=0.02)
    assert there.reference_p50_ms == Estimate.exact(20.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": {"onnxruntime": "1.15.0"}}, "made with another onnxruntime (1.15.0 then, none now)"),
        ({"network": "another"}, "was made for another network"),
    ],
)
def test_a_map_of_other_circumstances_is_refused(changes: dict[str, object], message: str) -> None:
    found = replace(calibration(EXACT), **changes)  # type: ignore[arg-type]

    with pytest.raises(ProbeError) as refused:
        CalibratedProbe(SimulatedProbe(profile(), reference()), reference(), found)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"points": "many"}'])
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)

    with pytest.raises(ProbeError, match="not a calibration file; create it with: compress calibrate"):
        read_predictor(tmp_path / "c.json")


# ---------------------------------------------------------------- made from measurements


def simulated(*kinds: RemarkKind) -> Measurement:
    """a plan on the simulated machine, disturbed in these ways"""
    found = SimulatedProbe(profile(), reference()).measure(graph(conv_net(8)), MeasurementOptions(4))
    assert isinstance(found, Measurement)
    return replace(found, remarks=tuple(Remark(kind, f"{kind} there") for kind in kinds))


def made_from(*pairs: Pair) -> LatencyPredictor:
    return fitted(pairs, simulated().fingerprint, simulated().fingerprint)


def test_a_calibration_says_which_of_its_measurements_are_doubtful(tmp_path: Path) -> None:
    """its file does too; a remark that forbids no verdict is no doubt"""
    sound = Pair(simulated(), simulated(RemarkKind.NOISY))
    found = made_from(sound, Pair(simulated(RemarkKind.PREEMPTED), simulated()), Pair(simulated(), simulated(RemarkKind.STOLEN)))
    (tmp_path / "kept.json").write_bytes(predictor_json(found))

    assert made_from(sound).doubts == ()
    assert len(found.points) == 3
    assert found.doubts == (
        "plan 2 of 3, measured on the device, is doubtful: preempted there",
        "plan 3 of 3, measured on this machine, is doubtful: stolen there",
    )
    assert read_predictor(tmp_path / "kept.json").doubts == found.doubts


def test_a_plan_that_was_not_timed_against_the_dense_network_is_left_out_and_named() -> None:
    alone = simulated()
    alone = replace(alone, processes=tuple(replace(each, reference_latency_ms=()) for each in alone.processes))
    found = made_from(Pair(simulated(), simulated()), Pair(simulated(), alone))

    assert len(found.points) == 1
    assert found.doubts == ("plan 2 of 2 is left out: it was not timed against the dense network",)


def test_a_calibration_of_an_older_version_has_no_doubts(tmp_path: Path) -> None:
    older = json.loads(predictor_json(calibration(EXACT)))
    del older["doubts"]
    (tmp_path / "kept.json").write_text(json.dumps(older))

    assert read_predictor(tmp_path / "kept.json") == calibration(EXACT)


@pytest.mark.parametrize("doubts", [(), ("plan 2 of 3, measured on the device, is doubtful: preempted there",)])
def test_the_output_of_a_calibration_says_whether_it_is_doubtful(doubts: tuple[str, ...]) -> None:
    found, console = replace(calibration(EXACT), doubts=doubts), Console(file=io.StringIO(), width=100)
    print_calibrated(console, Path("kept.json"), found)

    assert ("some measurements are doubtful" in console.file.getvalue()) == bool(doubts)  # type: ignore[attr-defined]
    assert calibrated_json(Path("kept.json"), found)["doubts"] == list(doubts)


# ---------------------------------------------------------------- the whole way, with a device


def told_in(result: Result) -> str:
    """the notes of a command, without line breaks"""
    return " ".join(result.stderr.split())


@needs_sshd
def test_a_search_with_a_calibration_needs_the_device_only_at_its_end(tmp_path: Path, board: Board) -> None:
    """calibrate; search while the board is off: undecided; the same search with the board on: measured there, within"""
    target, kept = to_walk(tmp_path, board, final_processes=2), tmp_path / "kept.json"
    done = command("calibrate", "--target", target, "--model", SMALL_NET, "--plans", 4, "--out", kept)
    assert done.exit_code == 0, done.output
    calibrated = json.loads(kept.read_text())
    assert len(calibrated["points"]) == 6
    assert (board.folder / "sshd.log").read_text().count("Accepted publickey") == 1
    kept.write_text(json.dumps({**calibrated, "doubts": ["plan 2 is doubtful", "plan 3 is doubtful"]}))
    search = (
        "--target",
        target,
        "--model",
        SMALL_NET,
        "--calibration",
        kept,
        "--trials",
        1,
        "--supernet",
        0,
        "--epochs",
        0,
        "--searcher",
        "random",
    )

    board.stop()
    off = command(*search, "--out", tmp_path / "off", "--json")
    assert off.exit_code == 14, off.output
    said = json.loads(off.stdout.splitlines()[-1])
    assert said["figures"].startswith("predicted ± ")
    assert "made from doubtful measurements, so its predictions may be off (plan 2 is doubtful; and 1 more)" in told_in(off)
    assert said["verdict"] == "undecided"

    board.start()
    on = command(*search, "--out", tmp_path / "on", "--json")
    assert on.exit_code == 0, on.output
    said = json.loads(on.stdout.splitlines()[-1])
    assert (said["figures"], said["verdict"]) == ("device", "within")


def test_without_a_device_there_is_nothing_to_calibrate(tmp_path: Path) -> None:
    done = command("calibrate", "--target", "raspberrypi", "--out", tmp_path / "kept.json")

    assert done.exit_code == 10
    assert "device.host is not set" in done.stderr
    assert not (tmp_path / "kept.json").exists()
