"""Analysis: which channels may go, and why others may not."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.plan import Group, NotPrunable, PruneSpace
from pipeline.errors import NothingToPrune, TraceError
from pipeline.graph.analyse import _trial, _try, analyse


def groups(name: str) -> dict[str, tuple[int, int]]:
    """Group -> (channels, outputs to a channel)."""
    return {group.name: (group.channels, group.bundle) for group in analyse(build(ZOO[name]), EXAMPLE).groups}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chain", {"a.0": (8, 1), "b.0": (12, 1)}),
        ("residual", {"stem.0": (8, 1), "inner.0": (6, 1)}),  # the outer convolution hangs on the stem
        ("concat", {"left.0": (6, 1), "right.0": (4, 1), "joint.0": (8, 1)}),
        ("depthwise", {"expand.0": (8, 1), "project": (6, 1)}),
        ("grouped", {"a.0": (2, 4), "b.0": (3, 4), "c.0": (6, 1)}),  # one channel leaves each of 4 groups at a time
        ("flatten", {"a.0": (6, 1), "hidden": (10, 1)}),
        ("padded", {"inner.0": (6, 1)}),
    ],
)
def test_groups_are_the_channels_that_hang_together(name: str, expected: dict[str, tuple[int, int]]) -> None:
    assert groups(name) == expected


def test_groups_come_in_the_order_in_which_they_run() -> None:
    """head defined first, used last"""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.second, self.first = nn.Linear(4, 5), nn.Conv2d(6, 4, 3), nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)).mean((2, 3)))

    assert [group.name for group in analyse(build(Backwards), EXAMPLE).groups] == ["first", "second"]


@pytest.mark.parametrize(
    ("net", "layer", "reason"),
    [
        ("chain", "head", "its channels are the network's output"),
        ("padded", "stem.0", "removing its channels changes more than they carry"),
        ("padded", "outer.0", "its outputs are tied to a layer that keeps its width"),
    ],
)
def test_a_layer_that_keeps_its_width_is_listed_with_the_reason(net: str, layer: str, reason: str) -> None:
    frozen = {found.name: found.reason for found in analyse(build(ZOO[net]), EXAMPLE).frozen}

    assert frozen[layer] == reason


class Net(nn.Module):
    """Layers, and in a few symbols what becomes of the image x: Net(lambda n, x: n.a(x), a=nn.Conv2d(3, 4, 3))."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def small(run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> Net:
    """x -> run -> mean -> conv(6) -> conv(5): one group that nothing is wrong with, behind the one that is looked at"""
    width = run(Net(run, **layers).eval(), EXAMPLE).shape[1]
    return Net(lambda n, x: n.out(n.last(run(n, x).mean((2, 3), keepdim=True))), last=conv(width, 6), out=conv(6, 5), **layers)


def conv(width: int, out: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("module", "layer", "reason"),
    [
        (small(lambda n, x: n.a(x), a=conv(3, 1)), "a", "it has a single channel to give"),
        (
            small(lambda n, x: n.g(torch.cat([n.a(x), n.b(x)], 1)), a=conv(3, 4), b=conv(3, 4), g=conv(8, 8, groups=2)),
            "b",
            "a grouped convolution takes only part of its channels",
        ),
        (
            small(lambda n, x: n.two(n.a(x)) + n.four(n.a(x)), a=conv(3, 8), two=conv(8, 8, groups=2), four=conv(8, 8, groups=4)),
            "a",
            "it feeds grouped convolutions with different numbers of groups",
        ),
        (
            small(lambda n, x: n.norm(n.a(x)), a=conv(3, 4), norm=nn.LayerNorm((4, 8, 8))),
            "a",
            "its layer normalisation spans more than the channels, or has no weights",
        ),
        (
            small(lambda n, x: n.norm(n.a(x)), a=conv(3, 4), norm=nn.GroupNorm(2, 4)),
            "a",
            "it passes through 'norm', and GroupNorm cannot be narrowed",
        ),
        (
            small(lambda n, x: n.b(n.a(x)), a=conv(3, 4), b=nn.utils.parametrizations.weight_norm(conv(4, 4))),
            "a",
            "the weights of 'b' are computed from other tensors",
        ),
        # torch-pruning couples the following wrongly, or cannot know; the trial finds out
        (small(lambda n, x: torch.softmax(n.a(x), 1), a=conv(3, 4)), "a", "removing its channels changes more than they carry"),
        (small(lambda n, x: F.normalize(n.a(x), dim=1), a=conv(3, 4)), "a", "removing its channels changes more than they carry"),
        (
            small(lambda n, x: n.a(x) + n.b(x).flip(1), a=conv(3, 6), b=conv(3, 6)),
            "a",
            "removing its channels changes more than they carry",
        ),
        (
            small(lambda n, x: n.a(x).view(1, 4, 2, 8, 8).amax(2), a=conv(3, 8)),
            "a",
            "the network does not run without it (shape '[1, 4, 2, 8, 8]' is invalid for input of size 256)",
        ),
    ],
    ids=[
        "single",
        "part of groups",
        "two groupings",
        "layer norm",
        "group norm",
        "computed",
        "softmax",
        "norm",
        "flip",
        "maxout",
    ],
)
def test_a_layer_that_cannot_be_narrowed_is_listed_and_the_rest_is_offered(module: nn.Module, layer: str, reason: str) -> None:
    space = analyse(module.eval(), EXAMPLE)

    assert {frozen.name: frozen.reason for frozen in space.frozen}[layer] == reason
    assert "last" in [group.name for group in space.groups]


@pytest.mark.parametrize("channels", [4, 6, 8, 10, 12])
def test_halves_that_are_multiplied_keep_their_width_however_luckily_half_is_removed(channels: int) -> None:
    """conv -> split in two -> p * q: taking as many from p as from q runs, and may even look right"""
    module = small(lambda n, x: torch.mul(*n.a(x).chunk(2, 1)), a=conv(3, channels))

    assert [group.name for group in analyse(module.eval(), EXAMPLE).groups] == ["last"]


def test_every_convolution_and_linear_layer_is_in_a_group_or_in_the_list() -> None:
    for factory in ZOO.values():
        module = build(factory)
        space = analyse(module, EXAMPLE)
        grouped = {slot.tensor.rpartition(".")[0] for group in space.groups for slot in group.slots}
        layers = {name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)}

        assert layers <= grouped | {frozen.name for frozen in space.frozen}


def test_a_wrong_coupling_fails_its_trial() -> None:
    """the second convolution is told to listen to other channels than the first one sends"""
    module = build(ZOO["chain"])
    group = analyse(module, EXAMPLE).groups[0]
    slots = tuple(
        replace(slot, channels=slot.channels[1:] + slot.channels[:1]) if slot.tensor == "b.0.weight" else slot
        for slot in group.slots
    )

    assert _trial(module, EXAMPLE, [group]) is None
    assert _trial(module, EXAMPLE, [replace(group, slots=slots)]) == "removing its channels changes more than they carry"


def test_a_wrong_coupling_costs_the_right_ones_nothing() -> None:
    """both fail together, so each is tried alone"""
    module = build(ZOO["residual"])
    stem, inner = analyse(module, EXAMPLE).groups
    wrong = replace(
        stem,
        slots=tuple(replace(slot, channels=slot.channels[::-1]) if slot.tensor == "head.weight" else slot for slot in stem.slots),
    )

    assert _try(module, EXAMPLE, [stem, inner]) == ([stem, inner], [])
    assert _try(module, EXAMPLE, [wrong, inner]) == (
        [inner],
        [NotPrunable("stem.0", "removing its channels changes more than they carry")],
    )


def test_a_forgotten_coupling_fails_its_trial() -> None:
    """nobody tells the second convolution"""
    module = build(ZOO["chain"])
    group = analyse(module, EXAMPLE).groups[0]
    slots = tuple(slot for slot in group.slots if slot.tensor != "b.0.weight")
    reason = _trial(module, EXAMPLE, [Group(group.name, group.channels, slots)])

    assert reason is not None
    assert reason.startswith("the network does not run without it")


def test_a_trial_leaves_the_network_as_it_was() -> None:
    module = build(ZOO["residual"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    analyse(module, EXAMPLE)

    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert all(tensor.requires_grad for tensor in module.parameters())
    assert not module.training


def test_silent_channels_do_not_hide_a_wrong_coupling() -> None:
    """every channel of the stem is dead in this trained state: only other weights can show the misfit of the padding"""
    module = build(ZOO["padded"])
    nn.init.constant_(module.stem[1].bias, -100.0)

    assert [group.name for group in analyse(module, EXAMPLE).groups] == ["inner.0"]


def test_a_network_without_a_group_is_refused_with_the_reasons() -> None:
    """one linear layer: its channels are the answer"""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    with pytest.raises(
        NothingToPrune, match=r"no layer of this network can be narrowed \(1: its channels are the network's output\)"
    ):
        analyse(module, EXAMPLE)


def test_a_network_without_layers_is_refused_with_the_reason() -> None:
    with pytest.raises(NothingToPrune, match=r"\(it has no convolution or linear layer\)"):
        analyse(nn.Sequential(nn.ReLU()), EXAMPLE)


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    module = build(ZOO["chain"])
    module.lock = threading.Lock()

    with pytest.raises(TraceError, match=r"cannot be copied: cannot pickle '_thread.lock' object; copy.deepcopy must accept it"):
        analyse(module, EXAMPLE)


def test_remaining_entries_follow_the_kept_channels() -> None:
    space = PruneSpace(analyse(build(ZOO["flatten"]), EXAMPLE).groups)

    assert space.remaining("hidden.weight", 1, 96, {"a.0": (1,), "hidden": tuple(range(10))}).tolist() == list(range(16, 32))
    assert space.remaining("a.0.weight", 0, 6, {"a.0": (1, 4), "hidden": ()}).tolist() == [1, 4]
    assert space.remaining("unknown", 0, 3, {}).tolist() == [0, 1, 2]
