"""Int8: quantise the file, and ship int8 only if it is faster on the device and within the accuracy budget."""

import hashlib
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pipeline.core.artifact import PrecisionRow
from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.budget import Constraint, judge
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.run import Trial
from pipeline.core.statistics import Estimate
from pipeline.graph.int8 import SCHEMES, NotQuantised, Quantiser, Scheme
from pipeline.graph.pruned_model import PrunedModel
from pipeline.graph.structure import load_graph
from pipeline.probe.interface import MeasurementOptions, Probe, Workload
from pipeline.stages.context import RunContext
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.sequential_measurement import REPEATS, candidate_of, put_together
from pipeline.training.scoring import OnnxModule

__all__ = ["Quantised", "quantise"]

CALIBRATION_INPUTS = 128
AGREEMENT_INPUTS = 256
STEPS = 8
"""Largest number of attempts that keep more layers in float32. The last one keeps half of them."""
MOST_STEPS = 2 * len(SCHEMES) + STEPS + 4 + 1 + REPEATS
"""Largest number of files that are made or measured: schemes of both networks, attempts, the four files, and turns."""
ALLOWED_DROP_POINTS = 1.0
"""Points that int8 may lose against the float32 file if the budget has no accuracy_drop."""


@dataclass(frozen=True)
class Quantised:
    """The result of trying int8."""

    pruned: PrunedModel | None
    """The int8 file, if it is to ship instead of the float32 file."""
    said: tuple[str, ...]
    """What was shown of it, or why it does not ship."""
    rows: tuple[PrecisionRow, ...]
    """Dense and pruned, float32 and int8. Empty if int8 could not be made."""


def quantise(context: RunContext, fp32: PrunedModel, probe: Probe, dense: Candidate) -> Quantised:
    """Try int8 on `fp32`, the pruned, fine-tuned and proven file.

    Every scheme is timed in turn with `fp32` and scored on validation data; the journal records each result. If no faster file is
    accurate enough, the layers with the largest errors are kept in float32, more of them at each attempt. The best file is then
    judged again, with fresh runs and all validation data. `dense`: the dense network as `probe` measured it.
    """
    if probe.fingerprint.mode == "predicted":
        return Quantised(None, ("int8 was not tried: latencies are predicted from those of float32 files",), ())
    bench, constraints = _Bench(context, probe), context.constraints
    inputs = context.task.inputs(CALIBRATION_INPUTS)
    whole = context.builder.make(context.builder.space.dense())
    try:
        found = bench.search("int8", fp32, inputs, whole, STEPS)
        dense_int8 = bench.search("int8-dense", whole, inputs, whole, 0)
    except NotQuantised as problem:
        return Quantised(None, (f"int8 quantisation failed: {problem}",), ())
    memory = any(constraint.metric.needs_memory for constraint in constraints)
    sides = [
        bench.side("dense", whole, None, memory),
        bench.side("pruned", fp32, None, memory),
        bench.side("dense", dense_int8.pruned, dense_int8.scheme, memory),
        bench.side("pruned", found.pruned, found.scheme, memory),
    ]
    rows = tuple(row for row, _ in sides)
    ratio = bench.in_turn(found.pruned, fp32)
    complaint = _complaint(rows, ratio, constraints, sides[1][1], sides[3][1], dense)
    if complaint is not None:
        return Quantised(None, (f"int8 was tried ({found.scheme.text}) and is not shipped: {complaint}",), rows)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays_in(inputs))).hexdigest()[:16]
    decisions = _agreement(found.pruned, fp32, context.task.inputs(AGREEMENT_INPUTS))
    said = (
        f"int8: {found.scheme.text}, calibrated with {len(inputs)} training inputs (SHA-256 {digest}…)",
        f"int8 against the proven float32 file: median latency {_percent(ratio)}, in turns; validation score "
        f"{rows[3].score:.2f} against {rows[1].score:.2f}, and {rows[0].score:.2f} of the dense network; its outputs may "
        f"differ{decisions}",
    )
    return Quantised(found.pruned, said, rows)


@dataclass(frozen=True)
class _Asked:
    """One int8 file with its measurement and score."""

    scheme: Scheme
    candidate: Candidate
    quantiser: Quantiser
    source: PrunedModel

    @cached_property
    def pruned(self) -> PrunedModel:
        return _int8_model(self.quantiser, self.scheme, self.source)

    @property
    def ratio(self) -> Estimate | None:
        """Its median latency over that of its float32 file, timed in turn."""
        return self.candidate.measurement.relative_p50 if self.candidate.measurement else None

    @property
    def faster(self) -> bool:
        """Whether the whole interval of `ratio` lies below 1."""
        return self.ratio is not None and self.ratio.high < 1

    @property
    def score(self) -> float:
        return -math.inf if self.candidate.score is None else self.candidate.score


class _Bench:
    """Makes, times and scores int8 files."""

    def __init__(self, context: RunContext, probe: Probe) -> None:
        self._done = 0
        self._run, self._task, self._callback = context.run, context.task, context.callback
        self._constraints, self._probe, self._settings = context.constraints, probe, context.profile.probe

    def search(
        self, role: Literal["int8", "int8-dense"], source: PrunedModel, inputs: Inputs, whole: PrunedModel, steps: int
    ) -> _Asked:
        """The most accurate file that is faster and accurate enough; otherwise the most accurate of the faster files, or of all.

        Raises NotQuantised.
        """
        quantiser = Quantiser(source.data, arrays_in(inputs))
        measured: dict[str, Measurement | Failure] = {}
        asked, refused = [], []
        first = self._run.first_number if role == "int8" else 1  # the dense network is the same for all budgets
        for number, scheme in enumerate(SCHEMES, start=first):
            try:
                asked.append(self._ask(role, number, scheme, quantiser, source, measured))
            except NotQuantised as problem:
                refused.append(problem)
                self._callback.say(f"not quantised: {problem}")
        if not asked:
            raise refused[0]
        own = self._task.score(OnnxModule(source.data))
        least = _least(self._constraints, self._task.score(OnnxModule(whole.data)), own)

        def best() -> _Asked | None:
            return max((each for each in asked if each.faster and each.score >= least), key=_quality, default=None)

        found, start = best(), max((each for each in asked if each.faster), key=_quality, default=None)
        if found is None and start is not None and own >= least and steps:
            errors = quantiser.errors(start.scheme)
            worst = sorted(errors, key=lambda layer: errors[layer], reverse=True)
            counts = sorted({math.ceil(step * len(worst) / (2 * steps)) for step in range(1, steps + 1)})
            for number, count in enumerate(counts, start=first + len(SCHEMES)):
                scheme = Scheme(start.scheme.per_channel, start.scheme.method, tuple(sorted(worst[:count])))
                asked.append(self._ask(role, number, scheme, quantiser, source, measured))
                if (found := best()) is not None or not asked[-1].faster:
                    break  # enough layers are in float32, or so many that int8 is no faster
        return found or max(asked, key=lambda each: (each.faster, *_quality(each)))

    def side(
        self, network: Literal["dense", "pruned"], pruned: PrunedModel, scheme: Scheme | None, memory: bool
    ) -> tuple[PrecisionRow, Candidate]:
        """One of the four files, timed in turn with the dense float32 network, and scored on all validation data."""
        self._advance(f"measuring and validating the {network} network in {'int8' if scheme else 'float32'}")
        measured = self._probe.measure(graph_of(pruned), MeasurementOptions(self._settings.final_processes, memory))
        candidate = candidate_of(pruned, measured, self._task.validate(OnnxModule(pruned.data)))
        row = PrecisionRow(
            network=network,
            precision="int8" if scheme else "fp32",
            latency_p50=candidate.measurement.latency_p50_ms if candidate.measurement else None,
            relative_p50=candidate.measurement.relative_p50 if candidate.measurement else None,
            score=candidate.score,
            file_size_bytes=pruned.file_size_bytes,
            scheme=scheme.text if scheme else "",
        )
        self._callback.say(", ".join(text for text in row.texts if text))
        return row, candidate

    def in_turn(self, pruned: PrunedModel, source: PrunedModel) -> Estimate | None:
        """Median latency of one over the other's, with fresh runs until the faster one is known. None if a measurement fails."""
        total: Measurement | None = None
        for _ in range(1 + REPEATS):
            self._advance("timing int8 and float32 in turn")
            options = MeasurementOptions(self._settings.final_processes, memory=False)
            measured = self._probe.measure(graph_of(pruned), options, Workload(beside=graph_of(source)))
            if isinstance(measured, Failure):
                return None
            total = put_together(total, measured)
            ratio = total.relative_p50
            if not total.doubts and (ratio is None or ratio.high < 1 or ratio.low > 1):
                break
        return total.relative_p50 if total and not total.doubts else None

    def _advance(self, text: str) -> None:
        """Report that the next file is made or measured. `MOST_STEPS` counts all that may be needed."""
        self._callback.progress(self._done, MOST_STEPS, text)
        self._done += 1

    def _ask(
        self,
        role: Literal["int8", "int8-dense"],
        number: int,
        scheme: Scheme,
        quantiser: Quantiser,
        source: PrunedModel,
        measured: dict[str, Measurement | Failure],
    ) -> _Asked:
        """Read the result from the journal, or make, time and score the file. One file of each structure is timed."""
        self._advance(f"trying {scheme.text}")
        known = self._run.find(role, number)
        if known is None:
            started = time.monotonic()
            pruned = _int8_model(quantiser, scheme, source)
            if pruned.structure not in measured:
                options = MeasurementOptions(self._settings.processes, memory=False)
                measured[pruned.structure] = self._probe.measure(graph_of(pruned), options, Workload(beside=graph_of(source)))
            candidate = candidate_of(pruned, measured[pruned.structure], self._task.score(OnnxModule(pruned.data)))
            known = Trial(role, number, candidate, round(time.monotonic() - started, 3))
            self._run.record(known)
        found = _Asked(scheme, known.candidate, quantiser, source)
        if known.candidate.measurement:
            measured.setdefault(known.candidate.structure, known.candidate.measurement)
        failure = known.candidate.failure
        latency = f"{failure.kind}: {failure.detail}" if failure else f"latency {_percent(found.ratio)}"
        name = "dense" if role == "int8-dense" else "pruned"
        self._callback.say(f"{name}, {scheme.text}: {latency} of float32, score {found.score:.2f}")
        return found


def _complaint(
    rows: tuple[PrecisionRow, ...],
    ratio: Estimate | None,
    constraints: tuple[Constraint, ...],
    fp32: Candidate,
    int8: Candidate,
    dense: Candidate,
) -> str | None:
    """Why int8 does not ship; None if it does. `rows`: dense and pruned in float32, dense and pruned in int8."""
    if int8.failure or ratio is None:
        return (
            f"it could not be measured ({int8.failure.kind}: {int8.failure.detail})"
            if int8.failure
            else "it could not be measured"
        )
    if not ratio.high < 1:
        return f"it is not faster: median latency {_percent(ratio)} of the float32 file's, in turns"
    least = _least(constraints, rows[0].score or 0.0, rows[1].score or 0.0)
    if (rows[3].score or 0.0) < least:
        return f"its validation score is {rows[3].score:.2f}, below the {least:.2f} that the budget requires"
    searched = tuple(constraint for constraint in constraints if not constraint.metric.after_finetuning)
    verdict, before = judge(searched, int8, dense), judge(searched, fp32, dense)
    order = ("within", "undecided", "over")
    if order.index(verdict) > order.index(before):
        return f"the verdict on the other limits would be {verdict}, but is {before} with float32"
    return None


def _least(constraints: tuple[Constraint, ...], dense_score: float, fp32_score: float) -> float:
    """The lowest score that the budget allows. Without an accuracy_drop, ALLOWED_DROP_POINTS below the float32 file."""
    drop = next((constraint.limit for constraint in constraints if constraint.metric.key == "accuracy_drop"), None)
    return fp32_score - ALLOWED_DROP_POINTS if drop is None else dense_score - drop


def _agreement(pruned: PrunedModel, source: PrunedModel, inputs: Inputs) -> str:
    """On how many of `inputs` the largest output of both files is at the same index. Empty for several outputs."""
    first, second = (outputs_of(OnnxModule(each.data)(inputs)) for each in (pruned, source))
    if len(first) > 1:
        return ""
    ours, theirs = (each[0].reshape(len(inputs), -1).argmax(1) for each in (first, second))
    return f", and its decision is the same on {int((ours == theirs).sum())} of {len(inputs)} real inputs"


def _int8_model(quantiser: Quantiser, scheme: Scheme, source: PrunedModel) -> PrunedModel:
    graph = load_graph(quantiser.make(scheme))
    return PrunedModel(source.plan, graph, source.example, lambda: source.module, exact=False)


def _quality(asked: _Asked) -> tuple[float, float]:
    """The score, and for equal scores the speed. With few validation images, several schemes often have the same score."""
    return asked.score, -asked.ratio.value if asked.ratio else -math.inf


def _percent(ratio: Estimate | None) -> str:
    return f"{100 * ratio.value:.1f} % [{100 * ratio.low:.1f} – {100 * ratio.high:.1f}]" if ratio else "not known"
