"""Without labels, a network whose outputs are no scores of classes is judged by its agreement with the dense network."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.core.batch import tensors_of
from pipeline.core.profile import load_profile
from pipeline.core.progress import no_progress
from pipeline.data.arrays import load_arrays
from pipeline.errors import DataError, ModelError, TraceError
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task
from pipeline.training.agreement import Agreement, agreement_with
from pipeline.training.epochs import distillation_loss, training_loss
from pipeline.training.relative_error import imitation_loss, sample_agreement, spreads_of
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

PICTURES = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


class Maps(nn.Module):
    """picture, level (int64) -> conv(8) -> norm -> relu -> map (2); its mean + embedding of the level -> value (1); class of each pixel"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.map, self.levels = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 2, 1),
            nn.Embedding(4, 1),
        )

    def forward(self, picture: Tensor, level: Tensor) -> dict[str, Tensor]:
        maps = self.map(self.norm(self.a(picture)).relu())
        return {"map": maps, "value": maps.mean((1, 2, 3)) + self.levels(level)[:, 0], "classes": maps.argmax(1)}


def maps() -> nn.Module:
    torch.manual_seed(0)
    return Maps()


def outputs(seed: int, count: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (count, 5), generator=generator)
    return torch.randn(count, 2, 4, generator=generator) + 3, torch.randn(count, 1, generator=generator), classes


def test_agreement_is_what_the_formula_says() -> None:
    """one sample after the other, with numpy"""
    dense, pruned = outputs(0), outputs(1)
    spreads = spreads_of([tuple(each[:4] for each in dense), tuple(each[4:] for each in dense)])
    found = sample_agreement(pruned, dense, spreads)

    for sample in range(6):
        errors = []
        for whole, ours in zip(dense, pruned, strict=True):
            theirs, own = whole.numpy(), ours.numpy()[sample]
            if theirs.dtype == np.int64:
                errors.append(np.mean(own != theirs[sample]))
            else:
                spread = np.sqrt(np.mean((theirs - theirs.mean(0)) ** 2))
                errors.append(min(np.sqrt(np.mean((own - theirs[sample]) ** 2)) / spread, 1))
        assert float(found[sample]) == pytest.approx(100 * (1 - np.mean(errors)), rel=1e-5)


def test_the_dense_network_agrees_with_itself_and_its_mean_hardly() -> None:
    dense = outputs(0, 200)[:2]
    mean = tuple(each.mean(0, keepdim=True).expand_as(each) for each in dense)
    spreads = spreads_of([dense])

    assert float(sample_agreement(dense, dense, spreads).min()) == 100.0
    errors = [(ours - theirs).square().mean().sqrt() / spread for ours, theirs, spread in zip(mean, dense, spreads, strict=True)]
    assert [float(error) for error in errors] == pytest.approx([1.0, 1.0], rel=1e-5)
    assert float(sample_agreement(mean, dense, spreads).mean()) < 30.0  # some samples are nearer to the mean than the spread


def test_an_output_that_is_always_the_same_is_compared_with_its_size() -> None:
    constant = torch.full((5, 3), 4.0)

    assert spreads_of([constant]) == pytest.approx((4.0,))
    assert float(sample_agreement(constant * 1.1, constant, (4.0,)).mean()) == pytest.approx(90.0, abs=1e-3)


def test_outputs_that_are_no_numbers_count_as_wrong() -> None:
    dense = torch.randn(4, 3, 2)

    assert sample_agreement(dense * torch.nan, dense, spreads_of([dense])).tolist() == [0.0] * 4


def test_the_loss_compares_all_outputs_but_integers() -> None:
    dense, pruned = outputs(0), outputs(1)
    parts = [
        (ours - theirs).square().mean() / theirs.var(correction=0) for ours, theirs in zip(pruned[:2], dense[:2], strict=True)
    ]
    settings = FinetuneSettings(distillation=1.0)

    for loss in (
        imitation_loss(pruned, dense),
        distillation_loss(pruned, dense, 4.0),
        training_loss(pruned, dense, torch.zeros(6), settings),
    ):
        assert float(loss) == pytest.approx(float(sum(parts) / 2), rel=1e-5)
    with pytest.raises(ValueError, match="only integers"):
        imitation_loss(pruned[2:], dense[2:])


def task_of(folder: Path, **arrays: Any) -> tuple[nn.Module, Classification]:
    np.savez(folder / "inputs.npz", **arrays)
    (folder / "nets.py").write_text("from test_agreement import maps\n")
    job = Job("raspberrypi", model=f"{folder}/nets.py:maps", data=f"{folder}/inputs.npz", finetuning=FinetuneSettings(epochs=2))
    loaded = load_model_and_task(job, load_profile("raspberrypi"))
    assert isinstance(loaded.task, Classification)
    return loaded.module, loaded.task


def test_a_file_of_inputs_is_enough_for_a_network_with_several_of_them(tmp_path: Path) -> None:
    """picture and level -> map, value, classes: a worse network scores less, and training brings it closer"""
    module, task = task_of(tmp_path, picture=PICTURES, level=np.arange(40) % 4)
    worse = copy.deepcopy(module)
    with torch.no_grad():
        worse.a.weight += 0.1 * torch.randn(worse.a.weight.shape, generator=torch.Generator().manual_seed(1))
    tuned = task.finetune(copy.deepcopy(worse), module, 0, tmp_path / "checkpoint", no_progress)

    assert isinstance(task, Agreement)
    assert (task.score_name, task.chance_level, task.distillation_images(10)) == ("agreement", 0.0, None)
    assert task.validate(module) == 100.0
    assert task.test(module).value == 100.0
    assert len(task.test(module).each) == len(task.splits.test)  # type: ignore[arg-type]
    before = task.validate(worse)
    assert 0 < before < 100
    assert task.validate(tuned.module) > before
    assert [tuple(tensor.shape) for tensor in tensors_of(task.inputs(3))] == [(3, 3, 8, 8), (3,)]


def test_a_single_output_of_scores_is_judged_by_its_largest_value(tmp_path: Path) -> None:
    """conv -> mean -> linear(4) on a .npy file: the labels are the network's own answers"""
    (tmp_path / "nets.py").write_text("from test_agreement import scores\n")
    np.save(tmp_path / "inputs.npy", PICTURES)
    job = Job("raspberrypi", model=f"{tmp_path}/nets.py:scores", data=f"{tmp_path}/inputs.npy")
    loaded = load_model_and_task(job, load_profile("raspberrypi"))

    assert type(loaded.task) is Classification
    assert (loaded.task.score_name, loaded.task.splits.classes) == ("agreement", ("0", "1", "2", "3"))
    assert any("agreement with the dense network is judged in place of accuracy" in notice for notice in loaded.notices)


def scores() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("arrays", "error", "complaint"),
    [
        (
            {"image": PICTURES, "level": np.arange(40)},
            DataError,
            "has arrays image, level; the network takes picture, level: name",
        ),
        ({"picture": PICTURES, "level": PICTURES}, TraceError, "the network fails on inputs of 1x3x8x8, 1x3x8x8 from"),
    ],
)
def test_arrays_that_do_not_fit_a_networks_arguments_are_refused(
    tmp_path: Path, arrays: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error) as caught:
        task_of(tmp_path, **arrays)

    assert complaint in str(caught.value)


def test_an_output_without_the_samples_on_its_first_axis_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\nclass Net(torch.nn.Conv2d):\n    def forward(self, x):\n        return super().forward(x), self.bias\n"
        "net = Net(3, 4, 3)\n"
    )
    np.save(tmp_path / "inputs.npy", PICTURES)
    job = Job("raspberrypi", model=f"{tmp_path}/nets.py:net", data=f"{tmp_path}/inputs.npy")
    with pytest.raises(ModelError, match=r"output 2 of 2 is 4 for one sample; its first axis must be the sample"):
        load_model_and_task(job, load_profile("raspberrypi"))


def test_large_outputs_mean_fewer_validation_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "inputs.npy", np.repeat(PICTURES, 10, axis=0))
    splits = load_arrays(tmp_path / "inputs.npy", (), None, seed=0)
    monkeypatch.setattr("pipeline.training.agreement.MOST_VALIDATION_BYTES", 20 * 8 * 6 * 6 * 4)
    task = agreement_with(nn.Conv2d(3, 8, 3), splits, FinetuneSettings(), 0)

    assert (len(splits.validation), len(task.splits.validation)) == (40, 20)
