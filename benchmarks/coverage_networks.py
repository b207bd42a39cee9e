"""Networks of the coverage benchmark: their names, and how each is built with random weights.

Run: python benchmarks/coverage_networks.py, after a new version of timm. It counts the parameters of every architecture of timm,
which takes minutes, and writes results/timm.json.
"""

import fnmatch
import importlib
import importlib.util
import json
import random
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coverage_heads import Concatenated, YoloHeads, heads_of
from torch import Tensor, nn

from pipeline.errors import one_line
from pipeline.system.files import write_atomically

INDEX = Path(__file__).parent / "results" / "timm.json"
SEED = 0
SIDES = (64, 96, 128, 160, 192, 224, 256, 320, 384)
"""Sides of the input, in pixels. A network gets the first one with which it runs: only its structure matters here."""
LARGEST = 30_000_000
"""Parameters of the largest architecture of timm that counts as one of all."""
TORCHVISION = {
    "classification": (
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "googlenet",
        "inception_v3",
        "maxvit_t",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "swin_t",
        "swin_v2_t",
        "vgg11",
        "vgg11_bn",
        "vit_b_32",
    ),
    "segmentation": ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large"),
    "detection": (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ),
}
"""Task -> the smallest variant of each family, and of each kind of block where a family has several."""
ULTRALYTICS = ("ultralytics:yolov8n", "ultralytics:yolo11n")


@dataclass(frozen=True)
class Network:
    """One network of the benchmark."""

    name: str
    """Where it comes from and what it is called there: 'timm:resnet18'."""
    family: str
    """For timm the file that defines it: 'timm resnet'."""


class NotBuilt(Exception):
    """The library cannot build the network, or it does not run with any size of input; the message gives the reason."""


def families(pattern: str = "*", known: Container[str] = ()) -> tuple[Network, ...]:
    """The smallest variant of each family whose name matches `pattern`. Networks of ultralytics are left out where it is not
    installed, unless they are among `known`.
    """
    smallest: dict[str, tuple[int, str]] = {}
    for name, (file, params) in _index().items():
        smallest[file] = min(smallest.get(file, (params, name)), (params, name))
    found = [Network(f"timm:{name}", f"timm {file}") for file, (_, name) in sorted(smallest.items())]
    for task, names in TORCHVISION.items():
        found += [Network(f"torchvision:{name}", f"torchvision {task}") for name in names]
    installed = importlib.util.find_spec("ultralytics") is not None
    found += [Network(name, "ultralytics") for name in ULTRALYTICS if installed or name in known]
    return _matching(found, pattern)


def architectures(pattern: str = "*") -> tuple[Network, ...]:
    """All architectures of timm with at most `LARGEST` parameters whose name matches `pattern`.

    The order is random, and always the same, so that the first of them are a sample of all.
    """
    networks = [Network(f"timm:{name}", f"timm {file}") for name, (file, params) in sorted(_index().items()) if params <= LARGEST]
    random.Random(SEED).shuffle(networks)
    return _matching(networks, pattern)


def _matching(networks: list[Network], pattern: str) -> tuple[Network, ...]:
    return tuple(each for each in networks if fnmatch.fnmatch(each.name, pattern) or fnmatch.fnmatch(each.name, f"*:{pattern}"))


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode with seeded random weights, and an example, (1, C, H, W).

    Its output is one tensor: several are flattened and concatenated. Scales and biases that start as a constant get noise, and
    BatchNorm gets statistics of random images, because zeros would hide errors. Raises NotBuilt.
    """
    source, _, variant = name.partition(":")
    makers = {"timm": _timm, "torchvision": _torchvision, "ultralytics": _ultralytics}
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module, example = _first_that_runs(makers[source](variant))
        except NotBuilt:
            raise
        except Exception as problem:
            raise NotBuilt(f"{type(problem).__name__}: {one_line(problem)}") from None
        randomise(module)
        _calibrate(module, example)
        with torch.no_grad():
            if not bool(torch.isfinite(module(example)).all()):
                raise NotBuilt("its answers are not finite with random weights")
    return module, example


Candidates = Iterator[tuple[Callable[[], nn.Module], int]]
"""Functions that make a network, and the side of the input to try it with."""


def _timm(variant: str) -> Candidates:
    timm = importlib.import_module("timm")
    config = timm.get_pretrained_cfg(variant)
    usual = config.input_size[-1] if config else 224
    whole = _once(lambda: timm.create_model(variant, pretrained=False))
    if config and config.fixed_input_size:
        yield from (
            (lambda side=side: timm.create_model(variant, pretrained=False, img_size=side), side)
            for side in SIDES
            if side < usual
        )
    else:
        yield from ((whole, side) for side in SIDES if side < usual)
    yield whole, usual


def _torchvision(variant: str) -> Candidates:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": None}
    if variant in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if variant not in TORCHVISION["classification"]:
        options["weights_backbone"] = None
    if variant.startswith("vit"):
        yield from ((lambda side=side: models.get_model(variant, image_size=side, **options), side) for side in SIDES)
        return
    whole = _once(lambda: heads_of(models.get_model(variant, **options)))
    yield from ((whole, side) for side in SIDES)


def _ultralytics(variant: str) -> Candidates:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    whole = _once(lambda: YoloHeads(tasks.DetectionModel(f"{variant}.yaml", verbose=False)))
    yield from ((whole, side) for side in SIDES)


def _once(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    made: list[nn.Module] = []

    def first() -> nn.Module:
        if not made:
            made.append(make())
        return made[0]

    return first


def _first_that_runs(candidates: Candidates) -> tuple[nn.Module, Tensor]:
    problem: Exception | None = None
    for make, side in candidates:
        example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(SEED))
        try:
            module = make().eval()
            with torch.no_grad():  # not inference_mode: some networks keep tensors that they compute in their first run
                answer = module(example)
                module = module if isinstance(answer, Tensor) else Concatenated(module).eval()
                module(example)
        except Exception as found:  # any library, any reason
            problem = found
        else:
            return module, example
    raise NotBuilt(
        f"it does not run with any size of input; with the last one, {type(problem).__name__}: {one_line(problem or Exception())}"
    )


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Add noise to each parameter whose values are all equal, such as scales of 1 and biases of 0."""
    for value in module.parameters():
        if value.numel() > 1 and value.is_floating_point() and bool((value == value.flatten()[0]).all()):
            value.add_(0.1 * torch.randn(value.shape))


@torch.no_grad()
def _calibrate(module: nn.Module, example: Tensor) -> None:
    """Set the statistics of each BatchNorm to those of random images."""
    norms = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats
    ]
    momenta = [layer.momentum for layer in norms]
    before = [{name: value.clone() for name, value in layer.named_buffers()} for layer in norms]
    try:
        for layer in norms:
            layer.train()
            layer.momentum = 1.0
        module(torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(SEED + 1)))
    except (ValueError, RuntimeError):  # it takes a single image only
        for layer, buffers in zip(norms, before, strict=True):
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.eval()
            layer.momentum = momentum


def _index() -> dict[str, tuple[str, int]]:
    """Architecture of timm -> its file and its number of parameters. Small ones for timm's own tests are left out."""
    known: dict[str, tuple[str, int]] = json.loads(INDEX.read_text())["architectures"]
    return {name: entry for name, entry in known.items() if not name.startswith("test_")}


def main() -> None:
    """Write the index anew."""
    timm = importlib.import_module("timm")
    known: dict[str, tuple[str, int]] = {}
    left_out: dict[str, str] = {}
    for file in timm.list_modules():
        for name in timm.list_models(module=file):
            try:
                with torch.device("meta"):
                    module = timm.create_model(name, pretrained=False)
            except Exception as problem:
                try:  # some read values while they are built, which meta tensors do not have
                    module = timm.create_model(name, pretrained=False)
                except Exception:
                    left_out[name] = one_line(problem)
                    continue
            known[name] = (file, sum(value.numel() for value in module.parameters()))
        print(f"{file}: {len(known)} architectures, {len(left_out)} cannot be built", flush=True)
    facts = {"timm": timm.__version__, "cannot be built": left_out}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(known.items()))
    write_atomically(INDEX, f'{json.dumps(facts)[:-1]}, "architectures": {{\n{lines}\n}}}}\n'.encode())


if __name__ == "__main__":
    main()
