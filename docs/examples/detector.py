"""A detector in the manner of YOLOv8: a C2f backbone, SPPF, a neck, and a decoupled head with two outputs."""

import torch
from scenes import CLASSES
from torch import Tensor, nn

__all__ = ["BINS", "STRIDES", "detector"]

STRIDES = (8, 16)
"""Pixels between two neighbouring places of each level of the head."""
BINS = 8
"""Distances that a side of a box can have, in strides: 0 to BINS - 1. The network returns logits of each."""


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, width: int, out: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class C2f(nn.Module):
    """A 1x1 convolution whose output is split in halves; blocks behind the second; a 1x1 convolution that reads everything."""

    def __init__(self, width: int, out: int, blocks: int, shortcut: bool) -> None:
        super().__init__()
        self.inner, self.shortcut = out // 2, shortcut
        self.entry = ConvNorm(width, out, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvNorm(self.inner, self.inner), ConvNorm(self.inner, self.inner)) for _ in range(blocks)
        )
        self.exit = ConvNorm((2 + blocks) * self.inner, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> (N, out, H, W)."""
        parts = list(self.entry(x).split((self.inner, self.inner), 1))
        for block in self.blocks:
            found = block(parts[-1])
            parts.append(parts[-1] + found if self.shortcut else found)
        joined: Tensor = self.exit(torch.cat(parts, 1))
        return joined


class Sppf(nn.Module):
    """Fast pyramid pooling: three max pools in a row, and a convolution that reads all of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entry, self.pool = ConvNorm(width, width // 2, 1), nn.MaxPool2d(5, 1, 2)
        self.exit = ConvNorm(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> (N, width, H, W)."""
        parts = [self.entry(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        joined: Tensor = self.exit(torch.cat(parts, 1))
        return joined


class Head(nn.Module):
    """Two branches for one level of the neck: the sides of the boxes, and the scores of the classes."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.sides = nn.Sequential(ConvNorm(width, inner), ConvNorm(inner, inner), nn.Conv2d(inner, 4 * BINS, 1))
        last = nn.Conv2d(inner, len(CLASSES), 1)
        nn.init.constant_(last.get_parameter("bias"), -4.0)  # nearly all places have no object
        self.scores = nn.Sequential(ConvNorm(width, inner), ConvNorm(inner, inner), last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, width, H, W) -> (N, 4 * BINS, H * W) and (N, classes, H * W)."""
        return self.sides(x).flatten(2), self.scores(x).flatten(2)


class Detector(nn.Module):
    """Images -> for each place of both levels, four distributions of distances and one logit for each class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width, stride=2), ConvNorm(width, 2 * width, stride=2), C2f(2 * width, 2 * width, 1, True)
        )
        self.middle = nn.Sequential(ConvNorm(2 * width, 4 * width, stride=2), C2f(4 * width, 4 * width, 2, True))
        self.deep = nn.Sequential(ConvNorm(4 * width, 8 * width, stride=2), C2f(8 * width, 8 * width, 1, True), Sppf(8 * width))
        self.up = nn.Upsample(scale_factor=2)
        self.fine = C2f(12 * width, 4 * width, 1, False)
        self.down = ConvNorm(4 * width, 4 * width, stride=2)
        self.coarse = C2f(12 * width, 4 * width, 1, False)
        self.heads = nn.ModuleList(Head(4 * width, 2 * width) for _ in STRIDES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> sides (N, 4 * BINS, places) and scores (N, classes, places), both as logits.

        The sides are left, top, right and bottom. Places go row by row, first those of the fine level.
        """
        middle = self.middle(self.stem(images))
        deep = self.deep(middle)
        fine = self.fine(torch.cat((self.up(deep), middle), 1))
        coarse = self.coarse(torch.cat((self.down(fine), deep), 1))
        sides, scores = zip(*(head(x) for head, x in zip(self.heads, (fine, coarse), strict=True)), strict=True)
        return {"sides": torch.cat(sides, 2), "scores": torch.cat(scores, 2)}


def detector(width: int = 12) -> nn.Module:
    """Return the network with random weights."""
    return Detector(width)
