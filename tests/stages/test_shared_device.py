"""The device of a run: connected to once, and by whoever needs it first."""

import os
import signal
from pathlib import Path

import torch
from helpers.sshd import Board, needs_sshd
from helpers.workers import until
from torch import nn

from pipeline.core.measurement import Measurement
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.interface import MeasurementOptions
from pipeline.stages.prepare import file_format, start_probe
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.shared_device import SharedDevice, share_device

pytestmark = needs_sshd
QUICK = MeasurementOptions(1, memory=False)


def built(device: SharedDevice, folder: Path, *, ask: bool = True) -> PrunedModelBuilder:
    """conv(8) -> relu -> conv(4), in the file format that the device reads"""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 2)).eval()
    return start_builder(net, torch.randn(1, 3, 8, 8), file_format(device, ask=ask), PruningSettings(), folder / "dense.onnx")


def dense(builder: PrunedModelBuilder) -> PrunedModel:
    return builder.make(builder.space.dense())


def accepted(board: Board) -> int:
    """How many connections the server accepted so far."""
    return (board.folder / "sshd.log").read_text().count("Accepted publickey")


def test_the_device_is_connected_to_once_up_to_its_first_measurement(board: Board, tmp_path: Path) -> None:
    """asked for its onnxruntime first, and measured on later"""
    with share_device(board.profile(), print) as device:
        assert accepted(board) == 0
        builder = built(device, tmp_path)
        probe = start_probe(device, builder, dry_run=False)
        measured = probe.measure(graph_of(dense(builder)), QUICK)

    assert isinstance(measured, Measurement)
    assert measured.relative_p50 is not None
    assert accepted(board) == 1


def test_a_dry_run_does_not_connect_to_the_device(board: Board, tmp_path: Path) -> None:
    with share_device(board.profile(), print) as device:
        builder = built(device, tmp_path, ask=False)
        start_probe(device, builder, dry_run=True).measure(graph_of(dense(builder)), QUICK)

    assert accepted(board) == 0


def test_a_connection_that_broke_before_the_first_measurement_is_opened_again(board: Board, tmp_path: Path) -> None:
    with share_device(board.profile(), print) as device:
        builder = built(device, tmp_path)
        for pid in board.connections():
            os.kill(pid, signal.SIGKILL)
        measured = start_probe(device, builder, dry_run=False).measure(graph_of(dense(builder)), QUICK)

    assert isinstance(measured, Measurement)
    assert accepted(board) == 2


def test_the_worker_on_the_device_ends_with_the_run(board: Board, tmp_path: Path) -> None:
    """also when nothing was measured"""
    with share_device(board.profile(), print) as device:
        built(device, tmp_path)
        assert len(board.workers()) == 1

    assert until(lambda: not board.workers())
