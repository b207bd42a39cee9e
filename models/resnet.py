"""ResNets for 32x32 images: 20 and 56 with option-A shortcuts (He et al., arXiv 1512.03385, section 4.2), and 18."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["resnet18", "resnet20", "resnet56"]

PREPROCESSING = {
    "size": 32,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "augment": ("crop", "flip"),
}


class Selection(nn.Conv2d):
    """Option A: every second pixel, and zeros around the channels; a convolution with ones in the right places.

    Written as slicing and padding, it would tie the widths of two stages together by constants in the code, and neither
    could be narrowed. It answers the same, bit by bit, and is never trained.
    """

    computed_weights: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__(width, out, 1, stride, bias=False)
        self.weight.requires_grad_(False)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[(out - width) // 2 : (out - width) // 2 + width, :, 0, 0] = torch.eye(width)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int, out: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Sequential()
        if projection and (stride != 1 or width != out):
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        elif width != out:
            self.shortcut = Selection(width, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks, a global average, one linear layer."""

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...], num_classes: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        width = widths[0]
        self.stages = len(blocks)
        for stage, (count, out) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for index in range(count):
                layers.append(Block(width, out, 2 if stage > 1 and index == 0 else 1, projection))
                width = out
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet18(num_classes: int = 10) -> nn.Module:
    """ResNet-18 with a 3x3 stem and projection shortcuts, 11.2M parameters."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, projection=True)


def resnet20(num_classes: int = 10) -> nn.Module:
    """ResNet-20 with option-A shortcuts, 0.27M parameters; resnet20-cifar10.safetensors are weights for 32x32 photographs."""
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, projection=False)


def resnet56(num_classes: int = 10) -> nn.Module:
    """ResNet-56 with option-A shortcuts, 0.85M parameters; resnet56-cifar10.safetensors are weights for 32x32 photographs."""
    return ResNet((9, 9, 9), (16, 32, 64), num_classes, projection=False)
