"""Scoring: the accuracy of a network or an ONNX file, and re-estimation of BatchNorm statistics."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.network_form import TensorNetwork
from pipeline.core.onnx_outputs import open_session
from pipeline.core.progress import Progress, count_images, no_progress
from pipeline.data.images import Images
from pipeline.system.thread_settings import computing_threads
from pipeline.training.execution_mode import layout_of
from pipeline.training.statistics_shift import Shifts, difference_of, norms_of, shift_statistics

__all__ = [
    "BATCH",
    "CALIBRATION_BATCHES",
    "OnnxModule",
    "accuracy",
    "calibration_images",
    "hits",
    "measure_shifts",
    "recalibrate",
]

BATCH = 256
CALIBRATION_BATCHES = 4
"""Number of batches of 256 training images from which BatchNorm statistics are estimated."""


def accuracy(
    module: nn.Module,
    images: Images,
    batch: int | None = None,
    between: Callable[[], None] = lambda: None,
    progress: Progress = no_progress,
) -> float:
    """Return the top-1 accuracy of `module` in percent. Sets evaluation mode.

    Calls `between` before each batch, and `progress` after it with the number of images so far. `batch` is the number of
    images in a batch; None: as many as memory allows, see `Images.evaluation_size`.
    """
    return 100.0 * float(hits(module, images, batch, between, progress).mean())


def hits(
    module: nn.Module,
    images: Images,
    batch: int | None = None,
    between: Callable[[], None] = lambda: None,
    progress: Progress = no_progress,
) -> NDArray[np.bool_]:
    """Return whether each image is classified correctly, (images,), in the order of `images`; see `accuracy`."""
    module.eval()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    found = []
    with torch.inference_mode():
        for batch_images, labels in count_images(images.batches(batch), len(images), "scoring", progress):
            between()
            pixels = batch_images.to(device, memory_format=layout_of(module))
            found.append((module(pixels).argmax(1).cpu() == labels).numpy())
    return np.concatenate(found)


def calibration_images(train: Images, seed: int) -> Images:
    """Return the training images for BatchNorm statistics. Scoring and fine-tuning use the same ones."""
    return train.sample(CALIBRATION_BATCHES * BATCH, seed)


def recalibrate(module: nn.Module, batches: Iterable[Inputs]) -> None:
    """Re-estimate BatchNorm's running statistics from `batches` of inputs, (N, C, H, W), in place.

    The activations of a pruned network no longer have the statistics of training. Without this step, its accuracy is at
    chance level, and all plans look alike (Li et al., EagleEye, arXiv 2007.02491, section 3.2). The estimates are corrected by
    the shifts that are stored in `module`, if there are any; see `pipeline.training.statistics_shift`.
    """
    norms = list(norms_of(module).values())
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
                continue  # in a layer with maps of one pixel, one image has no variance
            seen += len(pixels)
            for norm in norms:
                norm.momentum = len(pixels) / seen  # the average over all images, in which a short last batch counts less
            module(pixels.contiguous(memory_format=layout_of(module)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    shift_statistics(module)


def measure_shifts(dense: nn.Module, batches: Iterable[Inputs]) -> Shifts:
    """Estimate the statistics of a copy of `dense` from `batches` of inputs, and return how its own ones differ from them."""
    estimated = copy.deepcopy(dense)
    recalibrate(estimated, batches)
    return difference_of(dense, estimated)


class OnnxModule(TensorNetwork):
    """An ONNX file with batch size 1, wrapped as a network that takes batches. For evaluation only."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._session = open_session(data, threads=computing_threads())
        self.input_names = tuple(each.name for each in self._session.get_inputs())
        self.output_names = tuple(each.name for each in self._session.get_outputs())

    def forward(self, *inputs: Inputs, **named: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the file on each sample of `inputs`, (N, C, H, W), which are given in order, by name, or as a `Batch`.

        Returns the output, (N, ...), or a tuple if there are several.
        """
        rows = [tensor.detach().cpu().contiguous().numpy() for tensor in self.ordered(inputs, named)]
        feeds = (dict(zip(self.input_names, (row[i : i + 1] for row in rows), strict=True)) for i in range(len(rows[0])))
        answers = zip(*(self._session.run(None, feed) for feed in feeds), strict=True)
        found = tuple(torch.from_numpy(np.concatenate([np.asarray(each) for each in parts])) for parts in answers)
        return found[0] if len(found) == 1 else found
