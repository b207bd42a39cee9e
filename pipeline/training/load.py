"""Load: build the user's network and load weights and images, from the specs on the command line."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from pipeline.core.compute_device import placed
from pipeline.core.progress import Progress, count_images, no_progress
from pipeline.data.folder import load_folder
from pipeline.data.images import Splits
from pipeline.data.preprocessing import USUAL_NORMALISATIONS, Preprocessing
from pipeline.data.sources import load_digits, load_from_factory, load_torchvision
from pipeline.errors import CompressError, DataError, ModelError, WeightsError
from pipeline.system.bundled import shipped_files, shipped_weights
from pipeline.training.adapt_network import plain
from pipeline.training.own_task import USUAL_DESCRIPTION, OwnTask
from pipeline.training.scoring import accuracy
from pipeline.training.torchvision_networks import torchvision_classifier
from pipeline.training.user_code import UserCode, describe_error, import_file, is_code, load_code, refuse_arguments
from pipeline.training.weights import fill

__all__ = [
    "DEFAULT_DATA",
    "DEFAULT_MODEL",
    "ModelSource",
    "answered",
    "find_model",
    "load_data",
    "load_model",
    "load_task",
    "settle_normalisation",
]

DEFAULT_MODEL = "digits"
DEFAULT_DATA = "digits"

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelSource:
    """The source of a network that is not built yet."""

    spec: str
    factory: Factory
    preprocessing: Preprocessing | None
    weights: Path | None
    """Weights file that is included with the factory."""
    needs_weights: bool
    """False for a user's own factory, which may load weights itself."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the factory."""
    module: ModuleType | None = None
    """The user's module that contains the factory."""


def find_model(spec: str, arguments: Mapping[str, Any] | None = None) -> ModelSource:
    """Find a network. `spec` is a name in models/, torchvision:<name>, file.py:factory or package.module:factory; the last two
    run the user's code.

    The name after the colon may have dots, as in file.py:Net.small, and may be a network that is already built. `arguments` are
    passed to the factory. Raises ModelError if there is no such network or if it does not take these arguments.
    """
    source = _find_source(spec)
    if arguments:
        refuse_arguments(source.factory, arguments, spec, ModelError)
    return replace(source, arguments=dict(arguments or {}))


def _find_source(spec: str) -> ModelSource:
    if spec.startswith("torchvision:"):
        factory, preprocessing = torchvision_classifier(spec.partition(":")[2])
        return ModelSource(spec, factory, preprocessing, None, needs_weights=True)
    if is_code(spec):
        code = load_code(spec, "--model", ModelError)
        return ModelSource(
            spec, _factory(code), _declared(code.module, code.where), None, needs_weights=False, module=code.module
        )
    known: dict[str, tuple[ModuleType, Path]] = {}
    for stem, path in shipped_files("models", ".py").items():
        module = import_file(path, ModelError)
        known |= {name: (module, path) for name in getattr(module, "__all__", ()) if stem != "train"}
    if spec not in known:
        raise ModelError(
            f"unknown model '{spec}'; give FILE.onnx, file.py:factory, package.module:factory, torchvision:<name>, or one of "
            f"{', '.join(sorted(known))}"
        )
    module, path = known[spec]
    return ModelSource(spec, getattr(module, spec), _declared(module, path.name), shipped_weights(spec), needs_weights=True)


def load_model(
    source: ModelSource, weights: Path | None, num_classes: int | None, notify: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """Return the network on the CPU, in evaluation mode, filled with `weights` or with those included with its factory.

    `num_classes` is passed to a factory that takes it, unless the source's arguments contain it. None: the factory's default.
    `notify` is called with notices about which parts of a checkpoint were used.

    Raises ModelError, WeightsError or UnsafeWeights.
    """
    arguments = dict(source.arguments)
    if num_classes is not None and _takes(source.factory, "num_classes"):
        arguments.setdefault("num_classes", num_classes)
    try:
        module = source.factory(**arguments)
    except CompressError:
        raise
    except (Exception, SystemExit) as problem:
        raise ModelError(f"{source.spec}: the factory failed with {describe_error(problem, source.module)}") from None
    if not isinstance(module, nn.Module):
        raise ModelError(f"{source.spec}: the factory returned {type(module).__name__}; it must return a torch.nn.Module")
    module = plain(module)
    weights = weights or source.weights
    if weights is not None:
        fill(module, weights, notify)
    elif source.needs_weights:
        raise WeightsError(
            f"{source.spec}: no weights are given, and compressing an untrained network is useless; add --weights FILE"
        )
    return module.cpu().float().eval()


def load_data(spec: str, declared: Preprocessing | None, seed: int, progress: Progress = no_progress) -> Splits:
    """Load images. `spec` is a folder, digits, torchvision:<name>[:<root>], file.py:factory or package.module:factory; the last
    two run the user's code.

    Raises DataError or one of its subclasses.
    """
    if spec.startswith("torchvision:"):
        _, name, *root = spec.split(":", 2)
        return load_torchvision(name, Path(root[0] if root else "data"), declared, seed)
    if Path(spec).is_dir():
        return load_folder(Path(spec), declared, seed)
    if is_code(spec):
        code = load_code(spec, "--data", DataError)
        try:
            made = code.found()
        except (Exception, SystemExit) as problem:
            raise DataError(f"{spec}: the factory failed with {describe_error(problem, code.module)}") from None
        return load_from_factory(made, spec, declared, seed, progress)
    if spec == "digits":
        return load_digits(declared, seed)
    raise DataError(
        f"unknown data '{spec}'; give a folder of images, FILE.npy, FILE.npz, torchvision:<name>, file.py:factory or "
        "package.module:factory"
    )


def load_task(spec: str) -> OwnTask:
    """Call the user's function that returns an OwnTask. `spec` is file.py:factory or package.module:factory.

    A task without a description of its own is described by `spec`. Raises DataError.
    """
    if not is_code(spec):
        raise DataError(f"task '{spec}': give file.py:factory or package.module:factory, a function that returns an OwnTask")
    code = load_code(spec, "--task", DataError)
    try:
        made = code.found()
    except CompressError:
        raise
    except (Exception, SystemExit) as problem:
        raise DataError(f"{spec}: the factory failed with {describe_error(problem, code.module)}") from None
    if not isinstance(made, OwnTask):
        raise DataError(f"{spec}: the factory returned {type(made).__name__}; it must return a pipeline.OwnTask")
    return replace(made, description=spec) if made.description == USUAL_DESCRIPTION else made


def answered(module: nn.Module, splits: Splits, progress: Progress = no_progress) -> Splits:
    """Return `splits` with the answers of `module`, which is the dense network, as the labels of all images.

    The score of a pruned network is then its agreement with the dense network.
    """
    everything = replace(splits.train, indices=torch.arange(len(splits.train.labels)))
    with placed(module) as device, torch.inference_mode():
        counted = count_images(everything.batches(), len(everything), "answers of the dense network", progress)
        logits: torch.Tensor = torch.cat([module(pixels.to(device)).cpu() for pixels, _ in counted])
    return splits.with_answers(logits.argmax(1), [str(number) for number in range(logits.shape[1])])


def settle_normalisation(module: nn.Module, splits: Splits, progress: Progress = no_progress) -> Splits:
    """If no mean and std are declared, choose the usual values with the highest training accuracy, and add a notice."""
    preprocessing = splits.train.preprocessing
    images, _ = next(splits.train.sample(1, 0).batches(1))
    raw = splits.train.fetch(splits.train.indices[:1])
    raw_pixels = isinstance(raw, torch.Tensor) and raw.dtype == torch.uint8
    if preprocessing.mean is not None or not raw_pixels or not isinstance(images, torch.Tensor):
        return splits
    channels = images.shape[1]
    tried = {}
    for number, (name, (mean, std)) in enumerate(USUAL_NORMALISATIONS.items()):
        progress(number, len(USUAL_NORMALISATIONS), f"trying the normalisation '{name}'")
        candidate = preprocessing.model_copy(update={"mean": mean[:channels], "std": std[:channels]})
        tried[name] = accuracy(module, splits.with_preprocessing(candidate).train.sample(1000, 0)), candidate
    best = max(tried, key=lambda name: tried[name][0])
    scores = ", ".join(f"{name} {score:.1f} %" for name, (score, _) in tried.items())
    notice = (
        f"the normalisation of pixels is not declared; '{best}' is used, because it gives the best accuracy on training images "
        f"({scores}); declare mean and std in preprocessing.yaml, or a PREPROCESSING beside the factory"
    )
    return replace(splits.with_preprocessing(tried[best][1]), notices=(*splits.notices, notice))


def _factory(code: UserCode) -> Factory:
    """The factory in `code`. A network that is already built gets a factory that returns it."""
    built = code.found
    return (lambda: built) if isinstance(built, nn.Module) else cast(Factory, built)


def _takes(factory: Factory, argument: str) -> bool:
    try:
        return argument in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a function written in C has no signature
        return False


def _declared(module: ModuleType, path: str) -> Preprocessing | None:
    declared = getattr(module, "PREPROCESSING", None)
    if declared is None:
        return None
    try:
        return Preprocessing.model_validate(declared)
    except ValidationError as problem:
        first = problem.errors()[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        got = "" if "(got " in message else f" (got {first['input']!r})"
        raise ModelError(f"{path}: PREPROCESSING: {where}: {message[:1].lower()}{message[1:]}{got}") from None
