"""Analysis: which channels can be removed, and why others cannot."""

from collections.abc import Callable

import pytest
import torch
from helpers.analysed import space_of
from helpers.families import FAMILIES
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.plan import PruneSpace
from pipeline.errors import NothingToPrune, TraceError
from pipeline.graph.analyse import analyse


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chain", {"a.0": (8, 1), "b.0": (12, 1)}),
        ("residual", {"stem.0": (8, 1), "inner.0": (6, 1)}),  # the outer convolution belongs to the stem's group
        ("concat", {"left.0": (6, 1), "right.0": (4, 1), "joint.0": (8, 1)}),
        ("depthwise", {"expand.0": (8, 1), "project": (6, 1)}),
        ("grouped", {"a.0": (2, 4), "b.0": (3, 4), "c.0": (6, 1)}),  # one channel of each of 4 groups is removed at a time
        ("flatten", {"a.0": (6, 1), "hidden": (10, 1)}),
    ],
)
def test_groups_are_the_channels_that_must_be_removed_together(name: str, expected: dict[str, tuple[int, int]]) -> None:
    space = space_of(ZOO[name])

    assert {group.name: (group.channels, group.bundle) for group in space.groups} == expected


def test_the_trial_of_the_groups_counts_its_halves() -> None:
    """three groups that pass together: nothing, half and all of them are done"""
    counts: list[tuple[int, int]] = []
    analyse(build(ZOO["concat"]), EXAMPLE, progress=lambda done, total, text: counts.append((done, total)))

    assert [each for each in counts if each[1]] == [(0, 6), (3, 6), (6, 6)]


class Net(nn.Module):
    """Layers, and what becomes of the image x in a few symbols: Net(lambda n, x: n.a(x), a=nn.Conv2d(3, 4, 3))."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def small(run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    """x -> run -> mean -> conv(6) -> conv(5): one group without any difficulty behind the layers in question"""
    width = run(Net(run, **layers).eval(), EXAMPLE).shape[1]
    return Net(
        lambda n, x: n.out(n.last(run(n, x).mean((2, 3), keepdim=True))), last=conv(width, 6), out=conv(6, 5), **layers
    ).eval()


def conv(width: int, out: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("run", "layers", "expected"),
    [
        # the channels that are multiplied belong together
        (lambda n, x: torch.mul(*n.a(x).chunk(2, 1)), {"a": conv(3, 8)}, {"a": (4, 2)}),
        # both halves of a split keep their own channels
        (lambda n, x: torch.cat([n.a(x)[:, :3], n.a(x)[:, 3:]], 1), {"a": conv(3, 8)}, {"a": (8, 1)}),
        (lambda n, x: n.a(x).view(1, 4, 2, 8, 8).amax(2), {"a": conv(3, 8)}, {"a": (4, 2)}),  # maxout over pairs
        (lambda n, x: n.a(x) + n.b(x).flip(1), {"a": conv(3, 6), "b": conv(3, 6)}, {"a": (6, 1)}),
        (lambda n, x: n.norm(n.a(x)), {"a": conv(3, 8), "norm": nn.GroupNorm(2, 8)}, {"a": (4, 2)}),  # evenly from each group
        (lambda n, x: n.b(n.a(x)), {"a": conv(3, 4), "b": nn.utils.parametrizations.weight_norm(conv(4, 4))}, {"a": (4, 1)}),
        (lambda n, x: F.pixel_shuffle(n.a(x), 2), {"a": conv(3, 8)}, {"a": (2, 4)}),
        (lambda n, x: n.a(x).view(1, 2, 4, 8, 8).transpose(1, 2).reshape(1, 8, 8, 8), {"a": conv(3, 8)}, {"a": (4, 2)}),
    ],
    ids=["gate", "split and concat", "maxout", "flip", "group norm", "weight norm", "pixel shuffle", "channel shuffle"],
)
def test_channels_that_are_rearranged_can_still_be_removed(
    run: Callable[[Net, Tensor], Tensor], layers: dict[str, nn.Module], expected: dict[str, tuple[int, int]]
) -> None:
    space = analyse(small(run, **layers), EXAMPLE).space
    found = {group.name: (group.channels, group.bundle) for group in space.groups}

    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("module", "layer", "reason"),
    [
        (build(ZOO["chain"]), "head", "its channels are the network's output"),
        (small(lambda n, x: n.a(x), a=conv(3, 1)), "a", "it has a single channel to give"),
        (small(lambda n, x: n.a(x).sort(1).values, a=conv(3, 4)), "a", "TopK in the network's own forward() mixes"),
        (small(lambda n, x: n.a(x).cumsum(1), a=conv(3, 4)), "a", "CumSum in the network's own forward() mixes"),
    ],
    ids=["output", "single", "sort", "running sum"],
)
def test_a_layer_that_cannot_be_pruned_is_listed_with_the_reason(module: nn.Module, layer: str, reason: str) -> None:
    space = analyse(module, EXAMPLE).space

    assert {frozen.name: frozen.reason for frozen in space.frozen}[layer].startswith(reason)
    assert space.groups


def test_a_layer_whose_outputs_can_only_leave_together_says_how_many_they_are() -> None:
    """linear attention with one head: the channels of all three depend on each other"""
    space = analyse(*FAMILIES["linear-attention"]()).space

    assert {layer.name: layer.reason for layer in space.frozen}["qkv"] == "its 48 outputs can only leave together"


def test_every_convolution_and_linear_layer_is_in_a_group_or_in_the_list() -> None:
    for factory in ZOO.values():
        module, space = build(factory), space_of(factory)
        grouped = {slot.tensor.rpartition(".")[0] for group in space.groups for slot in group.slots}
        layers = {name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)}

        assert layers <= grouped | {frozen.name for frozen in space.frozen}


def test_analysis_leaves_the_network_as_it_was() -> None:
    module = build(ZOO["residual"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    analyse(module, EXAMPLE)

    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(tensor.requires_grad for tensor in module.parameters())
    assert not module.training


def test_layers_whose_trained_weights_are_silent_are_analysed_like_others() -> None:
    """every channel of the stem is dead in this trained state; the proof has weights of its own"""
    module = build(ZOO["residual"])
    nn.init.constant_(module.stem[1].bias, -100.0)

    assert [group.name for group in analyse(module, EXAMPLE).space.groups] == ["stem.0", "inner.0"]


def test_a_network_without_a_group_is_refused_with_the_reasons() -> None:
    """one linear layer, whose channels are the output"""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    with pytest.raises(
        NothingToPrune, match=r"no layer of this network can be pruned \(1: its channels are the network's output\)"
    ):
        analyse(module, EXAMPLE)


def test_a_network_without_layers_is_refused_with_the_reason() -> None:
    with pytest.raises(NothingToPrune, match=r"\(it has no convolution or linear layer\)"):
        analyse(nn.Sequential(nn.ReLU()), EXAMPLE)


def test_remaining_entries_follow_the_kept_channels() -> None:
    space = PruneSpace(space_of(ZOO["flatten"]).groups)

    assert space.remaining("hidden.weight", 1, 96, {"a.0": (1,), "hidden": tuple(range(10))}).tolist() == list(range(16, 32))
    assert space.remaining("a.0.weight", 0, 6, {"a.0": (1, 4), "hidden": ()}).tolist() == [1, 4]
    assert space.remaining("unknown", 0, 3, {}).tolist() == [0, 1, 2]


def test_a_network_that_can_be_neither_used_nor_rebuilt_is_refused_with_the_operator_and_its_place() -> None:
    """conv(8) -> halves, added -> conv(5) -> Fourier transform"""

    def run(net: Net, x: Tensor) -> Tensor:
        left, right = net.a(x).split((4, 4), 1)
        return torch.fft.rfft2(net.out(left + right)).real

    net = Net(run, a=conv(3, 8), out=nn.Conv2d(4, 5, 1)).eval()
    with pytest.raises(TraceError) as caught:
        analyse(net, EXAMPLE)

    assert str(caught.value).startswith("the network cannot be pruned in torch: its own module is not used, because it ")
    assert "DFT in the network's own forward() has no counterpart in torch; write the" in str(caught.value)


def test_libraries_print_nothing_while_weights_are_folded(caplog: pytest.LogCaptureFixture) -> None:
    """a split of a parameter, which one of them leaves to another pass and says so"""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(10, 8))

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.w.chunk(2)
            x = self.a(x).mean((2, 3))
            return F.linear(x, one) * F.linear(x, other)

    analyse(Halves().eval(), EXAMPLE)

    assert [record for record in caplog.records if record.name.startswith("onnx")] == []
