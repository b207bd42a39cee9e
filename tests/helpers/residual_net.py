"""A small untrained residual network for the handwritten digits, for whole runs that may drop blocks."""

from pathlib import Path

import torch
from torch import Tensor, nn

PREPROCESSING = {"size": 8, "mean": (0.305,), "std": (0.376,), "augment": ("crop",)}
RESIDUAL_NET = f"{Path(__file__)}:residual"
"""For `--model`, with the default data."""
WIDTH = 8


class Residual(nn.Module):
    """x + conv(relu(conv(x)))"""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.second(self.first(x).relu())
        return answer


class ResidualNet(nn.Module):
    """conv(8) -> four residual blocks -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Linear(WIDTH, 10)
        self.blocks = nn.Sequential(*(Residual() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))
        return answer


def residual() -> nn.Module:
    """Return the network, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResidualNet()
