"""Scoring: how well a network, or an ONNX file in a network's clothes, answers; and its BatchNorm made honest again."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.onnx_outputs import open_session
from pipeline.data.images import Images
from pipeline.system.thread_settings import computing_threads
from pipeline.training.execution_mode import layout_of

__all__ = ["BATCH", "CALIBRATION_BATCHES", "OnnxModule", "accuracy", "calibration_images", "hits", "recalibrate"]

BATCH = 256
CALIBRATION_BATCHES = 4
"""Of 256 training images, from which BatchNorm statistics are estimated."""


def accuracy(module: nn.Module, images: Images, batch: int = BATCH, between: Callable[[], None] = lambda: None) -> float:
    """Top-1 accuracy of `module` in percent; it runs in evaluation mode and is left in it. Calls `between` batches."""
    return 100.0 * float(hits(module, images, batch, between).mean())


def hits(module: nn.Module, images: Images, batch: int = BATCH, between: Callable[[], None] = lambda: None) -> NDArray[np.bool_]:
    """(images,) whether the largest output is that of the label, in the order of `images`; see `accuracy`."""
    module.eval()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    found = []
    with torch.inference_mode():
        for batch_images, labels in images.batches(batch):
            between()
            pixels = batch_images.to(device, memory_format=layout_of(module))
            found.append((module(pixels).argmax(1).cpu() == labels).numpy())
    return np.concatenate(found)


def calibration_images(train: Images, seed: int) -> Images:
    """The training images from which BatchNorm statistics are estimated, the same for scoring and for fine-tuning."""
    return train.sample(CALIBRATION_BATCHES * BATCH, seed)


def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew from `batches` of (N, C, H, W), in place.

    A narrowed network's activations no longer have the statistics it was trained with; without this step it answers
    at chance and every plan looks alike (Li et al., EagleEye, arXiv 2007.02491, section 3.2).
    """
    norms = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    seen = 0
    with torch.no_grad():
        for pixels in batches:
            if len(pixels) == 1 and seen:
                continue  # where a layer sees one pixel, one image has no variance
            seen += len(pixels)
            for norm in norms:
                norm.momentum = len(pixels) / seen  # the average over all images: a short last batch counts for what it is
            module(pixels.contiguous(memory_format=layout_of(module)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


class OnnxModule(nn.Module):
    """An ONNX file that takes one input at a time, as a module that takes batches; for evaluation only."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._session = open_session(data, threads=computing_threads())
        self._input = self._session.get_inputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, ...), one by one."""
        rows = inputs.contiguous().numpy()
        answers = [np.asarray(self._session.run(None, {self._input: rows[i : i + 1]})[0]) for i in range(len(rows))]
        return torch.from_numpy(np.concatenate(answers))
