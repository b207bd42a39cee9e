"""The demo network: a small residual CNN for scikit-learn's 8x8 handwritten digits."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["digits"]

PREPROCESSING = {"size": 8, "mean": (0.305,), "std": (0.376,), "augment": ("crop",)}


class Residual(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Digits(nn.Module):
    """Stem, three residual blocks, a global average, one linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.block1 = Residual(64, 96, 1)
        self.block2 = Residual(96, 128, 2)
        self.block3 = Residual(128, 128, 1)
        self.linear = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, classes)."""
        x = F.relu(self.bn(self.stem(images)))
        x = self.block3(self.block2(self.block1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def digits(num_classes: int = 10) -> nn.Module:
    """0.73M parameters; its weights are in digits.safetensors, made by train.py."""
    return Digits(num_classes)
