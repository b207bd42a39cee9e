"""Families of convolutional classifiers in small. The names are those of the papers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


def cbr(width: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """convolution -> BatchNorm -> ReLU"""
    layer = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Pooled(nn.Module):
    """x -> body -> global mean -> linear"""

    def __init__(self, *body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Vgg(nn.Module):
    """x -> (conv, pool) x 2 -> flatten -> linear -> dropout -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(cbr(3, 12), nn.MaxPool2d(2), cbr(12, 16), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(16 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    """x -+-> conv -> conv -+-> relu
    +-> (1x1) ----------+"""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = cbr(width, out, stride=stride)
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet(Pooled):
    """stem -> block -> block with a projection shortcut"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12), BasicBlock(12, 12), BasicBlock(12, 20, 2), BasicBlock(20, 20), width=20)


class PaddedShortcut(BasicBlock):
    """A block whose shortcut takes every second pixel and appends channels of zeros."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, stride=2)
        self.missing = out - width
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(self.second(self.first(x)) + padded)


class ResNetOptionA(Pooled):
    """stem -> block -> block with padded shortcut, as in the CIFAR-10 networks of the paper"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 8), BasicBlock(8, 8), PaddedShortcut(8, 16), PaddedShortcut(16, 24), width=24)


class GroupNormBottleneck(nn.Module):
    """x -+-> 1x1 -> GN -> 3x3 -> GN -> 1x1 -> GN -+-> relu
    +-------------> 1x1 -> GN ------------------+"""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 1, bias=False), nn.GroupNorm(4, inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.GroupNorm(4, inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, out, 1, bias=False), nn.GroupNorm(8, out)
        self.down = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.GroupNorm(8, out)) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.down(x))


class Bottleneck(Pooled):
    """stem -> two bottlenecks, GroupNorm everywhere"""

    def __init__(self) -> None:
        stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.GroupNorm(4, 16), nn.ReLU())
        super().__init__(stem, GroupNormBottleneck(16, 8, 32), GroupNormBottleneck(32, 8, 32), width=32)


class ResNeXt(Pooled):
    """stem -> bottleneck whose 3x3 convolution has 4 groups -> another one"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 16, stride=2), GroupedBlock(16, 24), GroupedBlock(24, 24), width=24)


class GroupedBlock(nn.Module):
    """x -+-> 1x1 -> 3x3 in 4 groups -> 1x1 -+-> relu
    +------------> 1x1 ------------------+"""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.a, self.b = cbr(width, 16, 1), cbr(16, 16, groups=4)
        self.c = nn.Sequential(nn.Conv2d(16, out, 1, bias=False), nn.BatchNorm2d(out))
        self.down = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(self.b(self.a(x))) + self.down(x))


class Res2Net(Pooled):
    """stem -> block that splits its channels in 4 scales, each of which adds the previous one's result"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 16, stride=2), Scales(16), Scales(16), width=16)


class Scales(nn.Module):
    """x -+-> 1x1 -> split(4) -> 3x3 each, plus the one before -> concat -> 1x1 -+-> relu
    +----------------------------------------------------------------------+"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = cbr(width, 16, 1), nn.Conv2d(16, width, 1)
        self.convs = nn.ModuleList(cbr(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.reduce(x), 4, 1)
        found = [parts[0]]
        for conv, part in zip(self.convs, parts[1:], strict=True):
            found.append(conv(part + found[-1]) if len(found) > 1 else conv(part))
        return F.relu(self.expand(torch.cat(found, 1)) + x)


class SplitAttention(Pooled):
    """stem -> split attention as in ResNeSt: radix 2, softmax over the two halves"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), SplitAttentionConv(12, 16), cbr(16, 16), width=16)


class SplitAttentionConv(nn.Module):
    """x -> conv in 2 groups (2 x out) -+-> view (2, out) -> weighted sum
    +-> sum -> mean -> 1x1 -> 1x1 -> softmax over 2"""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv = cbr(width, 2 * out, groups=2)
        self.fc1, self.fc2 = cbr(out, 8, 1), nn.Conv2d(8, 2 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, 2, channels // 2, height, width)
        pooled = x.sum(dim=1).mean((2, 3), keepdim=True)
        weight = self.fc2(self.fc1(pooled)).view(batch, 1, 2, -1).transpose(1, 2).softmax(dim=1)
        return (x * weight.reshape(batch, 2, channels // 2, 1, 1)).sum(dim=1)


class DenseNet(Pooled):
    """stem -> dense block (3 layers, each appends 6 channels) -> transition -> dense block"""

    def __init__(self) -> None:
        transition = nn.Sequential(nn.BatchNorm2d(30), nn.ReLU(), nn.Conv2d(30, 16, 1, bias=False), nn.AvgPool2d(2))
        end = nn.Sequential(nn.BatchNorm2d(28), nn.ReLU())
        super().__init__(nn.Conv2d(3, 12, 3, 2, 1), DenseBlock(12, 3), transition, DenseBlock(16, 2), end, width=28)


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of the input and all earlier layers."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + 6 * i),
                nn.ReLU(),
                nn.Conv2d(width + 6 * i, 12, 1, bias=False),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 6, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class Inception(Pooled):
    """stem -> concat of 1x1, 1x1-3x3 and pool-1x1 branches, twice"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), Branches(12), nn.MaxPool2d(2), Branches(20), width=20)


class Branches(nn.Module):
    """Three branches that end in a concatenation of 20 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = cbr(width, 8, 1), nn.Sequential(cbr(width, 6, 1), cbr(6, 8))
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(width, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.a, self.b, self.c)], 1)


class RepVgg(Pooled):
    """3x3, 1x1 and a BatchNorm alone, added, as RepVGG trains"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), RepBlock(12), RepBlock(12), width=12)


class RepBlock(nn.Module):
    """x -> relu(BN(3x3) + BN(1x1) + BN)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.b = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.c = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.a(x) + self.b(x) + self.c(x))


class ShuffleNet(Pooled):
    """stem -> unit of stride 2 -> units that split, compute one half and shuffle"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), ShuffleUnit(12, 24, 2), ShuffleUnit(24, 24, 1), ShuffleUnit(24, 24, 1), width=24)


class ShuffleUnit(nn.Module):
    """stride 1: split -> (same, branch) -> concat -> shuffle; stride 2: (branch, branch) -> concat -> shuffle"""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        half, self.stride = out // 2, stride
        if stride > 1:
            self.left = nn.Sequential(self._depthwise(width, stride), cbr(width, half, 1))
        entry = width if stride > 1 else half
        self.right = nn.Sequential(cbr(entry, half, 1), self._depthwise(half, stride), cbr(half, half, 1))

    @staticmethod
    def _depthwise(width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            same, other = x.chunk(2, dim=1)
            joined = torch.cat((same, self.right(other)), 1)
        else:
            joined = torch.cat((self.left(x), self.right(x)), 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


class MobileNetSe(Pooled):
    """stem -> inverted residuals with squeeze-excite in one spelling"""

    def __init__(self, spelling: str) -> None:
        blocks = (InvertedResidual(8, 12, 2, spelling), InvertedResidual(12, 12, 1, spelling))
        super().__init__(cbr(3, 8, stride=2), *blocks, cbr(12, 24, 1), width=24)


class InvertedResidual(nn.Module):
    """x -+-> 1x1 -> depthwise -> squeeze-excite -> 1x1 -+-> (if the sizes agree)
    +--------------------------------------------------+"""

    def __init__(self, width: int, out: int, stride: int, spelling: str) -> None:
        super().__init__()
        inner = 3 * width
        self.expand, self.filter = cbr(width, inner, 1), cbr(inner, inner, 3, stride, groups=inner)
        self.gate = SqueezeConv(inner) if spelling == "conv" else SqueezeLinear(inner, spelling)
        self.project = nn.Sequential(nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out))
        self.same = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.gate(self.filter(self.expand(x))))
        return x + y if self.same else y


class SqueezeConv(nn.Module):
    """Squeeze-excite with 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 6, 1), nn.Conv2d(6, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class SqueezeLinear(nn.Module):
    """Squeeze-excite with linear layers, which ends in `view` or in `view` and `expand_as`."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 6), nn.SiLU(), nn.Linear(6, width), nn.Sigmoid())
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.size()
        scale = self.layers(x.mean((2, 3))).view(batch, channels, 1, 1)
        return x * (scale.expand_as(x) if self.spelling == "expand" else scale)


class Eca(Pooled):
    """stem -> conv with efficient channel attention: a Conv1d that slides along the channels"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), cbr(12, 16), EcaGate(), cbr(16, 16), width=16)


class EcaGate(nn.Module):
    """x * sigmoid(conv1d over the channels' means)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return x * y.view(x.shape[0], -1, 1, 1)


class GhostNet(Pooled):
    """stem -> ghost bottlenecks"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 8, stride=2), GhostBlock(8, 24), GhostBlock(8, 18), width=8)


class GhostBlock(nn.Module):
    """x -+-> ghost(inner) -> ghost(x's width) -+-> sum"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.b = Ghost(width, inner), Ghost(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class Ghost(nn.Module):
    """1x1 for half of the channels, a cheap depthwise convolution of it for the rest; the first `out` of both"""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.out, half = out, -(-out // 2)
        self.primary, self.cheap = cbr(width, half, 1), cbr(half, half, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.out, :, :]


class MixNet(Pooled):
    """stem -> 1x1 -> split -> depthwise of another kernel size for each part -> concat -> 1x1"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), cbr(12, 24, 1), MixedConv(24), cbr(24, 16, 1), width=16)


class MixedConv(nn.Module):
    """Splits its channels in three; each third has a depthwise kernel of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = [width // 3] * 3
        self.convs = nn.ModuleList(cbr(width // 3, width // 3, kernel, groups=width // 3) for kernel in (3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part) for conv, part in zip(self.convs, torch.split(x, self.parts, 1), strict=True)], 1)


class DepthMultiplier(Pooled):
    """stem -> depthwise convolution with two outputs for each channel -> 1x1"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 10, stride=2), cbr(10, 20, groups=10), cbr(20, 12, 1), width=12)


class ConvNext(nn.Module):
    """stem -> LayerNorm -> blocks -> LayerNorm -> 2x2 -> blocks -> mean -> LayerNorm -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 4, 4), ChannelsFirstNorm(12)
        self.first, self.between = ConvNextBlock(12), nn.Sequential(ChannelsFirstNorm(12), nn.Conv2d(12, 16, 2, 2))
        self.second = ConvNextBlock(16)
        self.last, self.head = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.between(self.first(self.norm(self.stem(x)))))
        return self.head(self.last(x.mean((2, 3))))


class ConvNextBlock(nn.Module):
    """x -+-> depthwise 7x7 -> LayerNorm -> linear -> GELU -> linear -> * scale -+-> sum"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.filter(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class HandWrittenNorm(Pooled):
    """stem -> LayerNorm over channels, written out with mean and square root -> conv"""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 3, 2, 1), WrittenNorm(12), nn.Conv2d(12, 16, 3, padding=1), WrittenNorm(16), width=16)


class WrittenNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return F.relu(self.weight[:, None, None] * x + self.bias[:, None, None])
