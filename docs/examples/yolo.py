"""A YOLO network of ultralytics, with ultralytics' own data and trainer, as a task for `compress`.

It needs `pip install ultralytics` beside `compress`. Set SOURCE, DATA and SIZE to those of your network.

compress --target local --model yolo.py:network --task yolo.py:task --budget latency_p50=50%
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.tal import dist2bbox, make_anchors

from pipeline import OwnTask

__all__ = ["Pruned", "Trainer", "Yolo", "network", "task"]

SOURCE = "yolov8n.yaml"
"""A YAML of ultralytics, which gives random weights, or your own checkpoint (.pt). Loading a checkpoint can run code in it."""
DATA = "scenes.yaml"
"""The data set, as ultralytics describes it. A path."""
SIZE = 320
"""Height and width of the images, in pixels."""
EPOCHS = 10
"""Length of fine-tuning."""
STRIDES = (8, 16, 32)
BINS = 16


class Yolo(nn.Module):
    """A detector without postprocessing: it returns the head's logits, in training and in evaluation."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> boxes (N, 4 * BINS, places) and scores (N, classes, places)."""
        found = self.detector(images)
        found = found if self.training else found[1]  # evaluation also decodes the boxes
        found = found.get("one2one", found)  # a network without NMS, such as YOLOv10
        return {"boxes": found["boxes"], "scores": found["scores"]}


class Pruned(DetectionModel):  # type: ignore[misc]  # ultralytics has no types here
    """A detector for ultralytics' trainer: its classes, strides and loss are ultralytics', but a pruned network computes."""

    def predict(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(N, 3, H, W) -> what ultralytics' own detector returns in training."""
        if "network" not in self._modules:  # while it is built
            return super().predict(x, *args, **kwargs)
        maps = [x.new_empty(len(x), 1, x.shape[2] // stride, x.shape[3] // stride) for stride in STRIDES]
        return {**self.network(x), "feats": maps}  # of the maps, only the sizes are read


class Trainer(DetectionTrainer):  # type: ignore[misc]
    """ultralytics' trainer. It writes no checkpoints, because `compress` keeps the network."""

    def save_model(self) -> bool:
        """Write nothing."""
        return True

    def validate(self) -> tuple[dict[str, float], float]:
        """Evaluate nothing: `compress` compares the network before and after training."""
        return {}, 0.0

    def final_eval(self) -> None:
        """Evaluate nothing."""


def network() -> nn.Module:
    """Return the network, without postprocessing."""
    torch.manual_seed(0)
    return Yolo(YOLO(SOURCE, task="detect").model)


def task() -> OwnTask:
    """Return the task. The score is COCO's mAP on the validation images, in percent."""
    inputs = torch.stack([each["img"] for _, each in zip(range(256), dataset("train"), strict=False)]).float() / 255
    return OwnTask(inputs, evaluate=mean_average_precision, train=train, description=f"{DATA} at {SIZE} pixels", score_name="mAP")


def dataset(split: str) -> Any:
    """Return the images of a split as ultralytics prepares them for evaluation: squares with grey bars."""
    data, settings = check_det_dataset(DATA), get_cfg(overrides={"task": "detect", "imgsz": SIZE})
    return build_yolo_dataset(settings, data[split], 1, data, mode="val", rect=False)


def train(module: nn.Module) -> nn.Module:
    """Fine-tune with ultralytics' trainer. It builds a network from its YAML unless it has one: it must get the pruned one."""
    detector = Pruned(YOLO(SOURCE, task="detect").model.yaml, verbose=False)
    detector.network = module
    settings = {"model": SOURCE, "data": DATA, "imgsz": SIZE, "epochs": EPOCHS, "val": False, "plots": False, "exist_ok": True}
    trainer = Trainer(overrides=settings)
    trainer.model = detector
    trainer.train()
    trained: nn.Module = trainer.ema.ema.network.float().cpu()
    return trained


def mean_average_precision(module: nn.Module) -> float:
    """Return the mAP of a network, or of an ONNX file as a module, in percent."""
    metric = MeanAveragePrecision()
    for images, wanted in _batches():
        with torch.no_grad():
            found = non_max_suppression(decoded(module(images)), conf_thres=0.01, iou_thres=0.7)
        metric.update([{"boxes": each[:, :4], "scores": each[:, 4], "labels": each[:, 5].long()} for each in found], wanted)
    return 100 * float(metric.compute()["map"])


def decoded(outputs: dict[str, Tensor]) -> Tensor:
    """Return boxes (centre, width, height in pixels) and scores from 0 to 1, (N, 4 + classes, places)."""
    maps = [torch.empty(1, 1, SIZE // stride, SIZE // stride) for stride in STRIDES]
    anchors, strides = (each.T for each in make_anchors(maps, torch.tensor(STRIDES), 0.5))
    chances = outputs["boxes"].unflatten(1, (4, BINS)).softmax(2)
    distances = torch.einsum("nsbp,b->nsp", chances, torch.arange(float(BINS)))
    boxes = dist2bbox(distances, anchors[None], xywh=True, dim=1) * strides
    return torch.cat((boxes, outputs["scores"].sigmoid()), 1)


def _batches(size: int = 16) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Validation images with their boxes (left, top, right, bottom in pixels) and labels."""
    images = dataset("val")
    for first in range(0, len(images), size):
        batch = [images[number] for number in range(first, min(first + size, len(images)))]
        yield torch.stack([each["img"] for each in batch]).float() / 255, [_wanted(each) for each in batch]


def _wanted(image: dict[str, Tensor]) -> dict[str, Tensor]:
    centre, size = image["bboxes"][:, :2] * SIZE, image["bboxes"][:, 2:] * SIZE
    return {"boxes": torch.cat((centre - size / 2, centre + size / 2), 1), "labels": image["cls"].flatten().long()}
