"""Torchvision's networks: the classifiers of `torchvision:<name>`, and where its other networks are."""

import difflib
from collections.abc import Callable
from typing import Any, cast

from torch import nn

from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import ModelError
from pipeline.foreign_text import shorten

__all__ = ["torchvision_classifier"]

OTHERS = {
    "detection": (
        "it takes lists of images and suppresses boxes, which is not exported; write a function that returns a module with its "
        "backbone and heads, and a task that scores their outputs: --model nets.py:F --task tasks.py:F, see docs/python.md"
    ),
    "segmentation": (
        "give --model torchvision.models.segmentation:{name} --model-arg weights_backbone=null, with --task, or with --data "
        "inputs.npy for inputs without labels"
    ),
    "video": "give --model torchvision.models.video:{name}, with --task, or with --data inputs.npy for inputs without labels",
    "quantization": "it is quantised; give torchvision:{plain}",
}
"""Kind of network -> what to do instead."""


def torchvision_classifier(name: str) -> tuple[Callable[..., nn.Module], Preprocessing]:
    """The factory and the preprocessing of a classifier. No weights are downloaded.

    Raises ModelError for another name; for a detection or segmentation network it says how that is given.
    """
    import torchvision  # noqa: PLC0415 - it takes seconds to import

    models = torchvision.models
    if name not in models.list_models(module=models):
        raise ModelError(_refusal(name, models))
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = Preprocessing(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        grey="convert",
        augment=("crop", "flip"),
    )

    def factory(num_classes: int = 1000, **arguments: Any) -> nn.Module:
        quiet: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        given = {**quiet, **arguments, "weights": None}  # nothing is downloaded
        return cast(nn.Module, models.get_model(name, num_classes=num_classes, **given))

    return factory, preprocessing


def _refusal(name: str, models: Any) -> str:
    for kind, advice in OTHERS.items():
        if name in models.list_models(module=getattr(models, kind)):
            text = advice.format(name=name, plain=name.removeprefix("quantized_"))
            return f"torchvision:{name}: it is a {kind} network of torchvision.models.{kind}, no classifier; {text}"
    near = difflib.get_close_matches(name, models.list_models(module=models), 3)
    nearest = f"the nearest are {', '.join(near)}" if near else "see torchvision.models.list_models()"
    return f"torchvision has no classification network '{shorten(name, 80)}'; {nearest}"
