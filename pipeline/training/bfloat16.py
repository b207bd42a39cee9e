"""bfloat16: whether forward passes gain by it here. In training and in scoring plans; what is promised is counted in float32."""

import contextlib
import functools
import time

import torch
from torch.nn import functional as F

__all__ = ["mixed_precision"]

TRIALS = 8
GAIN = 0.9
"""Of the time in float32: what bfloat16 may take, to be worth its digits."""


def mixed_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 where the hardware computes in it, and faster; emulated, it would be slower than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_gains(device.type))


@functools.cache
def _gains(device: str) -> bool:
    """Processors are asked and timed: some have the instructions and are slower with them. Once in a process, 0.1 s."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if not any(check is not None and check() for check in checks):
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # by the time of this thread alone: on a busy machine several wait for each other
    try:
        trials = [(_block_seconds(device, True), _block_seconds(device, False)) for _ in range(TRIALS)]
    finally:
        torch.set_num_threads(threads)
    return min(with_it for with_it, _ in trials) < GAIN * min(without for _, without in trials)


def _block_seconds(device: str, bfloat16: bool) -> float:
    """Processor time of this thread for a convolution, batch normalisation and ReLU, forwards and backwards."""
    # whoever asks first may have gradients switched off, or be in inference mode
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.ones(64, 64, 3, 3, requires_grad=True)  # nothing is drawn: seeds stay where they are
        pixels = torch.ones(16, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
        started = time.thread_time()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            answer = F.relu(F.batch_norm(F.conv2d(pixels, weight, padding=1), None, None, training=True))
        answer.float().mean().backward()
        return time.thread_time() - started
