"""Features: the same places in a network and its pruned copy, in a user's own module and in a rebuilt one."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers.nets import ZOO, build
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.plan import Kept
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import PrunableNetwork, random_kept, rebuild_from_graph
from pipeline.graph.shrink import shrink
from pipeline.stages.finetune_chosen import kept_inputs_of
from pipeline.training.recover.features import difference, find_places, parameters_before, run_recorded, run_until
from pipeline.training.teacher import Teacher

PICTURES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    student: nn.Module
    teacher: Teacher
    network: PrunableNetwork
    kept: Kept


def pair(make: Callable[[], nn.Module], rebuilt: bool = False, seed: int = 3) -> Pair:
    """A network and its copy with random channels."""
    network = analyse(build(make), PICTURES[:1])
    if rebuilt and network.origin == "own":
        network = rebuild_from_graph(network, PICTURES[:1], "the test asks for it")
    kept = random_kept(network.space, seed)
    teacher = Teacher(network.module.eval(), kept_inputs_of(network.module, network.space, kept))
    return Pair(shrink(network.module, network.space, kept).eval(), teacher, network, kept)


def silenced(found: Pair) -> nn.Module:
    """The dense network in which no layer reads a removed channel, so that it computes what the pruned one does."""
    module = copy.deepcopy(found.teacher.module)
    for layer, channels in found.teacher.kept_inputs.items():
        weight = module.get_submodule(layer).get_parameter("weight")
        if getattr(module.get_submodule(layer), "groups", 1) == 1:
            gone = torch.ones(weight.shape[1], dtype=torch.bool)
            gone[list(channels)] = False
            weight.data[:, gone] = 0
    return module


@pytest.mark.parametrize(
    ("name", "rebuilt"),
    [
        ("concat", False),
        ("depthwise", False),
        ("flatten", False),
        ("squeeze-excite", False),
        ("residual", True),
        ("padded", True),
    ],
)
def test_a_network_that_ignores_the_removed_channels_has_the_features_of_the_pruned_one(name: str, rebuilt: bool) -> None:
    found = pair(ZOO[name], rebuilt)
    places = find_places(found.student, found.teacher, PICTURES)
    with torch.no_grad():
        _, pruned = run_recorded(found.student, places, PICTURES)
        _, dense = run_recorded(silenced(found), places, PICTURES)

    assert places
    for place, ours, theirs in zip(places, pruned, dense, strict=True):
        assert difference(place, ours, theirs) < 1e-8


class Stages(nn.Module):
    """x -> stem -> wide (16x16) -> stride 2 -> (8x8) -> stride 2 -> (4x4) -> `pool` -> linear"""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.pool, self.head = pool, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.stem(x))))
        return self.head(self.pool(F.relu(self.second(F.relu(self.first(x))))))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean": lambda x: x.mean((2, 3)),
    "a function": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "a layer": nn.Sequential(nn.AvgPool2d(4), nn.Flatten()),
    "the largest": lambda x: x.amax((2, 3)),
}


@pytest.mark.parametrize("pool", POOLS)
def test_the_places_are_the_ends_of_stages_and_the_last_features_before_pooling(pool: str) -> None:
    found = pair(lambda: Stages(POOLS[pool]))
    places = find_places(found.student, found.teacher, PICTURES)
    _, features = run_recorded(found.student, places, PICTURES)

    assert [(place.layer, place.pooled) for place in places] == [("first", False), ("second", False), ("head", True)]
    assert [feature.shape[2:] for feature in features] == [(16, 16), (8, 8), (4, 4)]


def test_features_that_are_flattened_are_compared_as_the_last_layers_read_them() -> None:
    """After the flattening, each channel is sixteen numbers."""
    found = pair(ZOO["flatten"])
    (*_, last) = find_places(found.student, found.teacher, PICTURES)

    assert (last.layer, last.pooled) == ("hidden", False)


def test_a_run_up_to_a_place_has_the_features_of_a_whole_run() -> None:
    found = pair(ZOO["residual"])
    for place in find_places(found.student, found.teacher, PICTURES):
        _, (whole,) = run_recorded(found.student, [place], PICTURES)
        assert torch.equal(run_until(found.student, place, PICTURES), whole)


def test_every_parameter_belongs_to_one_block() -> None:
    found = pair(lambda: Stages(POOLS["a mean"]))
    places = find_places(found.student, found.teacher, PICTURES)
    names = {id(parameter): name.partition(".")[0] for name, parameter in found.student.named_parameters()}
    blocks = [{names[id(parameter)] for parameter in block} for block in parameters_before(found.student, places, PICTURES)]

    assert blocks == [{"stem", "wide"}, {"first"}, {"second"}, {"head"}]


def test_networks_of_which_nothing_is_known_have_no_place_where_their_widths_differ() -> None:
    found = pair(ZOO["chain"])

    assert find_places(found.student, Teacher(found.teacher.module), PICTURES) == ()
