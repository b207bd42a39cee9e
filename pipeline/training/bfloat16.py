"""bfloat16: use it for training and for scoring plans where it is faster. Reported accuracies are computed in float32.

A GPU that has no bfloat16 scores plans in float16. It trains in float32, because gradients in float16 would need a scaled loss.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["mixed_precision"]

TRIALS = 8
DEPTHWISE_TRIALS = 3
GAIN = 0.9
"""Largest share of the float32 time that bfloat16 may take. The gain must justify the lost precision."""


@contextlib.contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """Return an autocast to bfloat16 that is active only where the hardware supports bfloat16 and runs it faster.

    Depthwise convolutions that learn on a CPU keep float32 where that is faster. Without gradients, a GPU may use float16.
    """
    kind = torch.bfloat16 if _gains(device.type) else None
    if kind is None and device.type == "cuda" and not torch.is_grad_enabled():
        kind = _float16_of(torch.cuda.get_device_capability(device))
    with contextlib.ExitStack() as stack:
        if kind is not None:
            stack.enter_context(torch.autocast(device.type, kind))
            if device.type == "cpu":
                stack.enter_context(_Depthwise())
        yield


def _float16_of(capability: tuple[int, int]) -> torch.dtype | None:
    """float16 for a GPU that computes it faster: those with tensor cores have a compute capability of 7.0 or more."""
    return torch.float16 if capability >= (7, 0) else None


class _Depthwise(TorchFunctionMode):
    """Computes depthwise convolutions in float32 where their gradients are slower in bfloat16, as for kernels of 5 x 5."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and torch.is_grad_enabled() and len(args) == 7 and not kwargs:
            pixels, weight, bias, stride, padding, dilation, groups = args
            if groups > 1 and weight.shape[1] == 1 and not _depthwise_gains(tuple(weight.shape[2:]), _pair(stride)):
                with torch.autocast("cpu", enabled=False):
                    learned = None if bias is None else bias.float()
                    answer: Tensor = func(pixels.float(), weight.float(), learned, stride, padding, dilation, groups)
                return answer.to(torch.bfloat16)
        return func(*args, **(kwargs or {}))


def _pair(stride: int | Sequence[int]) -> tuple[int, ...]:
    return (stride,) if isinstance(stride, int) else tuple(stride)


@functools.cache
def _gains(device: str) -> bool:
    """Whether bfloat16 is faster. CPUs are timed, because some have the instructions but run them slower. Takes 0.1 s, once."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if not any(check is not None and check() for check in checks):
        return False
    return _is_faster(lambda bfloat16: _block_seconds(device, bfloat16), TRIALS)


@functools.cache
def _depthwise_gains(kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a depthwise convolution learns faster in bfloat16. Takes some hundredths of a second, once for each shape."""
    return _is_faster(lambda bfloat16: _depthwise_seconds(kernel, stride, bfloat16), DEPTHWISE_TRIALS)


def _is_faster(seconds: Callable[[bool], float], trials: int) -> bool:
    """Whether bfloat16 is faster. `seconds` maps whether it is used to a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread, because on a busy machine several would wait for each other
    try:
        pairs = [(seconds(True), seconds(False)) for _ in range(trials)]
    finally:
        torch.set_num_threads(threads)
    return min(with_it for with_it, _ in pairs) < GAIN * min(without for _, without in pairs)


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


def _depthwise_seconds(kernel: tuple[int, ...], stride: tuple[int, ...], bfloat16: bool) -> float:
    """Processor time of this thread in seconds for a depthwise convolution, forward and backward."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        kind, padding = torch.bfloat16 if bfloat16 else torch.float32, [side // 2 for side in kernel]
        weight = torch.ones(64, 1, *kernel, dtype=kind, requires_grad=True)
        pixels = torch.ones(8, 64, 28, 28, dtype=kind).to(memory_format=torch.channels_last).requires_grad_()
        started = time.thread_time()
        answer = F.conv2d(pixels, weight, None, stride, padding, 1, 64)
        answer.backward(torch.ones_like(answer))
        return time.thread_time() - started
