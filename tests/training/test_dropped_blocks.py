"""Recovery of a network without some of its blocks: their layers are in the teacher only."""

import copy

import torch
from torch import Tensor, nn

from pipeline.core.plan import Block
from pipeline.graph.skip_block import replacements
from pipeline.training.recover.features import find_places, run_recorded
from pipeline.training.statistics_shift import StatisticsShift, set_shifts, shift_statistics
from pipeline.training.teacher import Teacher


class Residual(nn.Module):
    """x + batch norm(conv(x))"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.norm(self.conv(x))
        return answer


def networks() -> tuple[nn.Module, nn.Module]:
    """stem -> block -> block -> pool -> block -> mean -> linear, and the same without the second and the third block"""
    torch.manual_seed(0)
    body = (Residual(), Residual(), nn.MaxPool2d(2), Residual())
    dense = nn.Sequential(nn.Conv2d(3, 4, 1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    dropped = [Block(name, "", 0, (), bypassed=(name,)) for name in ("2", "4")]
    return dense, copy.deepcopy(dense, replacements(dense, dropped))


def test_features_are_compared_only_where_both_networks_have_layers() -> None:
    dense, small = networks()
    pictures = torch.randn(2, 3, 8, 8)
    places = find_places(small, Teacher(dense), pictures)
    _, features = run_recorded(small, places, pictures)

    assert places
    assert {place.layer for place in places} <= dict(small.named_modules()).keys() & dict(dense.named_modules()).keys()
    assert all(torch.isfinite(each).all() for each in features)


def test_statistics_of_dropped_layers_are_not_corrected_and_those_of_others_are() -> None:
    _, small = networks()
    shift = StatisticsShift(torch.ones(4), torch.ones(4))
    set_shifts(small, {f"{block}.norm": shift for block in "124"})
    before = small.state_dict()["1.norm.running_mean"].clone()
    shift_statistics(small)

    assert not torch.equal(small.state_dict()["1.norm.running_mean"], before)
