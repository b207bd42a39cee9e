"""Scoring: the accuracy of a network or an ONNX file, and re-estimation of BatchNorm statistics."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import placed
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
    "Score",
    "accuracy",
    "calibration_images",
    "hits",
    "is_clear_loser",
    "measure_shifts",
    "recalibrate",
]

BATCH = 256
CALIBRATION_BATCHES = 4
"""Number of batches of 256 training images from which BatchNorm statistics are estimated."""
LEAST_SHARE = 0.6
"""Share of the scoring images on which even a clear loser is scored. Scores of losers steer a search too."""
CERTAIN = 3.0
"""A clear loser is so many standard errors below the best plan."""


@dataclass(frozen=True)
class Score:
    """The score of a network."""

    value: float
    """Higher is better; for classification in percent."""
    images: int | None = None
    """Number of images, if a clear loser was not scored on all of them."""


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
    to_beat: float | None = None,
) -> NDArray[np.bool_]:
    """Return whether each image is classified correctly, (images,), in the order of `images`; see `accuracy`.

    If `to_beat`, an accuracy in percent, is given, the result ends early for a network that clearly does not reach it.
    """
    module.eval()
    found: list[NDArray[np.bool_]] = []
    with placed(module) as device, torch.inference_mode():
        for batch_images, labels in count_images(images.batches(batch, device), len(images), "scoring", progress):
            between()
            pixels = batch_images.to(device, memory_format=layout_of(module))
            found.append((module(pixels).argmax(1).cpu() == labels).numpy())
            if to_beat is not None and is_clear_loser(found, len(images), to_beat):
                break
    return np.concatenate(found)


def is_clear_loser(found: Sequence[NDArray[np.bool_]], images: int, to_beat: float) -> bool:
    """Whether the accuracy on all `images` will hardly reach `to_beat`, in percent, given the batches of hits `found` so far.

    The images are a random sample, so the standard error of a share p of n images among N is sqrt(p (1 - p) / n (N - n) / N). The
    share is taken as that of two more hits and two more misses, so that it is never 0 or 1.

    >>> import numpy as np
    >>> seen = [np.arange(1200) % 5 == 0]  # 20 % of 1,200 images
    >>> is_clear_loser(seen, 2000, to_beat=25.0), is_clear_loser(seen, 2000, to_beat=22.0)
    (True, False)
    """
    seen = sum(map(len, found))
    if seen < LEAST_SHARE * images:
        return False
    share = (sum(int(batch.sum()) for batch in found) + 2) / (seen + 4)
    error = math.sqrt(share * (1 - share) / seen * (images - seen) / images)
    return 100.0 * (share + CERTAIN * error) < to_beat


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
    with placed(module) as device, torch.no_grad():
        for pixels in batches:
            if len(pixels) == 1 and seen:
                continue  # in a layer with maps of one pixel, one image has no variance
            seen += len(pixels)
            for norm in norms:
                norm.momentum = len(pixels) / seen  # the average over all images, in which a short last batch counts less
            module(pixels.to(device).contiguous(memory_format=layout_of(module)))
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
