"""The faster way to prune grouped layers is measured once, and a resumed run keeps it."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.nets import build
from helpers.sshd import Board, needs_sshd
from torch import nn

from pipeline import Job, compress
from pipeline.calibrate import models_to_measure
from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import load_profile
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.graph.structure import load_graph
from pipeline.probe.interface import MeasurementOptions
from pipeline.probe.simulated import SimulatedProbe
from pipeline.stages.choose_grouped import faster_grouped
from pipeline.stages.prepare import start_probe
from pipeline.stages.probe_adapter import graph_of, reference_of
from pipeline.stages.shared_device import share_device
from pipeline.training.settings import FinetuneSettings


def one_output_each() -> nn.Module:
    """3x3 in 16 groups with one output each, which stay if channels leave evenly"""
    grouped = nn.Conv2d(64, 16, 3, padding=1, groups=16)
    return nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.ReLU(), grouped, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )


def wide_groups() -> nn.Module:
    """3x3 in 4 groups of 16 channels: half of each group is a quarter of its products"""
    grouped = nn.Conv2d(64, 64, 3, padding=1, groups=4)
    return nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.ReLU(), grouped, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)
    )


def built(net: nn.Module, folder: Path, grouped: Grouped) -> PrunedModelBuilder:
    example = torch.ones(1, 3, 32, 32)
    return start_builder(net, example, FileFormat(18, 9), PruningSettings(grouped=grouped), folder / "dense.onnx")


@pytest.mark.parametrize(("make", "faster"), [(one_output_each, "whole"), (wide_groups, "evenly")])
def test_the_faster_way_is_chosen_and_both_figures_are_said(
    make: Callable[[], nn.Module], faster: Grouped, tmp_path: Path
) -> None:
    net = build(make)
    evenly, whole = (built(net, tmp_path, grouped) for grouped in ("evenly", "whole"))
    probe = SimulatedProbe(load_profile("raspberrypi"), reference_of(evenly))
    choice, text = faster_grouped(probe, evenly, whole, 3)

    assert choice == faster
    assert text.startswith("grouped layers: removing whole groups takes ")
    assert text.endswith("whole groups are removed" if faster == "whole" else " ms; channels are removed evenly")


def test_if_it_is_not_certain_which_is_faster_channels_are_removed_evenly(tmp_path: Path) -> None:
    """the same plan on both sides"""
    evenly = built(build(wide_groups), tmp_path, "evenly")
    probe = SimulatedProbe(load_profile("raspberrypi"), reference_of(evenly))
    choice, text = faster_grouped(probe, evenly, evenly, 3)

    assert choice == "evenly"
    assert "not certain" in text


@needs_sshd
def test_both_ways_are_measured_on_the_device_over_ssh(tmp_path: Path, board: Board) -> None:
    """the device builds both files from weight slices, and the connection can be opened again for the search"""
    evenly, whole = (built(build(one_output_each), tmp_path, grouped) for grouped in ("evenly", "whole"))
    with share_device(board.profile(), print) as device:
        with contextlib.closing(start_probe(device, evenly, dry_run=False)) as probe:
            _, text = faster_grouped(probe, evenly, whole, 2)
        with contextlib.closing(start_probe(device, whole, dry_run=False)) as probe:
            measured = probe.measure(graph_of(whole.make(whole.space.dense())), MeasurementOptions(1, memory=False))

    assert text.startswith("grouped layers: removing whole groups takes ")
    assert isinstance(measured, Measurement)
    assert measured.fingerprint.mode == "device"


NET = """
import torch
from torch import nn

def make(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, classes),
    )
"""


def lines(out: Path, kind: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_a_resumed_run_keeps_the_choice_and_does_not_measure_again(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    out = tmp_path / "run"
    settings = FinetuneSettings(epochs=0)
    job = Job(
        "raspberrypi",
        f"{tmp_path}/nets.py:make",
        budget={"latency_p50": "95%"},
        dry_run=True,
        trials=2,
        supernet_steps=0,
        finetuning=settings,
        out=out,
    )
    first = compress(job)
    first.folder.rename(tmp_path / "artifact")
    again = compress(job)

    assert [line["facts"] for line in lines(out, "grouped")] == [{"removed": "whole"}]
    assert sum("removing whole groups takes" in str(line["text"]) for line in lines(out, "choice")) == 1
    assert sum(line["name"] == "groups" for line in lines(out, "phase")) == 1
    assert (again.folder / "model.onnx").read_bytes() == (tmp_path / "artifact" / "model.onnx").read_bytes()
    plan = json.loads((again.folder / "plan.json").read_text())
    assert plan["groups"].keys() == {"0"}


def test_a_calibration_measures_plans_of_both_ways(tmp_path: Path) -> None:
    """the ends and every second plan between them are even; the groups of the grouped layer fall in the others"""
    evenly, whole = (built(build(wide_groups), tmp_path, grouped) for grouped in ("evenly", "whole"))
    made = models_to_measure((evenly, whole), 4, 4, seed=0)
    groups = [
        max(each.i for node in load_graph(model.data).graph.node for each in node.attribute if each.name == "group")
        for model in made
    ]

    assert [groups[number] for number in (0, 1, 2, 4)] == [4, 4, 4, 4]
    assert min(groups[3], groups[5]) < 4
