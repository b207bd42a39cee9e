"""A whole run that may drop blocks, on real data: a small residual network, the handwritten digits, a simulated probe."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from helpers.residual_net import RESIDUAL_NET, residual

from pipeline.compress import compress
from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.core.run import read_trials
from pipeline.packaging.pack import load_compressed
from pipeline.stages.job import Job
from pipeline.training.load import find_model, load_data
from pipeline.training.settings import FinetuneSettings

pytestmark = pytest.mark.slow  # tests/graph/test_depth_families.py packs and loads networks without blocks in the default tests


def test_a_run_ships_a_network_without_some_of_its_blocks(tmp_path: Path) -> None:
    """A fifth of the MACs. The layers keep at least 4 of 8 channels, so that a quarter is left with all blocks."""
    job = Job(
        target="raspberrypi",
        model=RESIDUAL_NET,
        depth="auto",
        budget={"macs": "20%", "accuracy_drop": 100.0},
        dry_run=True,
        trials=6,
        supernet_steps=4,
        finetuning=FinetuneSettings(epochs=1),
        out=tmp_path / "run",
    )
    result = compress(job)
    plan = json.loads((result.folder / "plan.json").read_text())
    dropped = {name for name, gone in result.artifact.blocks.items() if gone}
    inputs = next(load_data("digits", find_model(RESIDUAL_NET).preprocessing, 0).test.batches(1))[0]

    assert set(result.artifact.blocks) == {"blocks.0", "blocks.1", "blocks.2", "blocks.3"}
    assert dropped == {block["name"] for block in plan["dropped"]} != set()
    assert {name for trial in read_trials(tmp_path / "run") for name in trial.candidate.plan.dropped} <= set(
        result.artifact.blocks
    )
    assert f"{len(dropped)} of 4 blocks" in (result.folder / "report.html").read_text()
    additions = sum(node.op_type == "Add" for node in onnx.load(result.folder / "model.onnx").graph.node)
    assert additions == 4 - len(dropped)
    loaded = load_compressed(residual(), result.folder)
    with torch.no_grad():
        answer = loaded(inputs).numpy()
    assert largest_difference(answer, run_onnx((result.folder / "model.onnx").read_bytes(), inputs.numpy())) <= TOLERANCE
