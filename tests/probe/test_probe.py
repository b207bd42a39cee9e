"""The probe's contract, proven for every implementer; and what only one of them promises."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.graphs import (
    INPUT,
    TWO_INPUTS,
    answers_nan,
    conv_net,
    fails_when_run,
    graph,
    not_onnx,
    profile,
    reference,
    two_by_two,
    unknown_op,
)
from helpers.sshd import Board, needs_sshd
from pydantic import TypeAdapter

from pipeline.core.measurement import Failure, Measurement
from pipeline.core.onnx_outputs import all_outputs
from pipeline.core.profile import Profile, Runtime, available_cores, load_profile
from pipeline.errors import ProbeError
from pipeline.probe.cached import CachedProbe
from pipeline.probe.interface import MeasurementOptions, Probe, Reference
from pipeline.probe.local import LocalProbe
from pipeline.probe.simulated import SimulatedProbe, simulated_latency_ms
from pipeline.probe.ssh import SshProbe

Start = Callable[[Profile, Reference, Path], Probe]
NET, WIDER = graph(conv_net(8)), graph(conv_net(16))
QUICK = MeasurementOptions(1)


def local(profile: Profile, reference: Reference, folder: Path) -> Probe:
    return LocalProbe(profile, reference)


def simulated(profile: Profile, reference: Reference, folder: Path) -> Probe:
    return SimulatedProbe(profile, reference)


def cached(inner: Start) -> Start:
    return lambda profile, reference, folder: CachedProbe(inner(profile, reference, folder), reference, folder)


def measured(found: Measurement | Failure) -> Measurement:
    assert isinstance(found, Measurement), found
    return found


@pytest.fixture(scope="class")
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """One for all tests of a class: what a measurement leaves behind must not disturb the next."""
    probe = request.cls.start(profile(), reference(), tmp_path_factory.mktemp("probe"))
    yield probe
    probe.close()


class ProbeContract:
    """What a user of any probe may rely on."""

    start: Start

    def test_it_says_where_and_how_it_measures(self, probe: Probe) -> None:
        said = probe.fingerprint

        assert (said.device, said.profile_threads) == ("bench", 1)
        assert said.machine
        assert said.architecture
        assert said.settings
        assert said == probe.fingerprint
        assert set(probe.busy_cores) <= set(available_cores())

    def test_a_measurement_is_of_the_graph_and_of_here(self, probe: Probe) -> None:
        found = measured(probe.measure(NET, QUICK))

        assert found.structure == NET.structure
        assert found.fingerprint == probe.fingerprint
        assert found.latency_p50_ms.value > 0
        assert found.latency_p50_ms.low <= found.latency_p50_ms.value <= found.latency_p50_ms.high

    @pytest.mark.parametrize("processes", [1, 2])
    @pytest.mark.parametrize("fresh", [True, False])
    def test_every_process_times_the_file_and_the_reference_in_as_many_runs(
        self, probe: Probe, processes: int, fresh: bool
    ) -> None:
        found = measured(probe.measure(NET, MeasurementOptions(processes, fresh=fresh)))

        assert len(found.processes) == processes
        for process in found.processes:
            assert np.shape(process.latency_ms) == np.shape(process.reference_latency_ms) == (2, 4)
            assert process.session_creation_ms > 0
            assert process.first_run_ms > 0
            assert process.cpu_ms_per_run > 0
            assert process.timed_ms > 0
        assert found.relative_p50 is not None
        assert found.relative_p50.low <= found.relative_p50.value <= found.relative_p50.high

    def test_memory_is_the_file_s_above_the_baseline(self, probe: Probe) -> None:
        memory = measured(probe.measure(NET, QUICK)).memory

        assert memory.baseline_bytes is not None
        assert memory.session_bytes is not None
        assert memory.peak_bytes is not None
        assert 0 < memory.baseline_bytes < memory.session_bytes <= memory.peak_bytes

    def test_below_64_runs_there_is_no_p90(self, probe: Probe) -> None:
        assert measured(probe.measure(NET, QUICK)).latency_p90_ms is None
        # more than enough: runs that other programs interrupt do not count
        assert measured(probe.measure(NET, MeasurementOptions(16))).latency_p90_ms is not None

    def test_a_file_that_cannot_be_read_is_a_failure_and_the_next_one_is_measured(self, probe: Probe) -> None:
        failed = probe.measure(graph(not_onnx()), QUICK)

        assert isinstance(failed, Failure)
        assert failed.kind == "load-error"
        assert measured(probe.measure(WIDER, QUICK)).structure == WIDER.structure

    def test_it_can_be_closed_twice(self, tmp_path: Path) -> None:
        probe = type(self).start(profile(), reference(), tmp_path)
        probe.measure(NET, QUICK)
        probe.close()
        probe.close()


class RunningProbeContract(ProbeContract):
    """Those that run the file know more of it than those that read it."""

    @pytest.mark.parametrize(
        ("data", "kind"),
        [(unknown_op(), "load-error"), (fails_when_run(), "run-error"), (answers_nan(), "wrong-output")],
        ids=["unknown op", "fails when run", "NaN"],
    )
    def test_a_file_that_does_not_run_is_a_failure_and_the_next_one_is_measured(
        self, probe: Probe, data: bytes, kind: str
    ) -> None:
        failed = probe.measure(graph(data), QUICK)

        assert isinstance(failed, Failure)
        assert failed.kind == kind
        assert measured(probe.measure(NET, QUICK)).structure == NET.structure

    def test_an_answer_is_right_up_to_rounding(self, probe: Probe) -> None:
        session = onnxruntime.InferenceSession(NET.data, providers=["CPUExecutionProvider"])
        right = session.run(None, {"x": INPUT})[0]
        for wrong in (right * 1.01, right[:, :4], right * np.nan, -right):
            failed = probe.measure(graph(NET.data, lambda wrong=wrong: wrong), QUICK)
            assert isinstance(failed, Failure)
            assert failed.kind == "wrong-output"

        assert measured(probe.measure(graph(NET.data, lambda: right * 1.0001), QUICK))
        assert measured(probe.measure(replace(graph(NET.data, lambda: right * 1.01), tolerance=0.02), QUICK))


class TestLocalProbe(RunningProbeContract):
    start = staticmethod(local)


@needs_sshd
class TestSshProbe(RunningProbeContract):
    @pytest.mark.slow  # sixteen processes, and the figures are computed as those of the local probe are
    def test_below_64_runs_there_is_no_p90(self, probe: Probe) -> None:
        super().test_below_64_runs_there_is_no_p90(probe)

    @staticmethod
    def start(profile: Profile, reference: Reference, folder: Path) -> Probe:
        board = Board(folder / "board")
        board.start()
        device = board.device(name=profile.device.name)
        probe = SshProbe(profile.model_copy(update={"device": device}), reference)
        close = probe.close

        def close_both() -> None:
            close()
            board.stop()

        probe.close = close_both  # type: ignore[method-assign]
        return probe


class TestSimulatedProbe(ProbeContract):
    start = staticmethod(simulated)


@pytest.mark.slow  # each half of it is among the others
class TestCachedLocalProbe(RunningProbeContract):
    start = staticmethod(cached(local))


def test_what_was_measured_while_the_reference_was_slow_is_measured_again(tmp_path: Path) -> None:
    """a stored answer whose reference took twice as long as in others: it is replaced, and then believed"""
    again = MeasurementOptions(1, fresh=False)
    inner, folder = simulated(profile(), reference(), tmp_path), tmp_path / "kept"
    plain = measured(CachedProbe(inner, reference(), folder).measure(NET, again))
    (stored,) = folder.iterdir()
    slow = [
        replace(process, reference_latency_ms=tuple(tuple(2 * run for run in block) for block in process.reference_latency_ms))
        for process in plain.processes
    ]
    disturbed = replace(plain, processes=tuple(slow))
    stored.write_bytes(TypeAdapter(Measurement).dump_json(disturbed))

    believed = CachedProbe(inner, reference(), folder)
    assert believed.measure(NET, again) == disturbed  # nothing to compare it with yet
    warned = CachedProbe(inner, reference(), folder)
    warned.measure(WIDER, again)
    assert warned.measure(NET, again) == plain
    assert believed.measure(NET, again) == plain


class TestCachedSimulatedProbe(ProbeContract):
    start = staticmethod(cached(simulated))


# ---------------------------------------------------------------- only the local one


@pytest.fixture
def probes() -> Iterator[Callable[..., LocalProbe]]:
    """Starts local probes, and closes them."""
    started: list[LocalProbe] = []

    def start(profile: Profile, measured_against: Reference | None = None) -> LocalProbe:
        started.append(LocalProbe(profile, measured_against or reference()))
        return started[-1]

    yield start
    for probe in started:
        probe.close()


def test_each_of_several_outputs_must_be_right(probes: Callable[..., LocalProbe]) -> None:
    """picture (float32), count (int64) -> map, scaled; both are compared, each with its own largest value"""
    data = two_by_two()
    right = all_outputs(data, TWO_INPUTS)
    probe = probes(profile(), Reference(graph(data), TWO_INPUTS))

    assert measured(probe.measure(graph(data, lambda: right), QUICK)).latency_p50_ms.value > 0
    for wrong in (
        (right[0] * 1.01, right[1]),
        (right[0], right[1] * 1.01),
        right[:1],
        right[::-1],
        (right[0], right[1] * np.nan),
    ):
        failed = probe.measure(graph(data, lambda wrong=wrong: wrong), QUICK)
        assert isinstance(failed, Failure)
        assert failed.kind == "wrong-output"


def test_figures_in_a_board_s_stead_are_stamped_so(probes: Callable[..., LocalProbe]) -> None:
    """P14: a board of 64 cores, and a machine of fewer"""
    cores = available_cores()
    board = profile(this_machine=False, cores=64, runtime=Runtime(threads=64))
    found = measured(probes(board).measure(NET, QUICK))

    assert found.fingerprint.mode == "host-emulated"
    assert found.fingerprint.stamp == f"host-emulated, {len(cores)} of 64 threads"
    assert found.fingerprint.threads == len(cores)


def test_figures_of_this_machine_are_the_device_s_own(probes: Callable[..., LocalProbe]) -> None:
    here = load_profile("local").model_copy(update={"probe": profile().probe})
    probe = probes(here)

    assert probe.fingerprint.mode == probe.fingerprint.stamp == "device"
    assert probe.busy_cores == tuple(available_cores())
    assert measured(probe.measure(NET, QUICK)).fingerprint.mode == "device"


def test_runs_keep_to_the_highest_cores_of_as_many_as_the_profile_has_threads(probes: Callable[..., LocalProbe]) -> None:
    assert probes(profile()).busy_cores == (available_cores()[-1],)


def test_every_setting_is_part_of_the_fingerprint(probes: Callable[..., LocalProbe]) -> None:
    """P4: figures of other settings are other figures"""
    plain = probes(profile()).fingerprint
    others = [
        probes(profile(runtime=Runtime(threads=1, **{key: value}))).fingerprint  # type: ignore[arg-type]
        for key, value in {"spinning": False, "arena": False, "prepacking": False, "graph_optimization": "basic"}.items()
    ]
    fewer = probes(profile(warmup_runs=2)).fingerprint

    assert len({plain, fewer, *others}) == 6


def test_unstable_runs_are_repeated_as_often_as_the_profile_says_and_then_told(probes: Callable[..., LocalProbe]) -> None:
    """P11: a limit that no machine keeps"""
    remarks = measured(probes(profile(noise_limit=1e-9, retries=2)).measure(NET, QUICK)).remarks
    texts = [remark.text for remark in remarks]

    assert [text for text in texts if re.fullmatch(r"noisy: the runs deviate from their median by \d+ % \(limit 0 %\)", text)]
    assert texts[-1] == "measurement repeated 2 times"


def test_a_file_that_hangs_is_a_failure_and_the_next_one_is_measured(probes: Callable[..., LocalProbe]) -> None:
    """P17: a limit that loading cannot keep stands for a file that never comes to an end"""
    failed = probes(profile(timeout_s=1e-6)).measure(NET, QUICK)

    assert failed == Failure("timeout", "no answer after 1e-06 s")


def test_an_execution_provider_that_is_not_here_is_named(probes: Callable[..., LocalProbe]) -> None:
    if "XnnpackExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is here")

    with pytest.raises(
        ProbeError, match=r"has no XnnpackExecutionProvider \(available: .*CPUExecutionProvider.*\); change runtime"
    ):
        probes(profile(runtime=Runtime(threads=1, execution_provider="XnnpackExecutionProvider")))


# ---------------------------------------------------------------- only the simulated one


def test_the_simulated_figures_of_a_file_are_always_the_same() -> None:
    """the same in another probe; others for another effort; those of its own reference differ by the noise alone"""
    first, second = (SimulatedProbe(profile(), reference()) for _ in range(2))
    found = measured(first.measure(NET, QUICK))

    assert second.measure(NET, QUICK) == found
    assert second.measure(NET, MeasurementOptions(1, memory=False)) != found
    assert found.relative_p50 is not None
    assert found.relative_p50.value == pytest.approx(1.0, abs=0.02)
    assert simulated_latency_ms(onnx.load_model_from_string(NET.data), 1) == pytest.approx(found.latency_p50_ms.value, rel=0.02)


def latency(width: int, threads: int = 1) -> float:
    return simulated_latency_ms(onnx.load_model_from_string(conv_net(width)), threads)


def test_simulated_latency_has_a_cliff_at_every_full_vector() -> None:
    """8 lanes: the 9th channel costs as much as eight more, the 8th only what its inputs cost"""
    steps = {width: latency(width + 1) - latency(width) for width in range(5, 12)}

    assert max(steps, key=lambda width: steps[width]) == 8
    assert steps[8] > 3 * max(cost for width, cost in steps.items() if width != 8)


def test_simulated_latency_grows_with_the_work_and_falls_with_threads() -> None:
    """all that is not a node's fixed cost is shared among threads"""
    widths = [latency(width) for width in (8, 16, 32, 64)]
    fixed = 6 * 0.004

    assert widths == sorted(widths)
    assert latency(64, threads=4) - fixed == pytest.approx((latency(64) - fixed) / 4)
