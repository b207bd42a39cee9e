"""BatchNorm layers that are put back: nothing changes until the network is pruned."""

import numpy as np
import onnx
import pytest
import torch
from helpers.nets import ZOO, build
from helpers.onnx_files import answers, as_keras, operators, traced
from torch import nn

from pipeline.graph.fold import fold
from pipeline.graph.given.batchnorm import with_batchnorms
from pipeline.graph.given.prepare import prepare
from pipeline.graph.structure import structure
from pipeline.graph.to_torch import network_of
from pipeline.training.scoring import recalibrate


def graph_of(data: bytes) -> onnx.ModelProto:
    return prepare(data, {}, 18, 23).model


def batches(shape: tuple[int, ...]) -> list[torch.Tensor]:
    return list(torch.randn(12, *shape, generator=torch.Generator().manual_seed(3)).split(5))


NETS = {name: traced(build(ZOO[name]), (1, 3, 8, 8), 13) for name in ("residual", "depthwise", "transposed", "squeeze-excite")}


@pytest.mark.parametrize(("name", "count"), [("residual", 3), ("depthwise", 3), ("transposed", 3), ("squeeze-excite", 1)])
def test_the_network_answers_as_before_and_folds_back_to_the_same_graph(name: str, count: int) -> None:
    """In squeeze and excitation, the convolutions on single pixels get no BatchNorm."""
    model = graph_of(NETS[name])
    normed = with_batchnorms(model, batches((3, 8, 8)))
    pixels = torch.cat(batches((3, 8, 8))).numpy()
    expected = answers(NETS[name], pixels)

    assert operators(normed).count("BatchNormalization") == count
    assert structure(fold(normed).model) == structure(fold(model).model)
    np.testing.assert_allclose(answers(normed.SerializeToString(), pixels), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answers(fold(normed).model.SerializeToString(), pixels), expected, rtol=1e-3, atol=1e-4)


def test_statistics_are_those_of_the_images() -> None:
    normed = with_batchnorms(graph_of(as_keras()), batches((3, 12, 12)))
    network = network_of(normed)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    read = {}
    for layer in norms:
        layer.register_forward_pre_hook(lambda layer, inputs: read.update({layer: inputs[0]}))
    with torch.no_grad():
        network(torch.cat(batches((3, 12, 12))))

    assert len(norms) == 2
    for layer in norms:
        torch.testing.assert_close(layer.running_mean, read[layer].mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(layer.running_var, read[layer].var((0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)


UNFOLDED = traced(build(ZOO["unfolded"]), (1, 3, 8, 8), 13, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)


def test_layers_that_the_file_still_has_get_the_statistics_of_the_images_too() -> None:
    model = graph_of(UNFOLDED)
    normed = with_batchnorms(model, batches((3, 8, 8)))
    pixels = torch.cat(batches((3, 8, 8))).numpy()

    assert operators(model).count("BatchNormalization") == 2
    assert operators(normed).count("BatchNormalization") == 3  # the first convolution has a bias, and a ReLU before its BatchNorm
    np.testing.assert_allclose(answers(normed.SerializeToString(), pixels), answers(UNFOLDED, pixels), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("data", [*NETS.values(), UNFOLDED], ids=[*NETS, "unfolded"])
def test_the_network_answers_as_before_after_its_statistics_are_re_estimated(data: bytes) -> None:
    """Its images are not those that it was trained on. Re-estimation of the file's own statistics would change its answers."""
    images = torch.cat(batches((3, 8, 8)))
    network = network_of(with_batchnorms(graph_of(data), batches((3, 8, 8))))
    recalibrate(network, [images])
    with torch.no_grad():
        found = network(images).numpy()

    np.testing.assert_allclose(found, answers(data, images.numpy()), rtol=2e-2, atol=2e-2)
