"""Makes a trained VGG-19 from a trained VGG-16: the same function with three more layers, for further training.

python benchmarks/deepen.py --weights vgg16.safetensors --data ./images --out vgg19.safetensors

Net2DeeperNet (Chen et al., arXiv 1511.05641): each added convolution is the identity, and its BatchNorm restores the mean and the
deviation that it removes. So training can start from the shallower network's result instead of from random weights.
"""

from pathlib import Path

import click
import safetensors.torch
import torch
from torch import Tensor, nn

from models.vgg import STAGES, VGG
from pipeline.core.batch import tensors_of
from pipeline.system.files import write_atomically
from pipeline.training.load import find_model, load_data, load_model
from pipeline.training.scoring import accuracy

IMAGES = 2048


@click.command()
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="Of models/vgg.py:vgg16_bn.")
@click.option("--data", required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(weights: Path, data: str, out: Path) -> None:
    """Write the deeper network; print the accuracy of both on the validation images."""
    source = find_model("vgg16_bn")
    splits = load_data(data, source.preprocessing, seed=0)
    shallow = VGG(16, len(splits.classes)).eval()
    shallow.load_state_dict(load_model(source, weights, len(splits.classes)).state_dict())
    deep = deepened(shallow, tensors_of(next(splits.train.sample(IMAGES, seed=0).batches(IMAGES))[0])[0])
    write_atomically(out, safetensors.torch.save(deep.state_dict()))
    for name, network in (("shallow", shallow), ("deep", deep)):
        print(f"{name}: validation {accuracy(network, splits.validation):.2f} %")


def deepened(shallow: VGG, images: Tensor) -> VGG:
    """A VGG-19 that computes the same as `shallow`, a VGG-16. `images` (N, 3, 32, 32) give the statistics of the added layers."""
    deep = VGG(19, shallow.classifier.out_features).eval()
    deep.classifier.load_state_dict(shallow.classifier.state_dict())
    learned, layers = iter(shallow.features), iter(deep.features)
    maps = images
    with torch.no_grad():
        for known, stage in zip(STAGES[16], STAGES[19], strict=True):
            for index in range(len(stage)):
                convolution, normalisation, relu = (next(layers) for _ in range(3))
                if index < len(known):
                    for layer in (convolution, normalisation):
                        layer.load_state_dict(next(learned).state_dict())
                    next(learned)
                else:
                    become_identity(convolution, normalisation, maps)
                maps = relu(normalisation(convolution(maps)))
            next(learned)
            maps = next(layers)(maps)
    return deep


def become_identity(convolution: nn.Module, normalisation: nn.Module, maps: Tensor) -> None:
    """Make both layers the identity on `maps` (N, C, H, W), also in training, where BatchNorm uses its batch's statistics."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(normalisation, nn.BatchNorm2d)
    assert normalisation.running_mean is not None
    assert normalisation.running_var is not None
    nn.init.dirac_(convolution.weight)
    variance, mean = torch.var_mean(maps, (0, 2, 3))
    normalisation.running_mean.copy_(mean)
    normalisation.running_var.copy_(variance)
    normalisation.weight.copy_((variance + normalisation.eps).sqrt())
    normalisation.bias.copy_(mean)


if __name__ == "__main__":
    main()
