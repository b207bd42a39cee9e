"""Tracing: in a process of its own, which may hang or die."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn

from pipeline.errors import TraceError
from pipeline.graph.couplings import _in_child, trace_couplings


def test_a_network_that_does_not_run_cannot_be_traced() -> None:
    with pytest.raises(TraceError, match=r"cannot be traced: RuntimeError: .*mat1 and mat2"):
        trace_couplings(nn.Linear(3, 4), EXAMPLE)


def test_tracing_that_never_ends_is_ended(tmp_path: Path) -> None:
    """the child writes down who it is and sleeps for a day; nothing is left of it, not even a zombie"""
    pid = tmp_path / "pid"
    answer = _in_child(lambda: (pid.write_text(str(os.getpid())), time.sleep(86_400)), time_limit_s=2.0)

    assert answer == {"error": "no dependency graph after 2 s"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize(
    "work",
    [
        lambda: os._exit(3),
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        lambda: ["long enough to be sent at once " * 10_000, object()],
    ],
    ids=["exit", "killed", "half an answer"],
)
def test_a_tracing_process_that_dies_is_told(work: Callable[[], object]) -> None:
    assert _in_child(work, time_limit_s=60) == {"error": "the tracing process died, perhaps for lack of memory"}


def test_a_tracing_process_that_fails_says_why() -> None:
    assert _in_child(lambda: {}["x"], time_limit_s=60) == {"error": "KeyError: 'x'"}


def test_an_answer_longer_than_a_pipe_arrives_whole() -> None:
    assert _in_child(lambda: list(range(100_000)), time_limit_s=60) == {"couplings": list(range(100_000))}


def test_couplings_of_a_flatten_list_height_times_width_entries() -> None:
    """conv(6) -> 4x4 -> flatten: channel 1 is the entries 16 to 31 of the linear layer"""
    couplings = {coupling.root: coupling for coupling in trace_couplings(build(ZOO["flatten"]), EXAMPLE)}
    members = {name: (entries, roots) for name, _, entries, roots in couplings["a.0"].members}
    entries, roots = members["hidden"]

    assert [entry for entry, root in zip(entries, roots, strict=True) if root == 1] == list(range(16, 32))


def test_a_concat_gives_each_branch_its_own_part_of_the_next_layer() -> None:
    """left (6) and right (4) -> concat -> joint"""
    couplings = {coupling.root: coupling for coupling in trace_couplings(build(ZOO["concat"]), EXAMPLE)}
    heard = {
        root: {name: (entries, roots) for name, role, entries, roots in couplings[root].members if role == "in"}["joint.0"]
        for root in ("left.0", "right.0")
    }

    assert heard == {"left.0": (tuple(range(6)), tuple(range(6))), "right.0": (tuple(range(6, 10)), tuple(range(4)))}


def test_a_group_is_called_after_the_layer_that_runs_first() -> None:
    """a shortcut: the sum of `late` and `early`; `late` is defined first"""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.early(x)
            return self.head((x + self.late(x)).mean((2, 3)))

    assert [coupling.root for coupling in trace_couplings(build(Sum), EXAMPLE)] == ["early", "head"]


def test_a_parameter_of_its_own_is_a_member_with_its_axis() -> None:
    """x + scale * y: the scale is (8, 1, 1), its channels are on axis 0"""
    couplings = trace_couplings(build(ZOO["convnext"]), EXAMPLE)

    assert [(name, role) for name, role, _, _ in couplings[0].members if role.startswith("parameter")] == [
        ("scale", "parameter:0")
    ]


def test_tracing_leaves_the_network_as_it_was() -> None:
    """in training mode, with a frozen stem and no hooks"""
    module = build(ZOO["residual"]).train()
    module.stem.requires_grad_(False)
    trace_couplings(module, EXAMPLE)

    assert module.training
    assert not any(tensor.requires_grad for tensor in module.stem.parameters())
    assert not any(inner._forward_hooks for inner in module.modules())
    assert int(module.stem[1].num_batches_tracked) == 0
