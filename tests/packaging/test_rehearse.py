"""Rehearse: no run is lost at its end; what cannot work is known, and named, before the search."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.compress import compress
from pipeline.core.progress import NullCallback
from pipeline.packaging.pack import load_compressed
from pipeline.stages.job import Job
from pipeline.system.user_files import own_line
from pipeline.training.adapt_network import adapt, plain
from pipeline.training.execution_mode import execution_mode_of, layout_of, set_execution_mode, train_mode
from pipeline.training.settings import FinetuneSettings

BUDGET = {"latency_p50": "100%", "params": "90%"}
HEADER = """
import torch
from torch import nn
from torch.nn import functional as F

PREPROCESSING = {"size": 8, "mean": (0.305,), "std": (0.376,)}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.aux, self.norm = nn.Conv2d(8, 10, 1), nn.BatchNorm2d(8)

    def forward(self, x):
"""
ANSWER = "        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))\n"
AUXILIARY = """
        x = F.relu(self.a(x))
        z = self.head(F.relu(self.b(x)).mean((2, 3)))
        return (z, self.aux(x).mean((2, 3))) if self.training else z
"""
REFUSING = """
        x = self.norm(F.relu(self.b(F.relu(self.a(x)))))
        if self.norm.training:
            raise ValueError("no training today")
        return self.head(x.mean((2, 3)))
"""


class Noted(NullCallback):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.phases: list[str] = []
        self.steps: list[tuple[str, str]] = []
        """Stage and text of each progress report."""

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def phase(self, name: str, detail: str) -> None:
        self.phases.append(name)

    def progress(self, done: int, total: int, text: str) -> None:
        self.steps.append((self.phases[-1], text))


def run(folder: Path, forward: str) -> Noted:
    (folder / "n.py").write_text(HEADER + forward)
    callback = Noted()
    job = Job(
        target="raspberrypi",
        model=f"{folder / 'n.py'}:Net",
        dry_run=True,
        trials=1,
        supernet_steps=0,
        budget=BUDGET,
        finetuning=FinetuneSettings(epochs=1, learning_rate=0.05),
        out=folder / "run",
    )
    compress(job, callback)
    return callback


def test_code_that_fails_in_training_only_is_named_with_its_line_and_the_rebuilt_network_is_trained(tmp_path: Path) -> None:
    line = (HEADER + REFUSING).splitlines().index('            raise ValueError("no training today")') + 1
    notices = run(tmp_path, REFUSING).notices

    assert any(
        re.search(rf"fails in scoring a batch of images: ValueError: no training today \(n\.py:{line}\); .* rebuilt", notice)
        for notice in notices
    )
    assert json.loads((tmp_path / "run" / "artifact" / "plan.json").read_text())["network"] == "rebuilt"
    facts = json.loads((tmp_path / "run" / "artifact" / "artifact.json").read_text())
    assert facts["network"] == "rebuilt"
    assert facts["network_reason"] == f"its own code failed in the rehearsal: no training today (n.py:{line})"
    assert plain(load_compressed(nn.Identity(), tmp_path / "run" / "artifact"))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_with_an_auxiliary_head_is_trained_without_it_also_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head reads channels that a narrowed network does not have any more. The second run takes what the first one found."""
    first = run(tmp_path, AUXILIARY)
    assert not list((tmp_path / "run").glob(".rehearsal*"))
    (tmp_path / "run" / "artifact").rename(tmp_path / "away")
    monkeypatch.setattr("pipeline.packaging.rehearse._rehearsed", None)

    second = run(tmp_path, AUXILIARY)

    for callback in (first, second):
        assert any("without auxiliary outputs" in notice for notice in callback.notices)
    assert (tmp_path / "run" / "artifact" / "model.onnx").is_file()


def test_a_report_that_cannot_be_made_costs_no_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise ValueError("a <plot> failed")

    monkeypatch.setattr(sys.modules["pipeline.compress"], "report_page", broken)
    callback = run(tmp_path, ANSWER)

    rehearsed = [text for stage, text in callback.steps if stage == "rehearse"]
    for step in ("exporting the trained network", "simplifying the file", "writing the report and the artifact"):
        assert any(text.startswith(step) for text in rehearsed), step
    assert any("the report could not be written (ValueError: a <plot> failed)" in notice for notice in callback.notices)
    assert "a &lt;plot&gt; failed" in (tmp_path / "run" / "artifact" / "report.html").read_text()
    assert (tmp_path / "run" / "artifact" / "model.onnx").is_file()


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Viewing(nn.Module):
    """x -> conv(4) -> view as (N, 4 * 64) -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x)).view(x.size(0), -1))


class Single(Viewing):
    """as above, for one image"""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x)).reshape(1, -1))


def test_a_network_that_views_its_maps_keeps_the_usual_memory_layout() -> None:
    network = Viewing().eval()
    adapt(network, IMAGES)

    assert layout_of(network) == torch.contiguous_format
    assert layout_of(nn.Sequential(nn.Conv2d(1, 4, 3))) == torch.channels_last


def test_a_network_for_one_image_answers_and_learns_from_batches_of_any_size() -> None:
    network = Single().eval()
    expected = torch.cat([network(image) for image in IMAGES.split(1)])
    (notice,) = adapt(network, IMAGES)

    assert "one by one" in notice
    assert torch.equal(network(IMAGES), expected)
    network(IMAGES.repeat(3, 1, 1, 1)).sum().backward()
    assert list(network.state_dict()) == list(Single().state_dict())


def test_a_network_that_normalises_by_its_batch_is_given_its_images_one_by_one_as_on_a_device() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 10))
    alone = torch.cat([network(image) for image in IMAGES.split(1)])
    (notice,) = adapt(network, IMAGES)

    assert "depends on the other images" in notice
    assert torch.equal(network(IMAGES), alone)


def parts() -> list[nn.Module]:
    return [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)]


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Sequential(*parts())


def shared_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        network = nn.Sequential(*parts(), nn.Linear(10, 10), nn.Linear(10, 10))
        network[-1].weight = network[-2].weight
        return network


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "frozen": lambda: nn.Sequential(*parts()).requires_grad_(False),
    "inference mode": made_in_inference_mode,
    "shared weights in inference mode": shared_in_inference_mode,
    "compiled": lambda: torch.compile(nn.Sequential(*parts())),  # type: ignore[return-value]
    "a compiled part": lambda: nn.Sequential(torch.compile(nn.Sequential(*parts()))),  # type: ignore[arg-type]
    "synchronised": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*parts(), nn.BatchNorm1d(10))),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_whatever_state_a_factory_leaves_its_network_in_it_can_be_trained(name: str) -> None:
    network = plain(FACTORIES[name]()).eval()
    expected = network(IMAGES)
    adapt(network, IMAGES)
    kinds = {type(layer).__name__ for layer in network.modules()}

    assert torch.equal(network(IMAGES), expected)
    assert not {"OptimizedModule", "SyncBatchNorm"} & kinds
    assert not any("_orig_mod" in key for key in network.state_dict())
    train_mode(network)
    network(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert len({id(parameter) for parameter in network.parameters()}) == len(list(plain(FACTORIES[name]()).parameters()))


def test_training_that_does_not_reach_the_networks_own_code_reaches_its_batchnorms() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.norm(x))

    network = Own()
    set_execution_mode(network, type(execution_mode_of(network))(whole_training=False))
    train_mode(network)

    assert (network.training, network.norm.training, network.drop.training) == (False, True, True)


def test_an_error_that_came_through_no_line_of_the_user_is_not_the_networks() -> None:
    with pytest.raises(ValueError, match="Expecting") as caught:
        json.loads("{")
    problem = caught.value

    assert own_line(problem) is not None  # this file is the user's
    assert problem.__traceback__ is not None
    assert own_line(problem.with_traceback(problem.__traceback__.tb_next)) is None
