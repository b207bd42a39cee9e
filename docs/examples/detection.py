"""Detection as a task for `compress`: targets, loss, boxes, mean average precision (mAP), and training.

python docs/examples/detection.py                       # trains the network of detector.py: detector.safetensors
compress --target local --model docs/examples/detector.py:detector --weights detector.safetensors \\
  --task docs/examples/detection.py:task --budget latency_p50=50% --budget accuracy_drop=5 \\
  --searcher uniform --trials 8
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from detector import BINS, STRIDES, detector
from scenes import CLASSES, Scenes, make_scenes, shuffled
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import batched_nms, generalized_box_iou_loss

from pipeline import OwnTask

Progress = Callable[[int, int], None]

__all__ = [
    "Found",
    "Settings",
    "Targets",
    "boxes_of",
    "detect",
    "fit",
    "loss_of",
    "mean_average_precision",
    "places_of",
    "select",
    "targets_of",
    "task",
    "train_from_scratch",
]

LARGEST = 28.0
"""Longest side of a box that belongs to the fine level, in pixels."""
LEAST_SCORE = 0.02
MOST_OVERLAP = 0.6
"""IoU above which the lower of two boxes of the same class is dropped."""

Outputs = Mapping[str, Tensor]
"""What the network returns: `sides` and `scores`."""


@dataclass(frozen=True)
class Settings:
    """How many scenes, and how long to train."""

    size: int = 96
    """Height and width of the scenes, in pixels."""
    train: int = 12000
    finetuning: int = 6000
    """The first scenes of the training, with which a pruned network is fine-tuned."""
    validation: int = 200
    test: int = 500
    group: int = 25
    """Test scenes that share one value of the score, because the mAP of a single scene says little."""
    epochs: int = 5
    finetuning_epochs: int = 9


@dataclass(frozen=True)
class Places:
    """The places at which the network looks for objects."""

    centres: Tensor
    """(places, 2): x and y, in pixels."""
    strides: Tensor
    """(places,): distance to the next place of the same level, in pixels."""


@dataclass(frozen=True)
class Targets:
    """What each place should answer."""

    boxes: Tensor
    """(N, places, 4), in pixels."""
    labels: Tensor
    """(N, places): class, or -1 without an object."""


@dataclass(frozen=True)
class Found:
    """The objects of one picture."""

    boxes: Tensor
    """(objects, 4): left, top, right, bottom, in pixels."""
    scores: Tensor
    """(objects,) from 0 to 1."""
    labels: Tensor
    """(objects,): indices into CLASSES."""


def task(settings: Settings = Settings()) -> OwnTask:
    """Return the task. The score is COCO's mAP, averaged over IoU thresholds from 0.5 to 0.95, in percent."""
    counts = (settings.finetuning, settings.validation, settings.test)
    train, validation, test = (make_scenes(count, settings.size, seed) for seed, count in enumerate(counts))
    groups = torch.arange(len(test)).split(settings.group)
    return OwnTask(
        train.images(slice(1024)),
        evaluate=lambda module: mean_average_precision(detect(module, validation), validation),
        train=lambda module, progress: fit(module, train, settings.finetuning_epochs, rate=2e-3, progress=progress),
        test_each_image=lambda module: map_of_groups(detect(module, test), test, groups),
        description=f"scenes of textured shapes, detected, {settings}",
        score_name="mAP",
    )


def places_of(size: int) -> Places:
    """Return the places in a picture of `size` by `size` pixels, in the order of the network's outputs."""
    centres, strides = [], []
    for stride in STRIDES:
        line = (torch.arange(size // stride) + 0.5) * stride
        rows, columns = torch.meshgrid(line, line, indexing="ij")
        centres.append(torch.stack((columns, rows), -1).reshape(-1, 2))
        strides.append(torch.full((len(line) ** 2,), float(stride)))
    return Places(torch.cat(centres), torch.cat(strides))


def targets_of(scenes: Scenes) -> Targets:
    """Assign objects to places: those of the level that fits the size of the box, inside it and near its centre.

    A place near two objects gets the smaller one.
    """
    places = places_of(scenes.size)
    boxes, labels = [], []
    for objects, classes in zip(scenes.boxes, scenes.labels, strict=True):
        sides = objects[:, 2:] - objects[:, :2]
        middle = (objects[:, 2:] + objects[:, :2]) / 2
        away = (places.centres - middle[:, None]).abs()  # (objects, places, 2)
        level = torch.where(sides.amax(1) <= LARGEST, float(STRIDES[0]), float(STRIDES[1]))
        fits = (away < torch.minimum(1.5 * level[:, None], sides / 2)[:, None]).all(2) & (places.strides == level[:, None])
        area = torch.where(fits, sides.prod(1)[:, None], torch.inf)
        smallest, owner = area.min(0)
        boxes.append(objects[owner])
        labels.append(torch.where(smallest.isfinite(), classes[owner], -1))
    return Targets(torch.stack(boxes), torch.stack(labels))


def boxes_of(sides: Tensor, places: Places) -> Tensor:
    """Decode boxes, (N, places, 4) in pixels, from logits of their sides, (N, 4 * BINS, places). A side is a mean distance."""
    chances = sides.unflatten(1, (4, BINS)).softmax(2)
    distances = torch.einsum("nsbp,b->nps", chances, torch.arange(float(BINS))) * places.strides[:, None]
    return torch.cat((places.centres - distances[..., :2], places.centres + distances[..., 2:]), 2)


def loss_of(outputs: Outputs, targets: Targets, places: Places) -> Tensor:
    """Return the loss of a batch: classes, overlap of boxes, and distributions of distances (DFL, arXiv 2006.04388)."""
    is_object = targets.labels >= 0
    boxes, wanted = boxes_of(outputs["sides"], places)[is_object], targets.boxes[is_object]
    apart = generalized_box_iou_loss(boxes, wanted)
    scores = torch.zeros_like(outputs["scores"]).transpose(1, 2)
    scores[is_object] = F.one_hot(targets.labels[is_object], len(CLASSES)) * (1 - apart.detach()).clamp(0.1)[:, None]
    classes = F.binary_cross_entropy_with_logits(outputs["scores"].transpose(1, 2), scores, reduction="sum")
    chances = outputs["sides"].unflatten(1, (4, BINS)).permute(0, 3, 1, 2)[is_object].log_softmax(2)  # (objects, 4, BINS)
    count = max(1, int(is_object.sum()))
    loss: Tensor = (classes + 2.0 * apart.sum() + 0.25 * _distance_loss(chances, wanted, is_object, places)) / count
    return loss


def _distance_loss(chances: Tensor, wanted: Tensor, is_object: Tensor, places: Places) -> Tensor:
    """Cross entropy of the two bins beside each distance, weighted by how near they are."""
    number = is_object.nonzero()[:, 1]
    centres, strides = places.centres[number], places.strides[number, None]
    distances = torch.cat((centres - wanted[:, :2], wanted[:, 2:] - centres), 1) / strides
    distances = distances.clamp(0, BINS - 1.01)
    below = distances.floor()
    share = (distances - below)[..., None]
    lower, upper = (chances.gather(2, (below.long() + step)[..., None]) for step in (0, 1))
    return -((1 - share) * lower + share * upper).sum()


def select(outputs: Outputs, size: int) -> list[Found]:
    """Return the objects of each picture of a batch, the best hundred at most: decoded, and without duplicates (NMS)."""
    places = places_of(size)
    found = []
    for boxes, scores in zip(boxes_of(outputs["sides"], places), outputs["scores"].transpose(1, 2).sigmoid(), strict=True):
        place, label = (scores > LEAST_SCORE).nonzero(as_tuple=True)
        best = batched_nms(boxes[place], scores[place, label], label, MOST_OVERLAP)[:100]
        found.append(Found(boxes[place][best], scores[place, label][best], label[best]))
    return found


def detect(module: nn.Module, scenes: Scenes) -> list[Found]:
    """Return the objects that `module` finds in each scene."""
    module.eval()
    with torch.no_grad():
        return [
            each for chosen in torch.arange(len(scenes)).split(100) for each in select(module(scenes.images(chosen)), scenes.size)
        ]


def mean_average_precision(found: list[Found], scenes: Scenes, chosen: Tensor | None = None) -> float:
    """Return the mAP of the objects that were found in scenes, in percent. `chosen`: only these scenes."""
    numbers = range(len(scenes)) if chosen is None else chosen.tolist()
    metric = MeanAveragePrecision()
    metric.update(
        [vars(found[number]) for number in numbers],
        [{"boxes": scenes.boxes[number], "labels": scenes.labels[number]} for number in numbers],
    )
    return 100 * float(metric.compute()["map"])


def map_of_groups(found: list[Found], scenes: Scenes, groups: tuple[Tensor, ...]) -> list[float]:
    """Return the mAP of each group of scenes, in percent."""
    return [mean_average_precision(found, scenes, group) for group in groups]


def fit(
    module: nn.Module, scenes: Scenes, epochs: int, rate: float, seed: int = 0, progress: Progress = lambda done, total: None
) -> nn.Module:
    """Train `module` in place, and return it in evaluation mode. `rate` is the peak of the schedule.

    `progress` is called after each step with the number of finished steps and of all steps.
    """
    targets, places = targets_of(scenes), places_of(scenes.size)
    batches = shuffled(len(scenes), epochs, seed)
    optimizer = torch.optim.AdamW(module.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    module.train()
    for number, chosen in enumerate(batches, 1):
        wanted = Targets(targets.boxes[chosen], targets.labels[chosen])
        loss = loss_of(module(scenes.images(chosen)), wanted, places)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        progress(number, len(batches))
    return module.eval()


def train_from_scratch(settings: Settings, seed: int) -> nn.Module:
    """Return a trained network. `seed`: of the first weights and the order of the scenes, which are always the same."""
    torch.manual_seed(seed)
    return fit(detector(), make_scenes(settings.train, settings.size, 0), settings.epochs, rate=3e-3, seed=seed)


def main() -> None:
    """Train the network, and write its weights."""
    parser = argparse.ArgumentParser(description="Train the detector.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("detector.safetensors"))
    given, settings = parser.parse_args(), Settings()
    module, validation = train_from_scratch(settings, given.seed), make_scenes(settings.validation, settings.size, 1)
    safetensors.torch.save_file(module.state_dict(), given.out)
    print(f"{given.out}: mAP {mean_average_precision(detect(module, validation), validation):.1f} % on validation scenes")


if __name__ == "__main__":
    main()
