"""Scoring: accuracy, BatchNorm estimated anew, and an ONNX file in a module's clothes."""

import copy
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from helpers.nets import ZOO, build
from torch import Tensor, nn

from pipeline.data.folder import memory_fetch
from pipeline.data.images import Images
from pipeline.data.preprocessing import Preprocessing
from pipeline.graph.export import export
from pipeline.training.scoring import OnnxModule, accuracy, hits, is_clear_loser, recalibrate


class Says(nn.Module):
    """Answers with the class that the first pixel names."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 3).float()


def images(said: list[int], labels: list[int]) -> Images:
    pixels = torch.tensor(said, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Images(memory_fetch(pixels), torch.tensor(labels), torch.arange(len(said)), Preprocessing())


@pytest.mark.parametrize(
    ("said", "labels", "percent"),
    [
        ([0, 1, 2, 0], [0, 1, 2, 0], 100.0),
        ([1, 2, 0, 1], [0, 1, 2, 0], 0.0),
        ([0, 1, 0, 1], [0, 1, 2, 0], 50.0),
        ([0] * 7, [0, 1, 1, 1, 1, 1, 1], 100 / 7),  # a last batch of another size weighs what it holds
    ],
)
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_accuracy_is_the_share_of_right_answers(said: list[int], labels: list[int], percent: float, batch: int) -> None:
    assert accuracy(Says(), images(said, labels), batch) == pytest.approx(percent)


def test_accuracy_looks_at_the_split_alone_and_pauses_between_batches() -> None:
    pauses: list[None] = []
    found = accuracy(
        Says(), images([0, 1, 2, 0], [0, 1, 0, 1]).subset(torch.tensor([0, 1])), batch=1, between=lambda: pauses.append(None)
    )

    assert found == 100.0
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("right", "to_beat", "scored"),
    [
        (0.2, None, 400),  # no plan is within the budget yet
        (0.2, 60.0, 240),  # after 60 % of the images it is clear
        (0.55, 60.0, 280),  # three standard errors of 240 among 400 images are 6.1 points, so it takes a little longer
        (0.59, 60.0, 400),
        (0.9, 60.0, 400),
    ],
)
def test_only_a_clear_loser_is_scored_on_fewer_images(right: float, to_beat: float | None, scored: int) -> None:
    """400 images in batches of 20, of which the same share is right in each batch."""
    labels = [int(place % 20 >= 20 * right) for place in range(400)]

    assert len(hits(Says(), images([0] * 400, labels), 20, to_beat=to_beat)) == scored


def test_a_network_that_would_win_is_hardly_ever_a_clear_loser() -> None:
    """1,000 orders of 2,000 images of which 30 % are right, against a best plan with as many: a look at each further batch."""
    generator = np.random.default_rng(0)
    lost = 0
    for _ in range(1000):
        order = generator.permutation(2000) < 600
        lost += any(is_clear_loser([order[:seen]], 2000, 30.0) for seen in range(1200, 2000, 200))

    assert lost < 0.01 * 1000


def test_accuracy_is_measured_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Dropout(1.0), Says()).train()

    assert accuracy(network, images([1, 2], [1, 2])) == 100.0
    assert not network.training


def batches() -> Iterator[Tensor]:
    """Four batches of 8 images, each with another mean and spread."""
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        yield number + (1 + number) * torch.randn(8, 3, 4, 4, generator=generator)


def test_recalibrated_statistics_are_the_averages_of_the_batches() -> None:
    """conv -> BatchNorm: mean and unbiased variance of each batch by hand, then their plain average."""
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    nn.init.uniform_(network[1].running_mean)
    with torch.no_grad():
        outputs = [network[0](batch).double().transpose(0, 1).flatten(1) for batch in batches()]
    recalibrate(network, batches())

    mean = torch.stack([output.mean(1) for output in outputs]).mean(0)
    variance = torch.stack([output.var(1, correction=1) for output in outputs]).mean(0)
    torch.testing.assert_close(network[1].running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network[1].running_var.double(), variance, rtol=1e-5, atol=1e-5)


def test_a_short_last_batch_counts_for_what_it_holds() -> None:
    """5 images in batches of 4 and 1, which is left out, or of 3 and 2: means weighted by their number."""
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = {}
    for size in (4, 3):
        network = nn.Sequential(nn.BatchNorm2d(3))
        recalibrate(network, images.split(size))
        found[size] = network[0].running_mean

    torch.testing.assert_close(found[4], images[:4].mean((0, 2, 3)))
    torch.testing.assert_close(found[3], images.mean((0, 2, 3)))


def test_recalibrating_leaves_all_else_as_it_was() -> None:
    """Momentum, mode, and every parameter; no second time does anything more."""
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.03), nn.BatchNorm2d(5, momentum=None)).eval()
    parameters = {name: tensor.clone() for name, tensor in network.named_parameters()}
    recalibrate(network, batches())
    once = copy.deepcopy(network.state_dict())
    recalibrate(network, batches())

    assert [network[1].momentum, network[2].momentum] == [0.03, None]
    assert not any(layer.training for layer in network.modules())
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in network.named_parameters())
    assert all(torch.equal(tensor, once[name]) for name, tensor in network.state_dict().items())


def test_only_batchnorm_is_in_training_mode_meanwhile() -> None:
    """Dropout of everything before the BatchNorm would leave a variance of 0."""
    network = nn.Sequential(nn.Dropout(1.0), nn.BatchNorm2d(3))
    recalibrate(network, batches())

    assert network[1].running_var.min() > 1


@pytest.mark.parametrize("norm", [nn.Identity(), nn.GroupNorm(1, 5), nn.BatchNorm2d(5, track_running_stats=False)])
def test_a_network_without_running_statistics_is_not_even_run(norm: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), norm)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def none() -> Iterator[Tensor]:
        raise AssertionError("no batch is needed")
        yield

    recalibrate(network, none())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["chain", "squeeze-excite"])
def test_an_onnx_file_answers_like_the_module_it_came_from(name: str) -> None:
    """The file takes one image at a time, the module any number."""
    network = build(ZOO[name])
    batch = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model = export(network, batch[:1], opset=18, ir_version=9)
    clothed = OnnxModule(model.SerializeToString())

    with torch.no_grad():
        np.testing.assert_allclose(clothed(batch).numpy(), network(batch).numpy(), rtol=1e-4, atol=1e-5)
    assert [entry.dim_value for entry in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]


def test_an_onnx_file_can_be_scored_like_a_module() -> None:
    """y = x, three classes: the brightest pixel is the answer."""
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        agraph (float[1, 3, 1, 1] x) => (float[1, 3] y)
        { y = Flatten <axis = 1> (x) }""")
    pixels = torch.eye(3).view(3, 3, 1, 1)
    brightest = Images(memory_fetch(pixels), torch.tensor([0, 1, 0]), torch.arange(3), Preprocessing())

    assert accuracy(OnnxModule(model.SerializeToString()), brightest) == pytest.approx(200 / 3)
