"""A segmenter: its network, and its data, loss and score as a task for `compress`.

python docs/examples/segmenter.py                       # trains the network: segmenter.safetensors
compress --target local --model docs/examples/segmenter.py:segmenter --weights segmenter.safetensors \\
  --task docs/examples/segmenter.py:task --budget latency_p50=50% --budget accuracy_drop=3 \\
  --searcher uniform --trials 8
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from scenes import CLASSES, Scenes, make_scenes, shuffled
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.segmentation import mean_iou

from pipeline import OwnTask

Progress = Callable[[int, int], None]

__all__ = ["Settings", "fit", "iou_of_each", "segmenter", "task", "train_from_scratch"]


@dataclass(frozen=True)
class Settings:
    """How many scenes, and how long to train."""

    size: int = 64
    """Height and width of the scenes, in pixels."""
    train: int = 6000
    validation: int = 400
    test: int = 1000
    epochs: int = 8
    finetuning_epochs: int = 8


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class Segmenter(nn.Module):
    """A U-Net: four levels down, three up, each with the features of the same level from the way down; logits at half size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        self.stem = ConvNorm(3, width, 2)
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(before, after, 2), ConvNorm(after, after)) for before, after in itertools.pairwise(widths)
        )
        self.up = nn.ModuleList(ConvNorm(deep + same, same) for deep, same in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.head = nn.Conv2d(width, 1 + len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, 1 + classes, H, W); class 0 is the background."""
        features = [self.stem(images)]
        for stage in self.down:
            features.append(stage(features[-1]))
        x = features.pop()
        for stage in self.up:
            x = stage(torch.cat((F.interpolate(x, scale_factor=2.0), features.pop()), 1))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")


def segmenter(width: int = 16) -> nn.Module:
    """Return the network with random weights."""
    return Segmenter(width)


def task(settings: Settings = Settings()) -> OwnTask:
    """Return the task. The score is the mean IoU (mIoU) over the scenes, in percent."""
    train, validation, test = (
        make_scenes(count, settings.size, seed) for seed, count in enumerate((settings.train, settings.validation, settings.test))
    )
    return OwnTask(
        train.images(slice(1024)),
        evaluate=lambda module: float(iou_of_each(module, validation).mean()),
        train=lambda module, progress: fit(module, train, settings.finetuning_epochs, rate=3e-3, progress=progress),
        test_each_image=lambda module: iou_of_each(module, test),
        description=f"scenes of textured shapes, segmented, {settings}",
        score_name="mIoU",
    )


def iou_of_each(module: nn.Module, scenes: Scenes) -> Tensor:
    """Return the mean IoU of each scene over the classes that are in it or in the answer, (N,), in percent."""
    module.eval()
    with torch.no_grad():
        answers = torch.cat([module(scenes.images(chosen)).argmax(1) for chosen in torch.arange(len(scenes)).split(100)])
    each: Tensor = 100 * mean_iou(answers, scenes.masks.long(), num_classes=1 + len(CLASSES), input_format="index")
    return each


def fit(
    module: nn.Module, scenes: Scenes, epochs: int, rate: float, seed: int = 0, progress: Progress = lambda done, total: None
) -> nn.Module:
    """Train `module` in place with cross entropy, and return it in evaluation mode. `rate` is the peak of the schedule.

    `progress` is called after each step with the number of finished steps and of all steps.
    """
    batches = shuffled(len(scenes), epochs, seed)
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    module.train()
    for number, chosen in enumerate(batches, 1):
        loss = F.cross_entropy(module(scenes.images(chosen)), scenes.masks[chosen].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(number, len(batches))
    return module.eval()


def train_from_scratch(settings: Settings, seed: int) -> nn.Module:
    """Return a trained network. `seed`: of the first weights and the order of the scenes, which are always the same."""
    torch.manual_seed(seed)
    return fit(segmenter(), make_scenes(settings.train, settings.size, 0), settings.epochs, rate=3e-3, seed=seed)


def main() -> None:
    """Train the network, and write its weights."""
    parser = argparse.ArgumentParser(description="Train the segmenter.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("segmenter.safetensors"))
    given, settings = parser.parse_args(), Settings()
    module, validation = train_from_scratch(settings, given.seed), make_scenes(settings.validation, settings.size, 1)
    safetensors.torch.save_file(module.state_dict(), given.out)
    print(f"{given.out}: mIoU {iou_of_each(module, validation).mean():.1f} % on validation scenes")


if __name__ == "__main__":
    main()
