"""MobileNetV2 for 32x32 images (Sandler et al., arXiv 1801.04381): the first two strides of 2 become 1."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["mobilenet_v2"]

PREPROCESSING = {
    "size": 32,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "augment": ("crop", "flip"),
}

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, width, blocks, stride of the first)."""


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; a shortcut where the shape stays."""

    def __init__(self, width: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = width * expansion
        expand = [nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(
            *(expand if expansion > 1 else []),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, a 1x1 to 1280 channels, a global average, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
        width = 32
        for expansion, out, blocks, stride in STAGES:
            for index in range(blocks):
                layers.append(InvertedResidual(width, out, expansion, stride if index == 0 else 1))
                width = out
        layers += [nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1))
        return logits


def mobilenet_v2(num_classes: int = 10) -> nn.Module:
    """MobileNetV2, 2.2M parameters; mobilenet_v2-cifar10.safetensors are weights for 32x32 photographs."""
    return MobileNetV2(num_classes)
