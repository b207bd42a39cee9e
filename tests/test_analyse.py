"""Analysis: which channels may go, and why others may not."""

import subprocess
import time
from dataclasses import replace

import pytest
import torch
from nets import EXAMPLE, ZOO, build
from torch import Tensor, nn

from pipeline.errors import NothingToPrune, TraceError
from pipeline.graph.analyse import _trial, analyse
from pipeline.graph.trace import _in_child, trace_couplings
from pipeline.plan import Group, PruneSpace


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


def test_a_network_that_does_not_run_cannot_be_traced() -> None:
    with pytest.raises(TraceError, match=r"cannot be traced: RuntimeError: .*mat1 and mat2"):
        analyse(nn.Linear(3, 4), EXAMPLE)


def test_tracing_that_never_ends_is_ended() -> None:
    """the child sleeps for a day; its parent for a quarter of a second"""
    started = time.monotonic()
    answer = _in_child(lambda: time.sleep(86_400), time_limit_s=0.25)

    assert answer == {"error": "no dependency graph after 0 s"}
    assert time.monotonic() - started < 60  # a bound for a hang, not a timing
    assert _children() == []


def test_a_tracing_process_that_dies_is_told() -> None:
    import os

    answer = _in_child(lambda: os._exit(3), time_limit_s=30)

    assert answer == {"error": "the tracing process died, perhaps for lack of memory"}


def test_couplings_of_a_flatten_list_height_times_width_entries() -> None:
    """conv(6) -> 4x4 -> flatten: channel 1 is the entries 16 to 31 of the linear layer"""
    couplings = {coupling.root: coupling for coupling in trace_couplings(build(ZOO["flatten"]), EXAMPLE)}
    members = {name: (entries, roots) for name, _, entries, roots in couplings["a.0"].members}
    entries, roots = members["hidden"]

    assert [entry for entry, root in zip(entries, roots, strict=True) if root == 1] == list(range(16, 32))


def test_remaining_entries_follow_the_kept_channels() -> None:
    space = PruneSpace(analyse(build(ZOO["flatten"]), EXAMPLE).groups)

    assert space.remaining("hidden.weight", 1, 96, {"a.0": (1,), "hidden": tuple(range(10))}).tolist() == list(range(16, 32))
    assert space.remaining("a.0.weight", 0, 6, {"a.0": (1, 4), "hidden": ()}).tolist() == [1, 4]
    assert space.remaining("unknown", 0, 3, {}).tolist() == [0, 1, 2]


def _children() -> list[str]:
    import os

    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.split() if line != "ps"]
