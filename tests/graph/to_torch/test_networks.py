"""Whole networks, rebuilt from the graphs that torch exports, answer like ONNX Runtime, and a batch like its images."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torchvision
from helpers.nets import EXAMPLE, ZOO, build
from helpers.rebuilt import batch_difference, by_runtime, by_torch, difference, random
from torch import Tensor, nn

from pipeline.graph.exporters import captured, traced
from pipeline.graph.to_torch import network_of, write_back

torchvision_models = torchvision.models


def vit() -> nn.Module:
    return torchvision_models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


class Bottleneck(nn.Module):
    """x -> conv -> split -+-------> concat -> conv -> upsample -> mean
    +-> conv -+ (YOLO's C2f)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.joint = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).split((4, 4), 1)
        x = self.joint(torch.cat([a, b, self.inner(b)], 1))
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest").sigmoid()


SMALL: dict[str, tuple[Callable[[], nn.Module], int]] = {"vit": (vit, 32), "c2f": (Bottleneck, 32)}

LARGE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (torchvision_models.resnet18, 64),
    "mobilenet_v3_small": (torchvision_models.mobilenet_v3_small, 64),
    "shufflenet_v2_x0_5": (torchvision_models.shufflenet_v2_x0_5, 64),
    "googlenet": (lambda: torchvision_models.googlenet(init_weights=False, aux_logits=False), 64),
    "convnext_tiny": (torchvision_models.convnext_tiny, 64),
    "swin_t": (torchvision_models.swin_t, 64),
}


def exported(make: Callable[[], nn.Module], size: int) -> onnx.ModelProto:
    torch.manual_seed(0)
    return captured(make().eval(), torch.zeros(1, 3, size, size), 18)


def check(model: onnx.ModelProto, size: int) -> None:
    network, image = network_of(model), random(1, 3, size, size)

    assert difference(by_torch(network, image), by_runtime(model, image)) < 1e-5
    assert batch_difference(network, torch.from_numpy(random(3, 3, size, size))) < 1e-5
    assert (network.one_by_one, network.looped) == (None, ())
    arrays = [[onnx.numpy_helper.to_array(tensor) for tensor in m.graph.initializer] for m in (model, write_back(network, model))]
    assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_a_rebuilt_network_answers_like_onnx_runtime_and_a_batch_like_its_images(name: str) -> None:
    make, size = SMALL[name]

    check(exported(make, size), size)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_rebuilt_large_network_answers_like_onnx_runtime_and_a_batch_like_its_images(name: str) -> None:
    make, size = LARGE[name]

    check(exported(make, size), size)


@pytest.mark.parametrize("exporter", [captured, traced])
@pytest.mark.parametrize("name", ["residual", "concat", "depthwise", "grouped", "flatten", "transposed"])
def test_small_networks_are_rebuilt_from_the_graphs_of_both_exporters(
    name: str, exporter: Callable[..., onnx.ModelProto]
) -> None:
    model = exporter(build(ZOO[name]).eval(), EXAMPLE, 18)

    check(model, EXAMPLE.shape[-1])
