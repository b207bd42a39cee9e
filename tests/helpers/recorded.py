"""Run directories whose every figure is given, as a run leaves them: killed, or finished with an artifact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.candidates import candidate
from pipeline.core.artifact import Artifact, Row, dump_artifact
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan, NotPrunable
from pipeline.core.run import Trial, open_run
from pipeline.core.statistics import Estimate

JOB: dict[str, Any] = {
    "model": "digits",
    "profile": {"device": {"name": "Raspberry Pi 4"}},
    "budget": {"latency_p50": "50.0 %", "accuracy_drop": "2.00 points"},
    "searcher": "random",
    "trials": 60,
    "seed": 0,
}
CHANNELS = {"stem": 64, "block1.conv1": 96, "block1.conv2": 96, "block2.conv1": 128}
POINTS = ((0.8, 96.0), (0.9, 97.0), (1.2, 97.5), (0.6, 90.0))
"""(latency in ms, validation score) of each trial. The dense network takes 2 ms."""
Widths = dict[str, tuple[int, int, int]]


def planned(latency_ms: float, score: float, structure: str = "s", machine: str = "cpu", kept: float = 0.5) -> Candidate:
    """A candidate that keeps a share of all channels, with a little noise in its latency."""
    found = candidate(latency_ms=latency_ms, score=score)
    measured = found.measurement
    assert isinstance(measured, Measurement)
    process = measured.processes[0]
    runs = tuple(
        tuple(run * (1 + 0.01 * ((block + place) % 5)) for place, run in enumerate(each))
        for block, each in enumerate(process.latency_ms)
    )
    measured = replace(
        measured,
        processes=(replace(process, latency_ms=runs), process),
        fingerprint=replace(measured.fingerprint, machine=machine),
    )
    plan = ChannelPlan.of({name: int(kept * channels) for name, channels in CHANNELS.items()})
    return replace(found, plan=plan, structure=structure, measurement=measured)


def write_run(
    folder: Path,
    *,
    shipped: tuple[float, float] | None = None,
    points: tuple[tuple[float, float], ...] = POINTS,
    job: dict[str, Any] | None = None,
    dense: str = "s",
    facts: dict[str, str] | None = None,
) -> Path:
    """A run directory. shipped: latency in ms and test score of the shipped file; without it, the run is unfinished. dense: the
    structure of the dense network. facts: `data` and `weights`, in place of "digits" and "w"; `machine`, in place of "cpu".
    """
    known = {"data": "digits", "weights": "w", "machine": "cpu", **(facts or {})}
    whole = planned(2.0, 97.0, dense, known["machine"], kept=1.0)
    with open_run(folder, {**JOB, **(job or {})}) as run:
        run.bind("inputs", {"data": known["data"], "weights": known["weights"]})
        run.record_choice("widths are multiples of 8")
        with run.phase("measure"):
            run.record(Trial("dense", 1, whole, 0.25))
        with run.phase("search"):
            for number, (latency_ms, score) in enumerate(points, start=1):
                run.record(Trial("search", number, planned(latency_ms, score, kept=latency_ms / 2), 0.25))
    if shipped:
        (folder / "artifact").mkdir()
        found = finished(whole, planned(*shipped, machine=known["machine"], kept=shipped[0] / 2), {**JOB, **(job or {})})
        (folder / "artifact" / "artifact.json").write_bytes(dump_artifact(found))
    return folder


def finished(dense: Candidate, shipped: Candidate, job: dict[str, Any] | None = None, widths: Widths | None = None) -> Artifact:
    """The artifact of a run that ships `shipped`."""
    ratio = shipped.measurement.relative_p50 if shipped.measurement else None
    rows = (
        Row("latency_p50", "latency p50", "ms", 2.0, 0.8, ratio, 0.5, True, "within"),
        Row(
            "accuracy_drop",
            "accuracy (test)",
            "points",
            dense.score,
            shipped.score,
            None,
            2.0,
            False,
            "within",
            Estimate(0, -1, 1),
        ),
        Row("file_size", "file size", "bytes", 2e6, 1e6, Estimate.exact(0.5), None, False, None),
    )
    kept = dict(shipped.plan)
    return Artifact(
        format=1,
        created="2026-05-01T12:00:00+00:00",
        command=("compress", "--target", "raspberrypi"),
        job=job or JOB,
        profile={},
        data="digits",
        versions={"torch": "2.15.0", "onnx": "1.23.2"},
        files={},
        verdict="within",
        rows=rows,
        dense=dense,
        shipped=shipped,
        validation={"dense": 97.0, "before_finetuning": 96.0, "after_finetuning": 96.5},
        proofs=("same answers",),
        notices=("the machine was busy",),
        widths=widths or {name: (kept[name], channels, 1) for name, channels in CHANNELS.items()},
        frozen=(NotPrunable("linear", "its channels are the network's output"),),
        phase_seconds={"search": 61.0, "fine-tune": 30.0},
    )
