"""Does scoring one candidate on a free core disturb the timed runs of another? Run: python benchmarks/beside.py

One file is timed against itself with one thread. In turn, the other core is idle, or torch works on it as in a search whose
profile leaves cores free.
"""

import platform
from concurrent.futures import ThreadPoolExecutor

import click
import numpy as np
import onnxruntime
import torch

from pipeline.core.measurement import Measurement
from pipeline.core.profile import available_cores, load_profile
from pipeline.graph.export import export, stripped
from pipeline.graph.structure import structure
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.probe.local import LocalProbe
from pipeline.training.load import find_model
from pipeline.training.threads import confined


@click.command()
@click.option("--model", default="resnet20", show_default=True)
@click.option("--rounds", default=15, show_default=True)
def main(model: str, rounds: int) -> None:
    """Print the medians of both, and the median of their ratios."""
    profile = load_profile("local")
    runtime = profile.runtime.model_copy(update={"threads": 1})
    profile = profile.model_copy(update={"runtime": runtime, "probe": profile.probe.model_copy(update={"retries": 0})})
    module, example = find_model(model).factory().eval(), torch.randn(1, 3, 32, 32)
    graph = stripped(export(module, example, 18, 9), 9)
    net = Graph(graph.SerializeToString(), structure(graph))
    probe = LocalProbe(profile, Reference(net, example.numpy()))
    free = [core for core in available_cores() if core not in probe.busy_cores]
    batch = torch.randn(64, 3, 32, 32)
    alone, beside = [], []

    def p50_ms() -> float:
        found = probe.measure(net, MeasurementOptions(2, memory=False))
        assert isinstance(found, Measurement)
        return found.latency_p50_ms.value

    try:
        p50_ms()
        for _ in range(rounds):
            alone.append(p50_ms())
            with ThreadPoolExecutor(1) as pool, confined(free), torch.inference_mode():
                measuring = pool.submit(p50_ms)
                while not measuring.done():
                    module(batch)
                beside.append(measuring.result())
    finally:
        probe.close()
    ratios = np.array(beside) / np.array(alone)
    low, high = np.percentile(ratios, [25, 75])
    print(f"{platform.machine()}, {len(available_cores())} cores, onnxruntime {onnxruntime.__version__}, {model}, one thread")
    print(f"p50 alone {np.median(alone):.3f} ms, beside scoring {np.median(beside):.3f} ms: ", end="")
    print(f"ratio {np.median(ratios):.3f} (middle half {low:.3f} to {high:.3f}, {rounds} pairs)")


if __name__ == "__main__":
    main()
