"""Residual connections in the spellings of users' code: each is a block that can be dropped, or has a reason why not."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.core.restriction import Restriction
from pipeline.graph import blocks as reasons
from pipeline.graph.analyse import analyse
from pipeline.graph.blocks import find_blocks
from pipeline.graph.export import export_trainable
from pipeline.graph.labels.space import label_graph, name_nodes
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import shrink
from pipeline.graph.silence import silence

CHANNELS = 4
EXAMPLE = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TABLE = torch.rand(CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1))
Spelling = Callable[["Part", Tensor], Tensor]


class Part(nn.Module):
    """Layers that a spelling may use: two convolutions f and g, 1x1 convolutions, and scales. All keep the shape of their input."""

    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.f, self.g = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.pointwise, self.joined = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.alpha, self.gamma = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.full((CHANNELS, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(self, x)


def in_place(part: Part, x: Tensor) -> Tensor:
    y = part.f(x)
    y += x
    return y


def with_stochastic_depth(part: Part, x: Tensor) -> Tensor:
    """In evaluation mode, no branch is left out."""
    kept = float(torch.rand(()) > 0.5) if part.training else 1.0
    return x + kept * part.f(x)


def preactivated(part: Part, x: Tensor) -> Tensor:
    return x + part.f(F.relu(part.norm(x)))


def preactivated_once_for_both(part: Part, x: Tensor) -> Tensor:
    y = F.relu(part.norm(x))
    return y + part.f(y)


def preactivated_projection(part: Part, x: Tensor) -> Tensor:
    y = F.relu(part.norm(x))
    return part.pointwise(y) + part.f(y)


def with_skip_connection(part: Part, x: Tensor) -> Tensor:
    """The entry of the block is also read by a later concatenation, as in a U-Net."""
    return part.joined(torch.cat([x, part.g(x + part.f(x))], 1))


def called_twice(part: Part, x: Tensor) -> Tensor:
    x = x + part.f(x)
    return x + part.f(x)


def gated(part: Part, x: Tensor) -> Tensor:
    gate = part.pointwise(x).sigmoid()
    return x * (1 - gate) + part.f(x) * gate


WHOLE = "a block"
PARTS = "one block for each part"

SPELLINGS: Mapping[str, tuple[Spelling, str]] = {
    "a scaled branch": (lambda n, x: x + 0.1 * n.f(x), WHOLE),
    "torch.add with alpha": (lambda n, x: torch.add(x, n.f(x), alpha=0.1), WHOLE),
    "in place": (in_place, WHOLE),
    "rezero": (lambda n, x: x + n.alpha * n.f(x), WHOLE),
    "layer scale": (lambda n, x: x + n.gamma * n.f(x), WHOLE),
    "addcmul": (lambda n, x: torch.addcmul(x, n.gamma, n.f(x)), WHOLE),
    "a table that blocks share": (lambda n, x: x + TABLE * n.f(x), WHOLE),
    "subtracted": (lambda n, x: x - n.f(x), WHOLE),
    "sum of a list": (lambda n, x: sum([x, n.f(x)]), WHOLE),  # type: ignore[arg-type, return-value]
    "scaled afterwards": (lambda n, x: (x + n.f(x)) / 2**0.5, WHOLE),
    "stochastic depth": (with_stochastic_depth, WHOLE),
    "preactivated": (preactivated, WHOLE),
    "preactivated once for both": (preactivated_once_for_both, WHOLE),
    "concatenated inside": (lambda n, x: x + n.joined(torch.cat([x, n.f(x)], 1)), WHOLE),
    "entry of a skip connection": (with_skip_connection, WHOLE),
    "parallel": (lambda n, x: x + n.f(x) + n.g(x), PARTS),
    "parallel in a list": (lambda n, x: sum([x, n.f(x), n.g(x)]), PARTS),  # type: ignore[arg-type, return-value]
    "parallel and added first": (lambda n, x: x + (n.f(x) + n.g(x)), f"{WHOLE}; {reasons.PROJECTION}"),
    "called twice": (called_twice, reasons.SHARED),
    "preactivated projection": (preactivated_projection, reasons.PROJECTION),
    "shortcut with a ReLU": (lambda n, x: F.relu(x) + n.f(x), reasons.SHORTCUT),
    "scaled shortcut": (lambda n, x: torch.add(n.f(x), x, alpha=0.5), reasons.SHORTCUT),
    "pooled shortcut": (lambda n, x: F.avg_pool2d(x, 3, 1, 1) + n.f(x), reasons.SHORTCUT),
    "subtracted entry": (lambda n, x: n.f(x) - x, reasons.SHORTCUT),
    "gated": (gated, reasons.SHORTCUT),
    "one value for all pixels": (lambda n, x: x + n.f(x.mean((2, 3), keepdim=True)), reasons.BROADCAST),
    "sum of a stack": (lambda n, x: torch.stack([x, n.f(x)]).sum(0), reasons.NOT_TWO),
    "concatenated": (lambda n, x: n.joined(torch.cat([x, n.f(x)], 1)), ""),
    "multiplied": (lambda n, x: x * n.f(x).sigmoid(), ""),
}
"""Name -> the code, and what is right for it: it is a block, has one for each of f and g, or cannot be dropped for a reason. Nothing is
said of a spelling that adds nothing."""


class Net(nn.Module):
    """convolution -> relu -> (spelling -> relu) x n -> mean -> linear"""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 1), nn.Linear(CHANNELS, 2)
        self.parts = nn.ModuleList(Part(SPELLINGS[name][0]) for name in names)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for part in self.parts:
            x = part(x).relu()
        answer: Tensor = self.head(x.mean((2, 3)))
        return answer


def right_for(name: str) -> tuple[int, set[str]]:
    """The number of blocks, and the reasons that are listed."""
    right = SPELLINGS[name][1]
    reason = right.removeprefix(WHOLE).removeprefix(PARTS).removeprefix("; ")
    return 2 if right == PARTS else int(right.startswith(WHOLE)), {reason} - {""}


@cache
def found() -> dict[str, tuple[int, set[str]]]:
    """The same as it is found in one network with all spellings."""
    torch.manual_seed(0)
    model = export_trainable(Net([*SPELLINGS]).eval(), EXAMPLE, 18, 10)
    name_nodes(model)
    blocks, refused = find_blocks(model, label_graph(model).space.groups)
    every = {}
    for number, name in enumerate(SPELLINGS):
        part = f"parts.{number}."
        listed = {layer.reason for layer in refused if f"{layer.name}.".replace("#", ".").startswith(part)}
        every[name] = sum(block.tensors[0].startswith(part) for block in blocks), listed
    return every


@pytest.mark.slow
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_residual_connection_is_a_block_or_has_the_reason_why_not(name: str) -> None:
    assert found()[name] == right_for(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SPELLINGS if right_for(name)[0]])
def test_any_subset_of_the_blocks_of_a_spelling_can_be_dropped(name: str) -> None:
    """Two parts in a row. The sliced graph and the torch module answer like the graph whose branches are silent."""
    torch.manual_seed(0)
    settings = PruningSettings(restriction=Restriction(depth=True))
    network = analyse(Net([name, name]).eval(), EXAMPLE, settings=settings)
    names = [block.name for block in network.space.blocks]
    whole = network.trainable.slice({})

    assert len(names) == 2 * right_for(name)[0]
    for count in range(len(names) + 1):
        for dropped in itertools.combinations(names, count):
            kept = random_kept(replace(network.space, blocks=()), count) | dict.fromkeys(dropped, ())
            silent = run_onnx(silence(whole, network.trainable.labelled, kept).SerializeToString(), EXAMPLE.numpy())
            with torch.no_grad():
                answer = shrink(network.module, network.space, kept).eval()(EXAMPLE).numpy()

            assert (
                largest_difference(silent, run_onnx(network.deployed.slice(kept).SerializeToString(), EXAMPLE.numpy()))
                <= TOLERANCE
            )
            assert largest_difference(silent, answer) <= TOLERANCE
