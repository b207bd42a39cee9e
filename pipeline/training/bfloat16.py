"""bfloat16: use it for training and for scoring plans where it is faster. Reported accuracies are computed in float32."""

import contextlib
import functools
import time

import torch
from torch.nn import functional as F

__all__ = ["mixed_precision"]

TRIALS = 8
GAIN = 0.9
"""Largest share of the float32 time that bfloat16 may take. The gain must justify the lost precision."""


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return an autocast to bfloat16 that is active only where the hardware supports bfloat16 and runs it faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_gains(device.type))


@functools.cache
def _gains(device: str) -> bool:
    """Whether bfloat16 is faster. CPUs are timed, because some have the instructions but run them slower. Takes 0.1 s, once."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if not any(check is not None and check() for check in checks):
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread, because on a busy machine several would wait for each other
    try:
        trials = [(_block_seconds(device, True), _block_seconds(device, False)) for _ in range(TRIALS)]
    finally:
        torch.set_num_threads(threads)
    return min(with_it for with_it, _ in trials) < GAIN * min(without for _, without in trials)


def _block_seconds(device: str, bfloat16: bool) -> float:
    """Processor time of this thread in seconds for convolution, BatchNorm and ReLU, forward and backward."""
    # the first caller may have switched off gradients, or use inference mode
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.ones(64, 64, 3, 3, requires_grad=True)  # no random numbers, so random states do not change
        pixels = torch.ones(16, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
        started = time.thread_time()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            answer = F.relu(F.batch_norm(F.conv2d(pixels, weight, padding=1), None, None, training=True))
        answer.float().mean().backward()
        return time.thread_time() - started
