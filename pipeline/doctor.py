"""Doctor: examines a device on one page before a long run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.core.device_state import DeviceState, throttled
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.profile import Profile
from pipeline.core.providers import CPU, REMOTE
from pipeline.core.remark import Remark
from pipeline.core.statistics import Estimate, noise
from pipeline.errors import CompressError, DeviceUnreachable, ProbeError
from pipeline.graph.structure import structure
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.remote.link import LinkLost
from pipeline.stages.board_pool import connect_boards, of_one_board
from pipeline.stages.shared_device import connect
from pipeline.system.units import format_bytes

__all__ = ["Finding", "examine"]

Level = Literal["ok", "warning", "failure"]

LITTLE_DISK_BYTES, LITTLE_MEMORY_BYTES = 200 * 2**20, 150 * 2**20
HOT_C = 75.0
FAR = 4.0
BENCH_GMACS = 9 * 32 * 32 * (16 * 64 + 2 * 64 * 64) / 1e9


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    what: str
    level: Level
    found: str
    advice: str = ""
    exit_code: int | None = None
    """Exit code of the error behind this finding, if it was one; see `pipeline.errors`."""


def examine(profile: Profile) -> Iterator[Finding]:
    """Examine the profile's device item by item. The examination ends early where nothing more can be found out.

    Of a pool, each board is examined, and then whether the boards can be pooled.
    """
    if profile.device.hosts:
        for host in profile.device.hosts:
            yield from (replace(each, what=f"{host}: {each.what}") for each in _examine_board(of_one_board(profile, host)))
        yield from _pool(profile)
    else:
        yield from _examine_board(profile)


def _pool(profile: Profile) -> Iterator[Finding]:
    left_out: list[str] = []
    try:
        boards = connect_boards(profile, left_out.append)
    except CompressError as problem:
        yield Finding("pool", "failure", f"{type(problem).__name__}: {problem}", exit_code=problem.exit_code)
        return
    for board in boards.values():
        board.close()
    for reason in left_out:
        yield Finding("pool", "warning", reason)
    yield Finding("pool", "ok", f"{len(boards)} boards measure together: {', '.join(boards)}")


def _examine_board(profile: Profile) -> Iterator[Finding]:
    where = profile.device.host or "this machine"
    try:
        probe = connect(profile, Reference(_bench_net(), np.zeros((1, 16, 32, 32), np.float32)))
    except CompressError as problem:
        yield Finding("reachable", "failure", f"{type(problem).__name__}: {problem}", exit_code=problem.exit_code)
        return
    try:
        yield Finding(
            "reachable", "ok", f"{where}: {probe.machine['cpu']}, {probe.machine['system']}, {probe.machine['architecture']}"
        )
        if profile.device.host:
            yield Finding("host key", "ok", "known and verified")
        yield from _software(profile, probe.machine)
        yield from _providers(profile, probe)
        yield from _room(profile, probe.machine)
        yield from _condition(probe.condition())
        yield from _quota(profile, probe.condition())
        yield from _noise(profile, probe)
    except CompressError as problem:
        yield Finding("measuring", "failure", f"{type(problem).__name__}: {problem}", exit_code=problem.exit_code)
    except LinkLost as loss:
        code = (DeviceUnreachable if profile.device.host else ProbeError).exit_code
        yield Finding(
            "measuring",
            "failure",
            f"lost the connection to {where}: {loss}",
            "run the same command again when the device is back",
            code,
        )
    finally:
        probe.close()


def _software(profile: Profile, machine: dict[str, Any]) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{machine['python']} ({machine['interpreter']}), numpy {machine['numpy']}")
    version, expected = machine["onnxruntime"], profile.runtime.onnxruntime
    if expected and profile.measures_its_device and version != expected:
        yield Finding(
            "onnxruntime",
            "warning",
            f"{version} on the device, {expected} in the profile",
            f'write onnxruntime: "{version}" in the profile, or install {expected} on the device: latency depends on it',
        )
    else:
        beside = "" if profile.measures_its_device or not expected else f" on this machine, in place of the device's {expected}"
        yield Finding("onnxruntime", "ok", f"{version}{beside}")


def _providers(profile: Profile, probe: WorkerProbe) -> Iterator[Finding]:
    """The execution providers that can be used. onnxruntime also names those whose libraries or devices are missing."""
    usable = [profile.runtime.execution_provider]
    broken = {name: str(reason) for name, reason in probe.machine.get("unusable", {}).items()}
    for name in probe.machine["providers"]:
        if name in usable or name in REMOTE:
            continue
        failure = None if name == CPU else _failure_of(name, profile, probe)
        if failure:
            broken[name] = failure.detail
        else:
            usable.append(name)
    remote = [name for name in probe.machine["providers"] if name in REMOTE]
    aside = f" (not used: {', '.join(remote)}, which sends inputs to a server)" if remote else ""
    yield Finding("providers", "ok", ", ".join(usable) + aside)
    for name, reason in broken.items():
        advice = "the other providers can be used; to use this one, install what it needs on the device"
        yield Finding("provider", "warning", f"{name} is installed, but cannot be used: {reason}", advice)


def _failure_of(provider: str, profile: Profile, probe: WorkerProbe) -> Failure | None:
    """Why a small network cannot be run with `provider`, or None if it can. Nodes may fall back."""
    other = probe.with_runtime(provider, profile.threads, allow_fallback=True)
    found = other.measure(_bench_net(), MeasurementOptions(1, memory=False, ahead=False), Workload(reference=False))
    return found if isinstance(found, Failure) else None


def _room(profile: Profile, machine: dict[str, Any]) -> Iterator[Finding]:
    cores, threads = len(machine["cores"]), profile.threads
    machine_cores = machine.get("machine_cores")
    confined = (
        f" of {machine_cores}; this user may not use the others (cpuset, taskset)"
        if machine_cores and machine_cores > cores
        else ""
    )
    if threads > cores:
        yield Finding(
            "cores",
            "warning",
            f"{cores}{confined} for {threads} threads",
            "measurements will use fewer threads, and the results will say so",
        )
    else:
        yield Finding("cores", "ok", f"{cores}{confined}; an inference uses {threads}")
    for what, key, little in (
        ("free memory", "free_memory_bytes", LITTLE_MEMORY_BYTES),
        ("free disk", "free_disk_bytes", LITTLE_DISK_BYTES),
    ):
        size = machine[key]
        if size is None:
            yield Finding(what, "warning", "not known")
        else:
            advice = f"free some space: at least {format_bytes(little)} is needed" if size < little else ""
            yield Finding(what, "warning" if advice else "ok", f"{format_bytes(size)} ({machine['folder']})", advice)


def _condition(now: DeviceState) -> Iterator[Finding]:
    if now.governor is None:
        yield Finding("governor", "ok", "the system has none")
    elif now.governor == "performance":
        yield Finding("governor", "ok", now.governor)
    else:
        yield Finding(
            "governor",
            "warning",
            f"{now.governor}: the clock frequency changes with the load, also during short runs",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    clock = f", {now.clock_mhz:.0f} MHz {'measured' if now.clock_measured else 'requested'}" if now.clock_mhz else ""
    slowed = throttled(now, now)
    before = (now.throttle_flags or 0) >> 16 & 0xF
    if slowed:
        yield Finding("throttling", "failure", f"now: {slowed}{clock}", "cool the device, and give it a better power supply")
    elif before:
        yield Finding(
            "throttling", "warning", f"not now, but at some time since boot{clock}", "cool the device, or check its power supply"
        )
    else:
        yield Finding("throttling", "ok", "none" + ("" if now.throttle_flags is not None else " reported") + clock)
    if now.temperature_c is not None:
        hot = now.temperature_c >= HOT_C
        yield Finding(
            "temperature", "warning" if hot else "ok", f"{now.temperature_c:.0f} °C", "let the device cool down" if hot else ""
        )
    if now.load is not None and now.load > 0.5:
        yield Finding(
            "load",
            "warning",
            f"{now.load:.1f} processes wanted a core in the last minute",
            "end the other programs on the device",
        )


def _quota(profile: Profile, now: DeviceState) -> Iterator[Finding]:
    """Check the limit on processor time: a limit below what the processes use stops them in the middle of a run."""
    if now.quota_cores is None:
        return
    enough = now.quota_cores >= profile.threads
    stops = f", which stopped processes {now.quota_stops} times so far" if now.quota_stops else ""
    found = f"a control group allows {now.quota_cores:g} cores for {profile.threads} threads{stops}"
    advice = "raise the limit to at least runtime.threads cores (docker run --cpus, systemd CPUQuota): latencies are too long"
    yield Finding("processor time", "ok" if enough else "failure", found, "" if enough else advice)


def _noise(profile: Profile, probe: WorkerProbe) -> Iterator[Finding]:
    """Measure a network against itself, so that every difference is noise."""
    net = _bench_net()
    measured = probe.measure(net, MeasurementOptions(profile.probe.final_processes, memory=False))
    if isinstance(measured, Failure):
        yield Finding("measuring", "failure", f"{measured.kind}: {measured.detail}")
        return
    ratio = measured.relative_p50
    if ratio is None:
        return
    runs = noise(tuple(process.latency_ms for process in measured.processes))
    level: Level = "warning" if measured.remarks else "ok"
    yield Finding("noise", level, f"{100 * runs:.1f} % from run to run", "; ".join(map(_with_advice, measured.remarks)))
    samples = measured.samples
    yield Finding(
        "other programs",
        "warning" if samples.shared else "ok",
        f"{samples.clean} of {samples.total} runs were not preempted",
        "end the other programs on the device" if samples.shared else "",
    )
    yield from _speed(profile, measured)
    smallest = max(ratio.high - 1, 1 - ratio.low)
    yield _against_itself(ratio, measured.doubts)
    yield Finding(
        "smallest difference shown",
        "ok" if smallest < 0.05 else "warning",
        f"{100 * smallest:.1f} %, with {profile.probe.final_processes} processes of {profile.probe.runs} runs",
        "" if smallest < 0.05 else "raise probe.runs or probe.final_processes",
    )


def _against_itself(ratio: Estimate, doubts: Sequence[Remark]) -> Finding:
    """A latency over its own. It is as expected if the interval contains 100 % and nothing forbids a verdict."""
    found = f"{100 * ratio.value:.1f} % [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}]"
    if doubts:
        advice = "; ".join(map(_with_advice, doubts))
    elif ratio.low <= 1 <= ratio.high:
        advice = ""
    else:
        advice = "other programs disturb the runs: end them"
    return Finding("network against itself", "warning" if advice else "ok", found, advice)


def _with_advice(remark: Remark) -> str:
    return f"{remark.text} ({remark.advice})" if remark.advice else remark.text


def _speed(profile: Profile, measured: Measurement) -> Iterator[Finding]:
    """Compare the speed with what others report. A large difference is a warning only, because networks differ."""
    expected = profile.device.gmacs_per_s
    if expected is None or measured.fingerprint.mode != "device":
        return
    found = BENCH_GMACS / (measured.latency_p50_ms.value / 1e3)
    far = not 1 / FAR <= found / expected <= FAR
    advice = "check threads, governor and cooling, and whether this is the board of the profile" if far else ""
    yield Finding("speed", "warning" if far else "ok", f"{found:.1f} GMAC/s; expected about {expected:g}", advice)


def _bench_net() -> Graph:
    """Return a small network: three 3x3 convolutions of 16 to 64 channels on 32x32 pixels, 0.06 GMACs."""
    text = """<ir_version: 8, opset_import: ["" : 17]> bench (float[1,16,32,32] x) => (float[1,64,32,32] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1)
        b = Relu (a)
        c = Conv <pads=[1,1,1,1]> (b, w2)
        d = Relu (c)
        y = Conv <pads=[1,1,1,1]> (d, w3)
    }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (64, 16, 3, 3)), ("w2", (64, 64, 3, 3)), ("w3", (64, 64, 3, 3))):
        values = generator.standard_normal(shape).astype(np.float32) / np.float32(24)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return Graph(model.SerializeToString(), structure(model))
