"""VGG with BatchNorm for 32x32 images (Simonyan & Zisserman, arXiv 1409.1556; one linear layer, as usual for CIFAR)."""

from torch import Tensor, nn

__all__ = ["vgg11_bn", "vgg16_bn", "vgg19_bn"]

PREPROCESSING = {
    "size": 32,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "augment": ("crop", "flip"),
}

STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    19: ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each halved by a pooling, then one linear layer."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for stage in STAGES[depth]:
            for out in stage:
                layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def vgg11_bn(num_classes: int = 10) -> nn.Module:
    """VGG-11-BN, 9.2M parameters."""
    return VGG(11, num_classes)


def vgg16_bn(num_classes: int = 10) -> nn.Module:
    """VGG-16-BN, 14.7M parameters."""
    return VGG(16, num_classes)


def vgg19_bn(num_classes: int = 10) -> nn.Module:
    """VGG-19-BN, 20.0M parameters."""
    return VGG(19, num_classes)
