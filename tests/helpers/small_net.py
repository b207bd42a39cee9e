"""A small untrained network for the handwritten digits, for whole runs whose claim is not about the network.

A run of it takes a third of what a run of the demo network takes.
"""

from pathlib import Path

import torch
from torch import nn

PREPROCESSING = {"size": 8, "mean": (0.305,), "std": (0.376,), "augment": ("crop",)}
SMALL_NET = f"{Path(__file__)}:small"
"""For `--model`, with the default data."""


def small() -> nn.Module:
    """conv(32) -> pool -> conv(48) -> conv(64) -> mean -> linear, always with the same weights"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
