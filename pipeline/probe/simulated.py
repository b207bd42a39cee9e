"""SimulatedProbe: a cost model in place of a clock, for dry runs and tests. The same file always gives the same figures."""

import hashlib
import math

import numpy as np
import onnx

from pipeline.core.measurement import Failure, Fingerprint, Measurement, Memory, TimedProcess
from pipeline.core.profile import Profile
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload

__all__ = ["SimulatedProbe", "simulated_latency_ms"]

MACS_PER_MS = 2e6
INT8_SPEEDUP = 2
NODE_OVERHEAD_MS = 0.004
LANES = 8
"""Number of channels in one vector. A partly filled vector costs as much as a full one."""
NOISE = 0.01
BASELINE_BYTES = 48 * 2**20


class SimulatedProbe:
    """See `Probe`. Nothing is run. Latency follows from the operations of each node and jumps at every full vector."""

    def __init__(self, profile: Profile, reference: Reference) -> None:
        self._profile = profile
        self._reference_ms = simulated_latency_ms(onnx.load_model_from_string(reference.graph.data), profile.threads)

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of a simulated machine."""
        return Fingerprint(
            mode="simulated",
            device=self._profile.device.name,
            machine="cost model",
            architecture=self._profile.architecture,
            onnxruntime="none",
            threads=self._profile.threads,
            profile_threads=self._profile.threads,
            settings=(("macs_per_ms", str(MACS_PER_MS)), ("lanes", str(LANES))),
        )

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Empty, because nothing is timed."""
        return ()

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """See `Probe.measure`. The noise depends on the graph and on `options`."""
        try:
            model = onnx.load_model_from_string(graph.data)
        except Exception:  # protobuf has its own error types; any error means that this is not an ONNX file
            return Failure("load-error", "not an ONNX file")
        latency_ms = simulated_latency_ms(model, self._profile.threads)
        beside_ms = self._reference_ms
        if load and load.beside:
            beside_ms = simulated_latency_ms(onnx.load_model_from_string(load.beside.data), self._profile.threads)
        weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        # spelled out, so that renaming a class does not change the noise of a dry run
        asked = f"Effort(processes={options.processes}, memory={options.memory}, fresh={options.fresh})"
        seed = hashlib.sha256(f"{graph.structure} {asked}".encode()).digest()
        generator = np.random.default_rng(list(seed))
        probe = self._profile.probe
        blocks = max(1, probe.runs // probe.block_runs)

        def runs(middle_ms: float) -> tuple[tuple[float, ...], ...]:
            noise = generator.gamma(2.0, NOISE / 2, size=(blocks, probe.block_runs))
            return tuple(tuple(round(float(run), 6) for run in block) for block in middle_ms * (1 + noise))

        timed = tuple(
            TimedProcess(
                latency_ms=runs(latency_ms),
                reference_latency_ms=runs(beside_ms),
                session_creation_ms=round(2 + weights / 2**20, 3),
                first_run_ms=round(2 * latency_ms, 6),
                cpu_ms_per_run=round(latency_ms, 6),
                preemptions=0,
                timed_ms=round(probe.runs * (latency_ms + beside_ms), 1),
            )
            for _ in range(options.processes)
        )
        memory = Memory(BASELINE_BYTES, BASELINE_BYTES + weights, BASELINE_BYTES + 2 * weights)
        return Measurement(self.fingerprint, graph.structure, timed, memory)

    def close(self) -> None:
        """Do nothing: there are no processes."""


def simulated_latency_ms(model: onnx.ModelProto, threads: int) -> float:
    """Return the latency of a graph in ms by the cost model, without noise."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    dims = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    int8 = {
        node.output[0]: weights[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    }
    weights |= int8
    total = 0.0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue  # a runtime fuses them with the operators next to them
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        macs = 0.0
        if node.op_type == "Conv" and shape:
            # padding channels of a vector are computed here and read by the next layer
            inputs = _full_vectors(shape[1]) if shape[1] > 1 else 1
            macs = _full_vectors(shape[0]) * inputs * math.prod(shape[2:]) * math.prod(dims.get(node.output[0], [0, 0])[2:])
        elif node.op_type in ("Gemm", "MatMul") and shape:
            macs = math.prod(shape)
        speed = MACS_PER_MS * (INT8_SPEEDUP if len(node.input) > 1 and node.input[1] in int8 else 1)
        total += NODE_OVERHEAD_MS + macs / speed / threads
    return total


def _full_vectors(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES
