"""Augment: vary pictures strongly. The teacher sees the same variation and labels it, so no variation is wrong.

Random-resized crop, mirroring, brightness, contrast and colour, then mixup (Zhang et al., arXiv 1710.09412) or cutmix (Yun
et al., arXiv 1905.04899) between pictures. The teacher must see the student's own view (Beyer et al., arXiv 2106.05237).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.batch import Inputs

__all__ = ["varied"]

SMALLEST_CROP = 0.35
"""Smallest area of a crop, as a share of the picture."""
LONGEST_CROP = 4 / 3
"""Largest ratio of a crop's sides."""
COLOUR = 0.3
"""Largest change of contrast, as a share, and of brightness and of each colour, in standard deviations of the pixels."""
MIXED = 0.5
"""Share of the batches that are mixed; half of them by mixup and half by cutmix."""


def varied(pixels: Inputs, generator: torch.Generator, colour: float = COLOUR) -> Inputs:
    """Return a variation of each of `pixels`, (N, C, H, W), normalised floats. `generator` is on the CPU.

    Inputs that are no images, or several, stay as they are.
    """
    if not isinstance(pixels, Tensor) or pixels.dim() != 4 or not pixels.is_floating_point():
        return pixels
    pixels = _coloured(_cropped(pixels, generator), generator, colour)
    if len(pixels) < 2 or float(torch.rand((), generator=generator)) >= MIXED:
        return pixels
    others = pixels[torch.randperm(len(pixels), generator=generator).to(pixels.device)]
    share = float(torch.rand((), generator=generator))
    if float(torch.rand((), generator=generator)) < 0.5:
        return share * pixels + (1 - share) * others
    height, width = pixels.shape[2:]
    tall, wide = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
    top = int(torch.randint(height - tall + 1, (), generator=generator))
    left = int(torch.randint(width - wide + 1, (), generator=generator))
    mixed = pixels.clone()
    mixed[:, :, top : top + tall, left : left + wide] = others[:, :, top : top + tall, left : left + wide]
    return mixed


def _cropped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A random-resized crop (Szegedy et al., arXiv 1409.4842) of each picture, half of them mirrored."""
    count = len(pixels)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    area, ratio = between(SMALLEST_CROP, 1.0), between(-1.0, 1.0).mul(torch.tensor(LONGEST_CROP).log()).exp()
    wide, tall = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    across, down = between(-1.0, 1.0) * (1 - wide), between(-1.0, 1.0) * (1 - tall)
    mirrored = torch.where(between(0.0, 1.0) < 0.5, -1.0, 1.0)
    boxes = torch.zeros(count, 2, 3)
    boxes[:, 0, 0], boxes[:, 0, 2] = wide * mirrored, across
    boxes[:, 1, 1], boxes[:, 1, 2] = tall, down
    grid = F.affine_grid(boxes, list(pixels.shape), align_corners=False).to(pixels.device)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)


def _coloured(pixels: Tensor, generator: torch.Generator, most: float) -> Tensor:
    count, channels = pixels.shape[:2]

    def change(*shape: int) -> Tensor:
        return (most * (2 * torch.rand(*shape, 1, 1, generator=generator) - 1)).to(pixels.device)

    colour = change(count, channels) if channels > 1 else 0.0
    return pixels * (1 + change(count, 1)) + change(count, 1) + colour
