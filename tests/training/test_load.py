"""Networks from their specs, and how their images are normalised when nothing declares it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.folder import memory_fetch
from pipeline.data.images import Splits
from pipeline.data.preprocessing import USUAL_NORMALISATIONS, Preprocessing
from pipeline.errors import ModelError, WeightsError
from pipeline.training.load import find_model, load_model, settle_normalisation

NETS = """
from torch import nn

PREPROCESSING = {"size": 4, "mean": (0.5,), "std": (0.25,)}

def make_net(num_classes=7):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, num_classes))

def fixed():
    return nn.Linear(2, 3)

def fails():
    raise ValueError("no such width")

def leaves():
    raise SystemExit("usage: nets.py")

def no_net():
    return 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


def built(nets: Path, num_classes: int | None) -> nn.Module:
    return load_model(find_model(f"{nets}:make_net"), None, num_classes)


# networks


def test_a_shipped_network_comes_with_its_preprocessing_and_its_weights() -> None:
    source = find_model("digits")
    network = load_model(source, None, num_classes=10)

    assert source.preprocessing == Preprocessing(size=8, mean=(0.305,), std=(0.376,), augment=("crop",))
    assert not network.training
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_a_torchvision_network_comes_with_its_preprocessing_and_needs_weights() -> None:
    source = find_model("torchvision:squeezenet1_1")

    assert source.preprocessing is not None
    assert (source.preprocessing.size, source.preprocessing.resize, source.preprocessing.grey) == (224, 256, "convert")
    assert source.factory(num_classes=3).num_classes == 3
    with pytest.raises(WeightsError, match="torchvision:squeezenet1_1: no weights are given"):
        load_model(source, None, num_classes=3)


def test_a_factory_of_ones_own_is_told_the_number_of_classes_if_it_asks(nets: Path) -> None:
    assert find_model(f"{nets}:make_net").preprocessing == Preprocessing(size=4, mean=(0.5,), std=(0.25,))
    assert built(nets, num_classes=5)[3].out_features == 5  # type: ignore[index]
    assert built(nets, num_classes=None)[3].out_features == 7  # type: ignore[index]
    assert load_model(find_model(f"{nets}:fixed"), None, num_classes=5).out_features == 3


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            "nothing",
            "unknown model 'nothing'; give FILE.onnx, file.py:factory, package.module:factory, torchvision:<name>, or one of digits, mobi",
        ),
        ("train", "unknown model 'train'"),
        ("torchvision:nothing", "torchvision has no classification network 'nothing'; see torchvision.models.list_models()"),
        ("torchvision:resnet-18", "torchvision has no classification network 'resnet-18'; the nearest are resnet18, resnet"),
        (
            "torchvision:fcn_resnet50",
            "torchvision:fcn_resnet50: it is a segmentation network of torchvision.models.segmentation, no classifier; give --model "
            "torchvision.models.segmentation:fcn_resnet50 --model-arg weights_backbone=null, with --task, or with --data",
        ),
        (
            "torchvision:ssdlite320_mobilenet_v3_large",
            "torchvision:ssdlite320_mobilenet_v3_large: it is a detection network of torchvision.models.detection, no classifier; it "
            "takes lists of images and suppresses boxes, which is not exported; write a function that returns a module with",
        ),
        (
            "torchvision:quantized_resnet18",
            "torchvision:quantized_resnet18: it is a quantization network of torchvision.models.quantization, no classifier; it is "
            "quantised; give torchvision:resnet18",
        ),
        ("{nets}:nothing", "{nets}: no function 'nothing' in this file or module; give --model file.py:factory"),
        ("{nets}:PREPROCESSING", "{nets}: no function 'PREPROCESSING' in this file or module"),
        ("{nets}:fails", "{nets}:fails: the factory failed with ValueError: no such width (at {nets}:13)"),
        ("{nets}:leaves", "{nets}:leaves: the factory failed with SystemExit: usage: nets.py (at {nets}:16)"),
        ("{nets}:no_net", "{nets}:no_net: the factory returned int; it must return a torch.nn.Module"),
        ("{nets.parent}/none.py:make_net", "{nets.parent}/none.py: no such file; give file.py:factory"),
        (
            "{nets.parent}/odd.py:make_net",
            "{nets.parent}/odd.py: cannot be imported: ZeroDivisionError: division by zero (at {nets.parent}/odd.py:1)",
        ),
    ],
)
def test_a_spec_that_leads_to_no_network_is_refused(nets: Path, spec: str, complaint: str) -> None:
    nets.with_name("odd.py").write_text("1 / 0")
    with pytest.raises(ModelError) as caught:
        load_model(find_model(spec.format(nets=nets)), None, num_classes=5)

    assert str(caught.value).startswith(complaint.format(nets=nets))


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ("{'size': '4'}", "size: input should be a valid integer (got '4')"),
        ("{'mean': (0.5, 0.5)}", "mean: expected 1 or 3 numbers (got 2)"),
        ("{'sizes': 4}", "sizes: extra inputs are not permitted (got 4)"),
    ],
)
def test_a_preprocessing_that_is_none_is_refused(tmp_path: Path, declared: str, complaint: str) -> None:
    (tmp_path / "nets.py").write_text(f"PREPROCESSING = {declared}\ndef make_net(): ...\n")
    with pytest.raises(ModelError) as caught:
        find_model(f"{tmp_path / 'nets.py'}:make_net")

    assert str(caught.value) == f"{tmp_path / 'nets.py'}: PREPROCESSING: {complaint}"


# normalisation


class Picky(nn.Module):
    """Answers 0 for an image whose lowest and highest values are those it expects, and 1 for others."""

    def __init__(self, lowest: float, highest: float) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest

    def forward(self, images: Tensor) -> Tensor:
        lowest, highest = images.amin((1, 2, 3)), images.amax((1, 2, 3))
        fits = (lowest - self.lowest).abs() + (highest - self.highest).abs() < 1e-2
        return torch.stack([fits, ~fits], 1).float()


def black_and_white(channels: int) -> Splits:
    """Every image holds both black and white, and is of class 0."""
    pixels = torch.zeros(40, channels, 4, 4, dtype=torch.uint8)
    pixels[:, :, 2:] = 255
    parts = torch.arange(40).split([20, 10, 10])
    return Splits.of(memory_fetch(pixels), torch.zeros(40).long(), parts, Preprocessing(size=4), ("a", "b"), "drawn")  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", USUAL_NORMALISATIONS)
def test_an_undeclared_normalisation_is_found_by_measurement_and_told(name: str, channels: int) -> None:
    """The network answers rightly only when black and white have the values that `name` gives them."""
    mean, std = USUAL_NORMALISATIONS[name]
    ends = zip(mean[:channels], std[:channels], strict=True)
    values = [((0 - m) / s, (1 - m) / s) for m, s in ends]
    network = Picky(min(low for low, _ in values), max(high for _, high in values))
    splits = settle_normalisation(network, black_and_white(channels))

    assert (splits.test.preprocessing.mean, splits.test.preprocessing.std) == (mean[:channels], std[:channels])
    assert splits.notices[0].startswith(f"the normalisation of pixels is not declared; '{name}' is used")
    assert f"{name} 100.0 %" in splits.notices[0]


def test_a_declared_normalisation_is_left_alone() -> None:
    declared = black_and_white(3).with_preprocessing(Preprocessing(mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0)))

    assert settle_normalisation(Picky(0.0, 1.0), declared) is declared
