"""A run directory that an older version of this program made is still read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import load_compressed
from pipeline.core.artifact import read_artifact
from pipeline.core.run import read_trials
from pipeline.packaging.report.page import headline
from pipeline.training.load import find_model

OLD = Path(__file__).parents[1] / "data_of_older_versions"


@pytest.mark.parametrize("run", sorted(OLD.iterdir()), ids=lambda run: run.name)
def test_its_journal_is_read(run: Path) -> None:
    trials = read_trials(run)

    assert [(trial.role, trial.number) for trial in trials] == [
        ("dense", 1),
        ("uniform", 1),
        ("thinnest", 1),
        ("search", 1),
        ("search", 2),
        ("finalist", 1),
    ]
    assert [round(trial.candidate.score or 0, 2) for trial in trials if trial.role == "search"] == [99.65, 76.31]
    assert all(trial.candidate.measurement and trial.candidate.measurement.relative_p50 for trial in trials)


@pytest.mark.parametrize("run", sorted(OLD.iterdir()), ids=lambda run: run.name)
def test_its_artifact_is_read_and_its_verdict_shown(run: Path) -> None:
    artifact = read_artifact(run / "artifact")

    assert artifact.verdict == "over"
    assert {row.key: row.verdict for row in artifact.rows if row.verdict} == {"latency_p50": "within", "accuracy_drop": "over"}
    assert headline(artifact)


@pytest.mark.parametrize("run", sorted(OLD.iterdir()), ids=lambda run: run.name)
def test_its_network_is_rebuilt_and_gives_its_golden_answers(run: Path) -> None:
    network = load_compressed(find_model("digits").factory(10), run / "artifact")
    inputs, expected = (np.load(run / "artifact" / f"golden-{kind}.npy") for kind in ("inputs", "outputs"))
    with torch.no_grad():
        found = network(torch.from_numpy(inputs)).numpy()

    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
