"""Everywhere: ranks the providers and numbers of threads that a machine offers, by the latency of one file."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.network_input import NetworkInput
from pipeline.core.profile import Profile
from pipeline.core.progress import Progress, no_progress
from pipeline.core.providers import CPU, REMOTE
from pipeline.core.statistics import MEDIAN, Estimate, allow_drift, ratio_estimate
from pipeline.measuring.given_file import GivenFile
from pipeline.measuring.measure_files import HowToMeasure, allowing, check_provider, read_files
from pipeline.probe.connection import Notify
from pipeline.probe.interface import MeasurementOptions, Reference, Workload
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.stages.shared_device import connect

__all__ = ["Configuration", "Ranked", "Ranking", "compare_neighbours", "measure_everywhere", "thread_counts"]

EACH_UP_TO = 4
"""Every number of threads is tried up to this one. Above it, each is half as large again as the one before, or less."""


@dataclass(frozen=True)
class Configuration:
    """A provider with a number of threads."""

    provider: str
    threads: int

    def __str__(self) -> str:
        return f"{self.provider}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Ranked:
    """The measurement of one configuration."""

    configuration: Configuration
    measured: Measurement
    fallback: str | None
    """Which nodes other providers ran; None if there were none."""
    above: Estimate | None = None
    """Latency divided by that of the next faster configuration; None for the fastest."""
    doubted: bool = False
    """Whether one of the two has a remark that forbids a verdict."""

    @property
    def slower(self) -> bool:
        """Whether this configuration is slower than the one above it. If not, the order of the two is undecided."""
        return self.above is not None and self.above.low > 1 and not self.doubted


@dataclass(frozen=True)
class Ranking:
    """The configurations, the fastest first."""

    path: Path
    size_bytes: int
    inputs: tuple[NetworkInput, ...]
    fingerprint: Fingerprint
    """Of the fastest configuration, or of the profile's if no configuration can run the file."""
    period_ms: float
    ranked: tuple[Ranked, ...]
    failed: tuple[tuple[str, Failure], ...]
    """Configurations or providers that cannot run the file, with the reason."""


def measure_everywhere(
    profile: Profile,
    path: Path,
    how: HowToMeasure,
    notify: Notify = lambda text: None,
    progress: Progress = no_progress,
) -> Ranking:
    """Measure the file with every provider and number of threads on the profile's device, and rank them.

    Each configuration is measured in `probe.final_processes` rounds of one process. All take part in each round, in random order,
    so that slow minutes slow all of them. A provider that leaves nodes to others fails unless that is allowed. Raises the errors
    of `measure_files`.
    """
    (file,) = read_files([path], how)
    profile = allowing(profile, how)
    base = connect(_on_the_cpu(profile), Reference(file.graph, file.feeds), notify)
    try:
        probes, fallbacks, failed = _usable(base, profile, file, progress)
        load = Workload(how.period_ms, reference=False)
        found, failures = _in_rounds(probes, file, load, profile.probe.final_processes, progress)
        ranked = compare_neighbours(found, fallbacks)
        fingerprint = ranked[0].measured.fingerprint if ranked else base.fingerprint
    finally:
        base.close()
    return Ranking(path, file.size_bytes, file.inputs, fingerprint, how.period_ms, ranked, (*failed, *failures))


def _in_rounds(
    probes: dict[Configuration, WorkerProbe], file: GivenFile, load: Workload, rounds: int, progress: Progress
) -> tuple[dict[Configuration, Measurement], list[tuple[str, Failure]]]:
    """Measure the file with each probe in so many processes, and return the measurements and the failures."""
    found: dict[Configuration, Measurement] = {}
    failed: dict[Configuration, Failure] = {}
    generator = random.Random(0)  # noqa: S311 - the order of turns is no secret
    for number in range(rounds):
        options = MeasurementOptions(1, memory=not number, ahead=False)
        turns = [configuration for configuration in probes if configuration not in failed]
        generator.shuffle(turns)
        for turn, configuration in enumerate(turns):
            progress(number * len(turns) + turn, rounds * len(turns), str(configuration))
            measured = probes[configuration].measure(file.graph, options, load)
            if isinstance(measured, Failure):
                failed[configuration] = measured
            elif configuration in found:
                found[configuration] = found[configuration].joined(measured)
            else:
                found[configuration] = measured
    whole = {configuration: measured for configuration, measured in found.items() if configuration not in failed}
    return whole, [(str(configuration), failure) for configuration, failure in failed.items()]


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads to try on so many cores.

    >>> thread_counts(2), thread_counts(16)
    ([1, 2], [1, 2, 3, 4, 6, 8, 12, 16])
    """
    counts = list(range(1, min(cores, EACH_UP_TO) + 1))
    while counts[-1] < cores:
        step = counts[-1] // 2 if counts[-1] & (counts[-1] - 1) == 0 else counts[-1] // 3
        counts.append(min(cores, counts[-1] + step))
    return counts


def compare_neighbours(found: dict[Configuration, Measurement], fallbacks: dict[str, str | None]) -> tuple[Ranked, ...]:
    """Return the configurations, the fastest first, each compared with the next faster one. Processes of a round form a pair."""
    order = sorted(found, key=lambda configuration: found[configuration].latency_p50_ms.value)
    ranked = []
    for number, configuration in enumerate(order):
        this, others = found[configuration], fallbacks.get(configuration.provider)
        if not number:
            ranked.append(Ranked(configuration, this, others))
            continue
        above = found[order[number - 1]]
        ratio = ratio_estimate(this.samples.runs, above.samples.runs, MEDIAN)
        ratio = this.samples.allow(above.samples.allow(allow_drift(ratio) if ratio else None))
        ranked.append(Ranked(configuration, this, others, ratio, bool(this.doubts or above.doubts)))
    return tuple(ranked)


def _on_the_cpu(profile: Profile) -> Profile:
    """The profile with the CPU provider, which every machine has, and one thread."""
    runtime = profile.runtime.model_copy(update={"execution_provider": CPU, "threads": 1})
    return profile.model_copy(update={"runtime": runtime})


def _usable(
    base: WorkerProbe, profile: Profile, file: GivenFile, progress: Progress
) -> tuple[dict[Configuration, WorkerProbe], dict[str, str | None], list[tuple[str, Failure]]]:
    """A probe for each configuration, the fallbacks of each provider, and the providers that cannot run the file."""
    counts = _counts(profile, len(base.machine["cores"]))
    probes: dict[Configuration, WorkerProbe] = {}
    fallbacks: dict[str, str | None] = {}
    failed = [(name, Failure("load-error", reason)) for name, reason in base.machine.get("unusable", {}).items()]
    allow = profile.runtime.allow_fallback
    for provider in _offered(base.machine["providers"]):
        progress(0, 0, f"which nodes {provider} runs")
        here = {Configuration(provider, count): base.with_runtime(provider, count, allow_fallback=allow) for count in counts}
        if provider != CPU:
            one = next(iter(here.values()))
            nodes, fallbacks[provider] = check_provider(one, file, one.profile.runtime)
            if isinstance(nodes, Failure):
                failed.append((provider, nodes))
                continue
        probes |= here
    return probes, fallbacks, failed


def _offered(providers: Sequence[str]) -> list[str]:
    """The providers that compute on the machine, the CPU's first."""
    return sorted((name for name in providers if name not in REMOTE), key=lambda name: name != CPU)


def _counts(profile: Profile, cores: int) -> list[int]:
    """Numbers of threads on a machine with so many cores. In place of a board, no more than the board has."""
    return thread_counts(cores if profile.measures_its_device else min(cores, profile.cores))
