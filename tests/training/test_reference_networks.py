"""The reference networks are those of the papers, and the demo network knows the digits."""

import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.system.bundled import shipped_folder
from pipeline.training.load import find_model, load_data, load_model
from pipeline.training.scoring import accuracy


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return find_model(name).factory(num_classes=10).eval()


# parameters, and multiply-accumulates of the convolutions and the linear layer, for 32x32 images
@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("vgg11_bn", 9_228_362, 152.9e6),
        ("vgg16_bn", 14_724_042, 313.2e6),  # 1.5e7 and 3.13e8: Li et al., arXiv 1608.08710, table 1
        ("vgg19_bn", 20_035_018, 398.1e6),
        ("resnet18", 11_173_962, 555.4e6),
        ("resnet20", 269_722, 40.81e6),  # 0.27M: He et al., arXiv 1512.03385, table 6; 0.26e6 are the shortcuts'
        ("resnet56", 853_018, 125.7e6),  # 0.85M there; 1.25e8: Li et al., table 1
        ("mobilenet_v2", 2_236_682, 87.98e6),
        ("digits", 730_122, 18.58e6),
    ],
)
def test_each_network_has_the_size_of_the_paper(name: str, params: int, macs: float) -> None:
    network = build(name)
    source = find_model(name)
    assert source.preprocessing is not None
    images = torch.zeros(1, source.preprocessing.channels or 0, source.preprocessing.size or 0, source.preprocessing.size or 0)
    counted: list[float] = []

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            counted.append(output[0].numel() * layer.weight[0].numel())

    for layer in network.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        answer = network(images)

    assert answer.shape == (1, 10)
    assert sum(tensor.numel() for tensor in network.parameters() if tensor.requires_grad) == params
    assert sum(counted) == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet18", "resnet20", "mobilenet_v2"])
def test_as_many_classes_as_are_asked_for(name: str) -> None:
    assert find_model(name).factory(num_classes=3).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_every_file_of_networks_says_how_it_wants_its_images() -> None:
    names = ["digits", "mobilenet_v2", "resnet18", "resnet20", "resnet56", "vgg11_bn", "vgg16_bn", "vgg19_bn"]

    assert all(find_model(name).preprocessing is not None for name in names)


def slow_option_a(x: torch.Tensor, width: int) -> torch.Tensor:
    """He et al., section 3.3 (A): out[c + p, i, j] = x[c, 2 i, 2 j], p new channels of zeros on either side."""
    count, channels, height, _ = x.shape
    p = (width - channels) // 2
    out = torch.zeros(count, width, height // 2, height // 2)
    for n, c, i, j in itertools.product(range(count), range(channels), range(height // 2), range(height // 2)):
        out[n, c + p, i, j] = x[n, c, 2 * i, 2 * j]
    return out


@pytest.mark.parametrize("stage", [2, 3])
def test_the_shortcut_without_parameters_takes_every_second_pixel_and_pads_with_zeros(stage: int) -> None:
    """relu(residual + shortcut) with the residual silenced is relu(shortcut)."""
    block = build("resnet20").get_submodule(f"layer{stage}.0")
    nn.init.zeros_(block.bn2.weight)
    nn.init.zeros_(block.bn2.bias)
    width = 16 * 2 ** (stage - 1)
    x = torch.randn(2, width // 2, 6, 6, generator=torch.Generator().manual_seed(0))

    assert not any(tensor.requires_grad for tensor in block.shortcut.parameters())
    assert torch.equal(block(x), slow_option_a(x, width).relu())


def test_weights_from_elsewhere_need_not_know_how_the_shortcut_is_written(tmp_path: Path) -> None:
    """published checkpoints of this network have no tensor for it; ours writes it as a convolution that is never trained"""
    source = find_model("resnet20")
    published = {name: tensor for name, tensor in build("resnet20").state_dict().items() if "shortcut" not in name}
    safetensors.torch.save_file(published, tmp_path / "published.safetensors")
    network = load_model(source, tmp_path / "published.safetensors", 10)

    assert torch.equal(network.get_submodule("layer2.0.shortcut").weight[8:24, :, 0, 0], torch.eye(16))


def test_the_demo_network_reads_at_least_98_percent_of_the_test_digits() -> None:
    source = find_model("digits")
    splits = load_data("digits", source.preprocessing, seed=0)
    found = accuracy(load_model(source, None, 10), splits.test)
    with safetensors.safe_open(shipped_folder("models") / "digits.safetensors", "pt") as file:
        noted = file.metadata()

    assert found >= 98.0
    assert f"{found:.2f}" == noted["test_accuracy"]
    assert noted["data"] == splits.description


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet56", 853_018)])
def test_kept_weights_fill_their_network_and_tell_its_accuracy(name: str, parameters: int) -> None:
    weights = shipped_folder("models") / f"{name}-cifar10.safetensors"
    network = load_model(find_model(name), weights, 10)
    with safetensors.safe_open(weights, "pt") as file:
        noted = file.metadata()

    assert sum(tensor.numel() for tensor in network.parameters() if tensor.requires_grad) == parameters
    assert f"{noted['test_accuracy']} % on its test images" in weights.with_name(f"{name}-cifar10.NOTICE.txt").read_text()


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_weights_that_are_for_one_data_set_are_not_taken_unasked(name: str) -> None:
    assert find_model(name).weights is None
