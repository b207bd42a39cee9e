"""Compute device: where torch runs networks in this process. It is chosen once, and everything that runs a network asks here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.errors import ComputeDeviceError

__all__ = ["compute_device", "computing_on", "device_of", "find_device", "placed", "work_factor"]

REFERENCE_MACS_PER_S = 1e11
"""Multiply-accumulates per second of two processor cores in training, which the budgets of work were made for."""
CORES_PER_MULTIPROCESSOR, CLOCK_HZ, USED = 128, 1.5e9, 0.05
"""Rough figures of a CUDA GPU. Small networks use only some of it."""

_chosen: list[torch.device] = []


def find_device(wanted: str) -> torch.device:
    """Return the device that `wanted` names: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises ComputeDeviceError if there is no such device, or if it does not work.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    named = re.fullmatch(r"auto|cuda(?::([0-9]{1,3}))?", wanted)
    if named is None:
        raise ComputeDeviceError(f"--device: got '{wanted}'; give auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(named[1] or 0)
    if number >= count:
        found = f"torch finds {count} CUDA devices" if count else "torch finds no CUDA device here"
        raise ComputeDeviceError(
            f"--device {wanted}: {found}; use --device auto, or install a torch that supports the GPU and its driver"
        )
    return torch.device("cuda", number)


def compute_device() -> torch.device:
    """Return the device of the innermost `computing_on`. Without one, a GPU if there is one."""
    return _chosen[-1] if _chosen else find_device("auto")


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Let networks run on `device` inside the block, with the same results for the same seed."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    _chosen.append(device)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        _chosen.pop()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the parameters and buffers of `module`; the processor if it has none, such as an ONNX file."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


@contextmanager
def placed(module: nn.Module) -> Iterator[torch.device]:
    """Move `module` to the compute device inside the block, in place, and return it to its own device afterwards.

    Yields the device of its tensors in the block. A module without tensors stays.
    """
    own, wanted = device_of(module), compute_device()
    moves = own != wanted and any(True for _ in (*module.parameters(), *module.buffers()))
    if moves:
        module.to(wanted)
    try:
        yield wanted if moves else own
    finally:
        if moves:
            module.to(own)


def work_factor(device: torch.device) -> float:
    """Return how many times as much work pays on `device` as on two processor cores.

    The factor of a GPU follows from its number of multiprocessors and is not timed, so the same device always gets the same work.
    It is 1 on every processor, so that a search does not depend on the number of cores.
    """
    if device.type != "cuda":
        return 1.0
    cores = torch.cuda.get_device_properties(device).multi_processor_count * CORES_PER_MULTIPROCESSOR
    return max(1.0, cores * CLOCK_HZ * USED / REFERENCE_MACS_PER_S)
