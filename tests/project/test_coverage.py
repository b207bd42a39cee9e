"""The coverage benchmark: its page says what its raw lines say, and every way to fail has its own name."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from coverage_child import failure, layer_widths, reasons, thinnest
from coverage_heads import concatenated
from coverage_networks import Network, architectures, families, randomise
from coverage_page import page, reached
from coverage_runs import PAGE, RESULTS, Limits, append, ended_early, examined, is_due, lines_of
from helpers.families import FAMILIES
from torch import nn

from pipeline.core.plan import Group, NotPrunable, PruneSpace
from pipeline.errors import NothingToPrune, TraceError
from pipeline.graph.export import export

REVISION = {"commit": "aaa", "analysis": "bbb"}


def line(network: str, outcome: str = "proven", **facts: Any) -> dict[str, Any]:
    known = {
        "reason": "three plans agree",
        "params_left": 0.01,
        "macs_left": 0.02,
        "processor_s": 4.0,
        "deployed_layers": 3,
        "deployed_layers_prunable": 2,
    }
    return {"network": network, "family": network.partition(":")[0], **REVISION, "outcome": outcome, **known, **facts}


def test_the_page_is_made_of_the_raw_lines() -> None:
    lines = lines_of(RESULTS)

    names = [each.name for each in families(known=[line["network"] for line in lines])]
    assert PAGE.read_text() == page(lines, names, [each.name for each in architectures()])


def test_each_file_of_timm_has_one_family_and_it_is_not_one_of_its_test_networks() -> None:
    files = [each.family for each in families("timm:*")]

    assert len(files) == len(set(files)) > 90
    assert not any(":test_" in each.name for each in families())


def test_the_last_line_of_a_network_counts() -> None:
    lines = [line("a:one", "refused", reason="no"), line("a:two"), line("a:one")]

    assert "**2 of 2 families (100%) are proven" in page(lines, ["a:one", "a:two"])


def test_a_network_that_its_library_cannot_build_does_not_count() -> None:
    lines = [line("a:one"), line("a:two", "not built", reason="needs another package")]

    assert "**1 of 1 families (100%) are proven" in page(lines, ["a:one", "a:two"])


def test_a_family_without_a_line_leaves_the_verdict_open() -> None:
    text = page([line("a:one")], ["a:one", "a:two"])

    assert "open. 1 of the families have not been examined." in text


def test_only_proven_networks_with_few_operations_left_reach_the_goal() -> None:
    lines = [line("a:one"), line("a:two", macs_left=0.11), line("a:three", "every candidate exported")]

    assert reached(lines, 0.10) == 1


def test_the_first_architectures_in_a_random_order_are_a_sample_of_all() -> None:
    """60 of 100 are examined, and a later one, which is no part of the sample: 45 of 60 reach the goal"""
    order = [f"timm:{number}" for number in range(100)]
    lines = [line(name, macs_left=0.02 if number % 4 else 0.9) for number, name in enumerate(order[:60])] + [line(order[70])]

    text = page(lines, [], order)

    assert "**45 of 60 (75.0%) are proven with M <= 25%.**" in text
    assert "the first 60 of 100 in a random order; 95 % interval: 62.8% to 84.2%" in text


def test_the_architectures_come_in_the_same_random_order_always() -> None:
    names = [each.name for each in architectures()]

    assert names == [each.name for each in architectures()]
    assert names != sorted(names)
    assert len(names) == len(set(names)) > 600


@pytest.mark.parametrize(
    ("known", "failed", "due"),
    [
        (None, False, True),
        (line("a:one"), False, False),
        (line("a:one", analysis="older"), False, True),
        (line("a:one", analysis="older"), True, False),
        (line("a:one", "refused"), True, True),
    ],
)
def test_a_network_is_examined_again_after_a_change_of_the_analysis_or_where_it_failed(
    known: dict[str, Any] | None, failed: bool, due: bool
) -> None:
    assert is_due(known, REVISION, failed) == due


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    results = tmp_path / "lines.jsonl"
    append(results, line("a:one"))
    append(results, line("a:two"))

    assert [each["network"] for each in lines_of(results)] == ["a:one", "a:two"]
    assert lines_of(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (NothingToPrune("none"), "nothing to prune"),
        (TraceError("cannot be traced"), "refused"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too much memory"),
        (IndexError("list index out of range"), "traceback"),
    ],
)
def test_every_failure_has_its_name(problem: Exception, outcome: str) -> None:
    with pytest.raises(type(problem)) as raised:
        raise problem

    assert failure(raised.value)["outcome"] == outcome


@pytest.mark.parametrize(
    ("code", "phase", "outcome"),
    [
        (-signal.SIGXCPU, "analysis", "too much time"),
        (-signal.SIGKILL, "analysis", "too much memory"),
        (-signal.SIGSEGV, "analysis", "traceback"),
        (-signal.SIGKILL, "build", "not built"),
    ],
)
def test_a_process_thatended_early_has_a_name_too(code: int, phase: str, outcome: str) -> None:
    log = 'Current thread 0x1 (most recent call first):\n  File "/x/pipeline/graph/proof.py", line 9 in prove_slice\n'

    assert ended_early(code, phase, log)["outcome"] == outcome


def test_a_process_that_took_too_long_says_where_it_was() -> None:
    log = 'Thread 0x1:\n  File "/lib/torch/nn.py", line 3 in call\n  File "/x/pipeline/graph/proof.py", line 9 in prove_slice\n'

    assert (
        ended_early(-signal.SIGXCPU, "analysis", log)["reason"]
        == "stopped during analysis, in pipeline/graph/proof.py:9 prove_slice"
    )


def test_the_outputs_of_layers_are_counted_in_the_graph() -> None:
    """conv(12) -> conv(16) -> linear(24) -> linear(5)"""
    module, example = FAMILIES["vgg"]()

    assert sorted(layer_widths(export(module, example, 18, 9)).values()) == [5, 12, 16, 24]


def test_the_thinnest_plan_keeps_a_thirty_second_and_at_least_one() -> None:
    space = PruneSpace((Group("a", 64, ()), Group("b", 8, ()), Group("c", 33, ())))

    assert dict(thinnest(space)) == {"a": 2, "b": 1, "c": 2}


def test_reasons_are_counted_the_most_frequent_first() -> None:
    frozen = tuple(NotPrunable(name, "output" if name == "head" else "tied") for name in ("head", "a", "b", "c", "d"))

    assert reasons(PruneSpace((), frozen)) == [("tied", 4, ["a", "b", "c"]), ("output", 1, ["head"])]


def test_several_outputs_become_one() -> None:
    nested = {"classes": [torch.zeros(1, 2, 3), torch.ones(1, 4)], "boxes": (torch.zeros(1, 5),)}

    assert concatenated(nested).shape == (1, 15)
    assert concatenated([torch.zeros(1, 2, 3)]).shape == (1, 2, 3)


def test_scales_and_biases_that_start_as_a_constant_get_noise() -> None:
    norm, linear = nn.BatchNorm2d(8), nn.Linear(4, 4)
    before = linear.weight.clone()
    randomise(nn.ModuleList([norm, linear]))

    assert len(norm.weight.unique()) == len(norm.bias.unique()) == 8
    assert torch.equal(linear.weight, before)


@pytest.mark.slow
def test_a_network_is_examined_in_a_process_with_limits() -> None:
    network = Network("torchvision:squeezenet1_1", "torchvision classification")

    assert examined(network, Limits(processor_s=300, memory_gib=8))["outcome"] == "proven"
    assert examined(network, Limits(processor_s=1, memory_gib=8))["outcome"] == "too much time"
    assert examined(Network("torchvision:none", "torchvision"), Limits(300, 8))["outcome"] == "not built"


def test_raw_lines_carry_the_commit() -> None:
    texts = RESULTS.read_text().splitlines()

    assert texts
    assert all({"commit", "analysis", "torch", "outcome", "reason"} <= set(json.loads(text)) for text in texts)
