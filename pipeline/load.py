"""Load: the user's network, weights and images, from the specs on the command line."""

import importlib.util
import inspect
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast

import safetensors
import safetensors.torch
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.data.folder import load_folder
from pipeline.data.images import Splits
from pipeline.data.preprocessing import USUAL_NORMALISATIONS, Preprocessing
from pipeline.data.sources import load_digits, load_from_factory, load_torchvision
from pipeline.errors import CompressError, DataError, ModelError, UnsafeWeights, WeightsError, one_line
from pipeline.foreign import WEIGHTS_LIMIT_BYTES, open_foreign, read_foreign
from pipeline.scoring import accuracy
from pipeline.shipped import shipped_files

__all__ = ["DEFAULT_DATA", "DEFAULT_MODEL", "ModelSource", "find_model", "load_data", "load_model", "settle_normalisation"]

DEFAULT_MODEL = "digits"
DEFAULT_DATA = "digits"

Factory = Callable[..., nn.Module]


@dataclass(frozen=True)
class ModelSource:
    """Where a network comes from, before it is built."""

    spec: str
    factory: Factory
    preprocessing: Preprocessing | None
    weights: Path | None
    """Weights that ship with the factory."""
    needs_weights: bool
    """False for a user's own factory, which may fill its network itself."""


def find_model(spec: str) -> ModelSource:
    """`spec` is a name in models/, torchvision:<name>, or file.py:factory. The last one runs the user's code.

    Raises ModelError when there is no such network.
    """
    if spec.startswith("torchvision:"):
        return _torchvision(spec)
    if ".py:" in spec:
        file, _, name = spec.rpartition(":")
        module = _import_file(Path(file), ModelError)
        factory = getattr(module, name, None)
        if not callable(factory):
            raise ModelError(f"{file}: no function '{name}' in it; give --model file.py:factory")
        return ModelSource(spec, factory, _declared(module, file), None, needs_weights=False)
    known: dict[str, tuple[ModuleType, Path]] = {}
    for stem, path in shipped_files("models", ".py").items():
        module = _import_file(path, ModelError)
        known |= {name: (module, path) for name in getattr(module, "__all__", ()) if stem != "train"}
    if spec not in known:
        raise ModelError(f"no model '{spec}': give file.py:factory, torchvision:<name>, or one of {', '.join(sorted(known))}")
    module, path = known[spec]
    weights = path.with_name(f"{spec}.safetensors")
    return ModelSource(
        spec, getattr(module, spec), _declared(module, path.name), weights if weights.is_file() else None, needs_weights=True
    )


def load_model(source: ModelSource, weights: Path | None, num_classes: int | None) -> nn.Module:
    """The network on the CPU, in evaluation mode, filled with `weights` or those that ship with it.

    `num_classes` is handed to factories that take it; None leaves them their own.

    Raises ModelError, WeightsError or UnsafeWeights.
    """
    takes_classes = num_classes is not None and "num_classes" in inspect.signature(source.factory).parameters
    try:
        module = source.factory(num_classes=num_classes) if takes_classes else source.factory()
    except CompressError:
        raise
    except (Exception, SystemExit) as problem:
        raise ModelError(f"{source.spec}: the factory failed with {type(problem).__name__}: {one_line(problem)}") from None
    if not isinstance(module, nn.Module):
        raise ModelError(f"{source.spec}: the factory returned {type(module).__name__}; it must return a torch.nn.Module")
    weights = weights or source.weights
    if weights is not None:
        _fill(module, read_weights(weights), weights)
    elif source.needs_weights:
        raise WeightsError(
            f"{source.spec}: no weights are given, and an untrained network is not worth compressing; add --weights FILE"
        )
    return module.cpu().float().eval()


def load_data(spec: str, declared: Preprocessing | None, seed: int) -> Splits:
    """`spec` is a folder, digits, torchvision:<name>[:<root>], or file.py:factory, which runs the user's code.

    Raises DataError and its kin.
    """
    if spec.startswith("torchvision:"):
        _, name, *root = spec.split(":", 2)
        return load_torchvision(name, Path(root[0] if root else "data"), declared, seed)
    if ".py:" in spec:
        path, _, name = spec.rpartition(":")
        factory = getattr(_import_file(Path(path), DataError), name, None)
        if not callable(factory):
            raise DataError(f"{path}: no function '{name}' in it; give --data file.py:factory")
        try:
            made = factory()
        except (Exception, SystemExit) as problem:
            raise DataError(f"{spec}: the factory failed with {type(problem).__name__}: {one_line(problem)}") from None
        return load_from_factory(made, spec, declared, seed)
    if Path(spec).is_dir():
        return load_folder(Path(spec), declared, seed)
    if spec == "digits":
        return load_digits(declared, seed)
    raise DataError(f"no data '{spec}': give a folder of images, torchvision:<name>, or file.py:factory")


def settle_normalisation(module: nn.Module, splits: Splits) -> Splits:
    """Where nothing declares mean and std, take those of the usual ones with which the network answers best, and say so."""
    preprocessing = splits.train.preprocessing
    images, _ = next(splits.train.sample(1, 0).batches(1))
    raw_pixels = splits.train.fetch(splits.train.indices[:1]).dtype == torch.uint8
    if preprocessing.mean is not None or not raw_pixels:
        return splits
    channels = images.shape[1]
    tried = {}
    for name, (mean, std) in USUAL_NORMALISATIONS.items():
        candidate = preprocessing.model_copy(update={"mean": mean[:channels], "std": std[:channels]})
        tried[name] = accuracy(module, splits.with_preprocessing(candidate).train.sample(1000, 0)), candidate
    best = max(tried, key=lambda name: tried[name][0])
    scores = ", ".join(f"{name} {score:.1f} %" for name, (score, _) in tried.items())
    notice = (
        f"nothing declares how pixels are normalised; '{best}' is taken, with which the network answers best on training "
        f"images ({scores}); declare mean and std in preprocessing.yaml, or a PREPROCESSING beside the factory"
    )
    return replace(splits.with_preprocessing(tried[best][1]), notices=(*splits.notices, notice))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file, or from a checkpoint read with weights_only.

    Raises UnsafeWeights for whole pickled modules, TorchScript and .pt2; WeightsError for what cannot be read.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such file; give --weights a .safetensors file or a saved state dict")
    if path.suffix == ".pt2":
        raise UnsafeWeights(
            f"{path}: exported programs (.pt2) can run code when they are read; save the state dict: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load(read_foreign(path, WEIGHTS_LIMIT_BYTES))
        except (safetensors.SafetensorError, OSError, ValueError, MemoryError) as problem:
            raise WeightsError(
                f"{path}: not a readable safetensors file ({one_line(problem, 120)}); was it copied whole? save it again"
            ) from None
    starts_like_a_pickle = False
    try:
        with open_foreign(path, WEIGHTS_LIMIT_BYTES) as file, warnings.catch_warnings():
            if _unpacks_to_more(file):
                raise UnsafeWeights(f"{path}: a packed archive, which torch never writes; save the state dict again, unpacked")
            starts_like_a_pickle = file.read(1) == b"\x80"
            file.seek(0)
            warnings.simplefilter("ignore", UserWarning)  # it warns of TorchScript before it refuses it
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except UnsafeWeights:
        raise
    except Exception as problem:
        text = str(problem)
        if "weights_only" in text and ("Unsupported operand" not in text or starts_like_a_pickle):
            raise UnsafeWeights(
                f"{path}: not a plain state dict but a pickled object or program, which can run code when it is read; save "
                "the state dict: torch.save(model.state_dict(), 'model.pt')"
            ) from None
        reason = "neither an archive nor a pickle" if "weights_only" in text else one_line(problem, 120)
        raise WeightsError(
            f"{path}: not a readable checkpoint ({reason}); was it copied whole? save the state dict again"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path}: holds {type(loaded).__name__}, not a state dict; save model.state_dict()")
    return dict(loaded)


def _unpacks_to_more(file: BinaryIO) -> bool:
    """Whether an archive holds more than its own size: a few kilobytes could fill the memory."""
    try:
        with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError), zipfile.ZipFile(file) as archive:
            return sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size
        return False
    finally:
        file.seek(0)


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    prefix = "module."
    if tensors and all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    expected = module.state_dict()
    # a layer lists under `computed_weights` what it fills itself
    own = {f"{name}.{weight}" for name, layer in module.named_modules() for weight in getattr(layer, "computed_weights", ())}
    missing = [name for name in expected if name not in {*tensors, *own} and not name.endswith("num_batches_tracked")]
    unknown = [name for name in tensors if name not in expected]
    for kind, names in (("lacks", missing), ("has an unknown", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise WeightsError(f"{path}: does not fit the network: the file {kind} '{names[0]}'{more}; is it another network's?")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise WeightsError(
                f"{path}: does not fit the network: '{name}' is {tuple(tensor.shape)} in the file and "
                f"{tuple(expected[name].shape)} in the network; is it another network's, or for another number of classes?"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path}: '{name}' holds values that are not finite; the training must have diverged")
    module.load_state_dict(tensors, strict=False)


def _torchvision(spec: str) -> ModelSource:
    name = spec.partition(":")[2]
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ModelError(f"torchvision has no classification network '{name}'; see torchvision.models.list_models()")
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocessing = Preprocessing(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        grey="convert",
        augment=("crop", "flip"),
    )

    def factory(num_classes: int = 1000) -> nn.Module:
        quiet: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return cast(nn.Module, torchvision.models.get_model(name, weights=None, num_classes=num_classes, **quiet))

    return ModelSource(spec, factory, preprocessing, None, needs_weights=True)


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


def _import_file(path: Path, error: type[CompressError]) -> ModuleType:
    """Run a Python file and return it as a module."""
    if not path.is_file():
        raise error(f"{path}: no such file; give file.py:factory")
    name = f"_compress_user_{path.stem}_{abs(hash(path.resolve()))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        del sys.modules[name]
        raise error(f"{path}: cannot be imported: {type(problem).__name__}: {one_line(problem)}") from None
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module
