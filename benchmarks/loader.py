"""How much of the loader's speed is left in training. Run: python benchmarks/loader.py --data FOLDER

One epoch of training batches is read alone, and one is learned from, in turn; the figure is images per second. Images are decoded
for each batch, as with a data set that is larger than memory.

Without a GPU, `--step-ms` puts a network in place of `--model` that waits so long at each step and computes nothing, as a
processor waits for an accelerator. With `--device cuda`, `--model` is trained on the GPU.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from pipeline.core.compute_device import computing_on, find_device
from pipeline.core.profile import available_cores
from pipeline.data.folder import load_folder
from pipeline.data.images import Images
from pipeline.data.loader import loading, usual_workers
from pipeline.data.preprocessing import USUAL_NORMALISATIONS, Augmentation, Preprocessing
from pipeline.training.epochs import TrainingSetup, learner_of, train_epoch
from pipeline.training.settings import FinetuneSettings

RATE = 1e-3


class Accelerator(nn.Module):
    """A network that waits at each step, and computes nearly nothing."""

    def __init__(self, step_ms: float, classes: int) -> None:
        super().__init__()
        self.step_ms = step_ms
        self.last = nn.Linear(3, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return outputs that depend on one pixel of each image, (N, classes)."""
        time.sleep(self.step_ms / 1000)
        found: Tensor = self.last(pixels[:, :, 0, 0])
        return found


@dataclass(frozen=True)
class Pair:
    """Seconds for an epoch of the same images."""

    loader_s: float
    training_s: float


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="A folder of images.")
@click.option("--model", default="mobilenet_v3_large", show_default=True, help="A network of torchvision.")
@click.option("--step-ms", type=float, help="Wait so long at each step, in place of a network.")
@click.option("--size", default=224, show_default=True)
@click.option("--images", default=512, show_default=True, help="Images of an epoch.")
@click.option("--batch", default=64, show_default=True)
@click.option("--pairs", default=5, show_default=True)
@click.option("--workers", type=int, help="By default as in a run.")
@click.option("--augment", multiple=True, default=("resized_crop", "flip"), show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(
    data: Path,
    model: str,
    step_ms: float | None,
    size: int,
    images: int,
    batch: int,
    pairs: int,
    workers: int | None,
    augment: tuple[Augmentation, ...],
    device: str,
) -> None:
    """Print one raw line for each pair, and the summary as a row of the table."""
    mean, std = USUAL_NORMALISATIONS["imagenet"]
    preprocessing = Preprocessing(size=size, resize=size * 8 // 7, mean=mean, std=std, grey="convert", augment=augment)
    splits = load_folder(data, preprocessing, seed=0, memory_limit_bytes=0)
    chosen, wanted = splits.train.sample(images, 0), find_device(device)
    with computing_on(wanted), loading(workers, click.echo):
        settings = FinetuneSettings(epochs=1, distillation=0.0)
        setup = TrainingSetup.of(None, (chosen, splits.validation), settings, batch, 0)
        network = Accelerator(step_ms, len(splits.classes)) if step_ms is not None else _network(model, len(splits.classes))
        found = []
        for number in range(pairs + 1):
            pair = _pair(network, setup, batch, number)
            if number:  # the first pair starts everything
                found.append(pair)
                click.echo(json.dumps(vars(pair)))
        used = usual_workers() if workers is None else workers
    name = f"waits {step_ms:g} ms" if step_ms is not None else model
    alone, learned = (images / statistics.median(getattr(pair, part) for pair in found) for part in ("loader_s", "training_s"))
    shares = sorted(pair.loader_s / pair.training_s for pair in found)
    click.echo(
        f"| {name}, {size} pixels, {wanted} | {used} | {len(available_cores())} | {alone:.0f} | {learned:.0f} | "
        f"{statistics.median(shares):.0%} ({shares[0]:.0%} to {shares[-1]:.0%}) |"
    )
    click.echo(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")


def _network(name: str, classes: int) -> nn.Module:
    import torchvision  # noqa: PLC0415 - it takes seconds to import

    network: nn.Module = torchvision.models.get_model(name, num_classes=classes, weights=None)
    return network


def _pair(network: nn.Module, setup: TrainingSetup, batch: int, epoch: int) -> Pair:
    seconds = {}
    ways: list[tuple[str, Callable[[], None]]] = [
        ("loader_s", lambda: _read(setup.train, batch, epoch, setup.device)),
        ("training_s", lambda: _learn(network, setup, epoch)),
    ]
    for name, way in ways if epoch % 2 else reversed(ways):
        started = time.perf_counter()
        way()
        seconds[name] = time.perf_counter() - started
    return Pair(**seconds)


def _read(images: Images, batch: int, epoch: int, device: torch.device) -> None:
    for _ in images.training_batches(batch, 0, epoch, device):
        pass
    _settle(device)


def _learn(network: nn.Module, setup: TrainingSetup, epoch: int) -> None:
    for _ in train_epoch(learner_of(network, setup), setup, epoch, lambda step: RATE):
        pass
    _settle(setup.device)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
