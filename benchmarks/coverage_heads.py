"""Networks with several outputs, as networks with one. The coverage benchmark wraps detectors in these."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Concatenated(nn.Module):
    """A network with several outputs as one with a single output: all of them, flattened and concatenated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, values), or the output itself if there is one only"""
        return concatenated(self.net(x))


class DetectorHeads(nn.Module):
    """A detector of torchvision without its transform, its anchors and its selection of boxes: backbone and heads."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, values)"""
        return concatenated(self.head(list(self.backbone(x).values())))


class RegionHeads(nn.Module):
    """A two-stage detector of torchvision as a network: the proposal heads, and the region heads for two fixed boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.proposals, self.regions = detector.backbone, detector.rpn.head, detector.roi_heads
        self.register_buffer("boxes", torch.tensor([[0.0, 0.0, 0.0, 48.0, 48.0], [0.0, 8.0, 8.0, 56.0, 40.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, values)"""
        ops = importlib.import_module("torchvision.ops")
        levels = list(self.backbone(x).values())
        scale = levels[0].shape[-1] / x.shape[-1]
        outputs = [*self.proposals(levels)]
        taken = ops.roi_align(levels[0], self.boxes, 7, scale, 2)
        outputs.append(self.regions.box_predictor(self.regions.box_head(taken)))
        for kind in ("mask", "keypoint"):
            if getattr(self.regions, f"{kind}_head", None) is not None:
                taken = ops.roi_align(levels[0], self.boxes, 14, scale, 2)
                outputs.append(getattr(self.regions, f"{kind}_predictor")(getattr(self.regions, f"{kind}_head")(taken)))
        return torch.cat([part.reshape(1, -1) for part in tensors_of(outputs)], 1)


class YoloHeads(nn.Module):
    """A detector of ultralytics without the decoding of its boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 64 + classes, places)"""
        raw = self.detector(x)[1]
        return torch.cat([raw["boxes"], raw["scores"]], 1)


def heads_of(network: Any) -> nn.Module:
    """A detector as its backbone and heads; any other network as it is."""
    if hasattr(network, "roi_heads"):
        return RegionHeads(network)
    return DetectorHeads(network) if hasattr(network, "anchor_generator") else network


def concatenated(output: Any) -> Tensor:
    """All tensors in `output`, (N, ...) each, as (N, values); a single tensor as it is."""
    tensors = list(tensors_of(output))
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.flatten(1) for tensor in tensors], 1)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts, in their order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from tensors_of(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from tensors_of(each)
