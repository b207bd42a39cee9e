"""Tiny networks of many kinds, each with its drawing. BatchNorm statistics are random, so that wrong folding is visible."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.graph.export import export_trainable, stripped


def conv(width: int, out: int, **options: int) -> nn.Sequential:
    """conv 3x3 -> BatchNorm -> ReLU"""
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False, **options), nn.BatchNorm2d(out), nn.ReLU())


class Chain(nn.Module):
    """x -> conv(8) -> conv(12) -> mean -> linear(5)"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).mean((2, 3)))


class Residual(nn.Module):
    """x -> stem(8) -+-> conv(6) -> conv(8) -+-> mean -> linear
    +-----------------------+"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = conv(3, 8), conv(8, 6), conv(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(self.inner(x))).mean((2, 3)))


class Concat(nn.Module):
    """x -> conv(6) -+-> concat(6 + 4) -> conv(8) -> mean -> linear
    x -> conv(4) -+"""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.joint, self.head = conv(3, 6), conv(3, 4), conv(10, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.joint(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


class Depthwise(nn.Module):
    """x -> conv(8) -> depthwise(8) -> conv 1x1 (6) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.filter, self.project = conv(3, 8), conv(8, 8, groups=8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(self.filter(self.expand(x))).mean((2, 3)))


class Grouped(nn.Module):
    """x -> conv(8) -> conv(12) in 4 groups -> conv(6) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 8), conv(8, 12, groups=4), conv(12, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))).mean((2, 3)))


class Flatten(nn.Module):
    """x -> conv(6) -> pool to 4x4 -> flatten(96) -> linear(10) -> linear(5)"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.hidden, self.head = conv(3, 6), nn.Linear(6 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(F.adaptive_avg_pool2d(self.a(x), 4).flatten(1))))


class SqueezeExcite(nn.Module):
    """x -> conv(8) -+-------------------------------------> * -> mean -> linear
    +-> mean -> conv(4) -> relu -> conv(8) -> sigmoid -+"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.head = conv(3, 8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * scale).mean((2, 3)))


class Shared(nn.Module):
    """x -> stem(6) -> same(6) -> same(6) -> conv(8) -> mean -> linear: one convolution is used twice"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.last, self.head = conv(3, 6), nn.Conv2d(6, 6, 3, padding=1), conv(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.same(F.relu(self.same(self.stem(x))))).mean((2, 3)))


class Transposed(nn.Module):
    """x -> conv(6) -> transposed conv(8), twice the size -> conv(4) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b, self.head = conv(3, 6), nn.ConvTranspose2d(6, 8, 2, stride=2), conv(8, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.up(self.a(x)))).mean((2, 3)))


class PReLUs(nn.Module):
    """x -> conv(8) -> PReLU with a slope for each channel -> conv(6) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b, self.head = nn.Conv2d(3, 8, 3), nn.PReLU(8), conv(8, 6), nn.Linear(6, 5)
        nn.init.uniform_(self.act.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.act(self.a(x))).mean((2, 3)))


class Unfolded(nn.Module):
    """x -> conv(6) -> relu -> BatchNorm -> conv(8) -> mean -> linear: a BatchNorm that cannot be folded into a convolution"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), conv(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(F.relu(self.a(x)))).mean((2, 3)))


class LayerNorms(nn.Module):
    """x -> conv(8) -> channels last -> LayerNorm -> linear(12) -> GELU -> linear(8) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.wide, self.narrow, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1))
        return self.head(self.narrow(F.gelu(self.wide(x))).mean((1, 2)))


class ConvNext(nn.Module):
    """x -> conv(8) -+-> depthwise(8) -> channels last -> LayerNorm -> linear(12) -> GELU -> linear(8) -> * scale(8) -+-> mean -> linear
    +--------------------------------------------------------------------------------------------------------------+"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.filter, self.norm = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.LayerNorm(8)
        self.wide, self.narrow, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(F.gelu(self.wide(self.norm(self.filter(x).permute(0, 2, 3, 1)))))
        return self.head((x + self.scale * y.permute(0, 3, 1, 2)).mean((2, 3)))


class InstanceNorms(nn.Module):
    """x -> conv(6) -> InstanceNorm with weights -> conv(8) -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), conv(6, 8), nn.Linear(8, 5)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x))).mean((2, 3)))


class Padded(nn.Module):
    """x -> stem(4) -+-> conv(6) stride 2 -> conv(8) -+-> mean -> linear
    +-> every 2nd pixel, 2 + 2 zero channels -+   (option A: the padding is a constant)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 4), conv(4, 6, stride=2), conv(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.outer(self.inner(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))


class Viewed(nn.Module):
    """x -> conv(8) -> view as (N, 8, 64) -> mean -> linear: the width is a constant of the graph"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.head(y.view(y.shape[0], y.shape[1], -1).mean(2))


class Unsliceable(nn.Module):
    """x -> conv(6) -> conv(8) -> mean -> expand to 4x4 -> sum -> linear: the graph's Expand repeats the dense width"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 6), conv(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)).mean((2, 3), keepdim=True)
        return self.head(torch.sin(y.expand(-1, y.shape[1], 4, 4)).sum((2, 3)))


class Careful(Chain):
    """A Chain with activations 1.5 times as large while `exporting` is true, as detectors omit their last steps in ONNX files."""

    exporting = staticmethod(torch.compiler.is_exporting)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(self.b(y * 1.5 if self.exporting() else y).mean((2, 3)))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "residual": Residual,
    "concat": Concat,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "flatten": Flatten,
    "squeeze-excite": SqueezeExcite,
    "shared": Shared,
    "transposed": Transposed,
    "prelu": PReLUs,
    "unfolded": Unfolded,
    "layer-norm": LayerNorms,
    "convnext": ConvNext,
    "instance-norm": InstanceNorms,
    "padded": Padded,
    "viewed": Viewed,
}

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def exported(name: str) -> bytes:
    """The trainable graph of `build(ZOO[name])`, exported once per process."""
    return stripped(export_trainable(build(ZOO[name]), EXAMPLE, 18, 10), 10).SerializeToString()


def build(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A seeded network in evaluation mode with random BatchNorms."""
    torch.manual_seed(seed)
    module = factory()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            if layer.running_mean is not None:
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2.0)
    return module.eval()
