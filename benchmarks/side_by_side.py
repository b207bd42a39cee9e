"""How much two concurrent runs slow each other down, with threads that sleep while they wait and with threads that spin.

python benchmarks/side_by_side.py [ROUNDS]

Each process computes for a few seconds: batches of MobileNetV2 at 224 pixels, as in scoring, or training steps of the demo
network, whose operations are short. One process alone and two at once take turns. The medians of ROUNDS are printed in wall time
and in processor time. Other work on the machine lengthens wall time, but hardly processor time.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pipeline  # noqa: F401 - it settles how threads wait, before torch is imported

SECONDS = 5.0
POLICIES = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}
"""The policy "spin" is the default of GNU's OpenMP runtime."""
WORKLOADS = ("mobilenet", "digits")


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for workload in WORKLOADS:
            for policy in POLICIES:
                for count in (1, 2):
                    found.setdefault((workload, policy, count), []).extend(at_once(workload, policy, count))
    print("| network | waiting threads | one, ms a step | two at once | times | one, processor ms a step | two at once | times |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for workload in WORKLOADS:
        for policy in POLICIES:
            cells = []
            for kind in (0, 1):
                one, two = (statistics.median(each[kind] for each in found[workload, policy, count]) for count in (1, 2))
                cells.append(f"{one:.1f} | {two:.1f} | {two / one:.2f}")
            print(f"| {workload} | {policy} | {' | '.join(cells)} |")


def at_once(workload: str, policy: str, count: int) -> list[tuple[float, float]]:
    """Milliseconds per step in each of `count` processes, in wall time and in processor time."""
    command = (sys.executable, __file__, "--work", workload)
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **POLICIES[policy]}, text=True) for _ in range(count)
    ]
    answers = [each.communicate()[0].split() for each in started]
    return [(float(wall), float(processor)) for wall, processor in answers]


def work(workload: str) -> tuple[float, float]:
    """Milliseconds per step of this process alone, in wall time and in processor time."""
    step = _steps(workload)
    step()
    steps, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < SECONDS:
        step()
        steps += 1
    return 1e3 * (time.perf_counter() - started) / steps, 1e3 * (time.process_time() - used) / steps


def _steps(workload: str) -> Callable[[], None]:
    import torch  # noqa: PLC0415 - the process that only waits for others needs no torch
    import torchvision  # noqa: PLC0415

    from pipeline.training.load import find_model  # noqa: PLC0415

    torch.manual_seed(0)
    if workload == "mobilenet":
        network = torchvision.models.mobilenet_v2(weights=None).eval().to(memory_format=torch.channels_last)
        images = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)

        def score() -> None:
            with torch.inference_mode():
                network(images)

        return score
    demo = find_model("digits").factory(10)
    digits = torch.randn(64, 1, 8, 8)
    optimizer = torch.optim.SGD(demo.parameters(), 1e-3)

    def train() -> None:
        optimizer.zero_grad()
        demo(digits).square().mean().backward()
        optimizer.step()

    return train


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(*work(sys.argv[2]))
    else:
        main()
