"""Families of other tasks and unusual layers in small: detectors, segmentation, recurrent heads, gates, weights that are computed."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from helpers.families_conv import CLASSES, BasicBlock, Pooled, cbr


class C2f(nn.Module):
    """stem -> C2f -> C2f -> SPPF -> mean -> linear, as in YOLOv8"""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            cbr(3, 12, stride=2), C2fBlock(12, 16, 1, spelling), cbr(16, 16, stride=2), C2fBlock(16, 24, 2, spelling)
        )
        self.pool, self.head = Sppf(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(x)).mean((2, 3)))


class C2fBlock(nn.Module):
    """x -> 1x1 -> two halves; residual blocks follow the second; concat of everything -> 1x1"""

    def __init__(self, width: int, out: int, blocks: int, spelling: str) -> None:
        super().__init__()
        self.half, self.spelling = out // 2, spelling
        self.entry, self.exit = cbr(width, out, 1), cbr((2 + blocks) * self.half, out, 1)
        self.blocks = nn.ModuleList(nn.Sequential(cbr(self.half, self.half), cbr(self.half, self.half)) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = self.entry(x)
        parts = list(y.chunk(2, 1)) if self.spelling == "chunk" else list(y.split((self.half, self.half), 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.exit(torch.cat(parts, 1))


class Sppf(nn.Module):
    """1x1 -> three max pools in a row -> concat of the four -> 1x1"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.entry, self.pool, self.exit = cbr(width, width // 2, 1), nn.MaxPool2d(5, 1, 2), cbr(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.entry(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.exit(torch.cat(found, 1))


class Csp(Pooled):
    """stem -> 1x1 -> half of the channels through residual blocks -> concat with the other half -> 1x1"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 12, stride=2), CspStage(12, 16), CspStage(16, 24), width=24)


class CspStage(nn.Module):
    """As in CSPNet: the split comes after the expansion."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.expand, self.blocks = cbr(width, out, 1), nn.Sequential(BasicBlock(out // 2, out // 2))
        self.after, self.join = cbr(out // 2, out // 2, 1), cbr(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        same, other = x.split(x.shape[1] // 2, dim=1)
        return self.join(torch.cat([same, self.after(self.blocks(other))], 1))


class UNet(nn.Module):
    """encoder -> transposed convolution -> concat with the skip -> interpolate to the skip's size -> concat -> 1x1"""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = cbr(3, 8), cbr(8, 12, stride=2), cbr(12, 16, stride=2)
        self.up2, self.join2 = nn.ConvTranspose2d(16, 12, 2, 2), cbr(24, 12)
        self.join1, self.head = cbr(20, 8), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(one)
        y = self.join2(torch.cat([self.up2(self.bottom(two)), two], 1))
        y = F.interpolate(y, size=one.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.join1(torch.cat([y, one], 1)))


class Segmenter(nn.Module):
    """backbone -> atrous pyramid with an image-level branch -> 1x1 -> interpolate to the input's size, as in DeepLab"""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(cbr(3, 12, stride=2), cbr(12, 16, stride=2))
        self.plain, self.image = cbr(16, 8, 1), cbr(16, 8, 1)
        self.atrous = nn.Sequential(nn.Conv2d(16, 8, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.join, self.head = cbr(24, 16, 1), nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x)
        image = F.interpolate(self.image(F.adaptive_avg_pool2d(y, 1)), size=y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.head(self.join(torch.cat([self.plain(y), self.atrous(y), image], 1)))
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """backbone with two levels -> top-down sum -> shared heads -> (N, anchors, classes + 4), both levels concatenated"""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Sequential(cbr(3, 8, stride=2), cbr(8, 12, stride=2)), cbr(12, 16, stride=2)
        self.lateral_low, self.lateral_high = nn.Conv2d(12, 12, 1), nn.Conv2d(16, 12, 1)
        self.tower, self.classes, self.boxes = (
            cbr(12, 12),
            nn.Conv2d(12, 2 * CLASSES, 3, padding=1),
            nn.Conv2d(12, 2 * 4, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.lateral_high(self.high(low))
        low = self.lateral_low(low) + F.interpolate(high, scale_factor=2.0, mode="nearest")
        found = []
        for level in (low, high):
            y = self.tower(level)
            parts = [self._anchors(self.classes(y), CLASSES), self._anchors(self.boxes(y), 4)]
            found.append(torch.cat(parts, -1))
        return torch.cat(found, 1)

    @staticmethod
    def _anchors(x: Tensor, numbers: int) -> Tensor:
        batch, _, height, width = x.shape
        return x.view(batch, -1, numbers, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, numbers)


class SuperResolution(nn.Module):
    """pixel unshuffle -> conv -> residual -> conv (4 x 8) -> pixel shuffle -> conv (4 x 3) -> pixel shuffle"""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.block = nn.Conv2d(12, 12, 3, padding=1), BasicBlock(12, 12)
        self.up, self.exit = nn.Conv2d(12, 32, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(F.relu(self.entry(F.pixel_unshuffle(x, 2))))
        y = F.relu(F.pixel_shuffle(self.up(y), 2))
        return F.pixel_shuffle(self.exit(y), 2)


class StyleTransfer(nn.Module):
    """reflection padding -> conv -> InstanceNorm with weights -> residual -> nearest upsampling -> conv"""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 12, 3, 2), nn.InstanceNorm2d(12, affine=True), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(12, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1)
        )
        self.exit = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(12, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.exit(x + self.inner(x))


class Siamese(nn.Module):
    """Two images in one input of six channels; one network sees both; the difference and the product -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(cbr(3, 12, stride=2), cbr(12, 16, stride=2)), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.body(part).mean((2, 3)) for part in (x[:, :3], x[:, 3:]))
        return self.head(torch.cat([(left - right).abs(), left * right], 1))


class Maxout(nn.Module):
    """stem -> conv (2 x 12) -> the larger of each pair of channels -> conv -> mean -> maxout of halves -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.last = cbr(3, 12, stride=2), nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(self.stem(x))
        y = y.view(y.shape[0], 12, 2, *y.shape[2:]).amax(2)
        left, right = self.last(y).chunk(2, 1)
        return self.head(torch.max(left, right).mean((2, 3)))


class Glu(nn.Module):
    """stem -> conv (2 x 12) -> GLU -> conv -> mean -> linear (2 x 10) -> SwiGLU -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.inner = cbr(3, 10, stride=2), nn.Conv2d(10, 24, 3, padding=1), cbr(12, 16)
        self.gate, self.head = nn.Linear(16, 20), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(F.glu(self.wide(self.stem(x)), dim=1)).mean((2, 3))
        a, b = self.gate(y).chunk(2, -1)
        return self.head(F.silu(a) * b)


class PReLUs(Pooled):
    """conv -> PReLU with a slope for each channel -> conv -> PReLU with one slope"""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 3, 2), nn.PReLU(12), nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.PReLU(), width=16)


class ConcatenatedRelu(nn.Module):
    """stem -> relu(concat(x, -x)) -> conv -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 10, 3, 2, 1), cbr(20, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.conv(F.relu(torch.cat([y, -y], 1))).mean((2, 3)))


class UnevenSplit(nn.Module):
    """stem (20) -> split into 6, 4 and 10 -> sigmoid(4) gates by a 1x1; 6 and 10 go through convolutions -> concat"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = cbr(3, 20, stride=2), cbr(6, 8), nn.Conv2d(4, 8, 1), cbr(10, 12)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(x), [6, 4, 10], dim=1)
        return self.head(torch.cat([self.a(a) * torch.sigmoid(self.b(b)), self.c(c)], 1).mean((2, 3)))


class FrozenNorm(nn.Module):
    """BatchNorm as four buffers, as detectors use it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in (("frozen_weight", 1.0), ("frozen_bias", 0.0), ("frozen_mean", 0.0), ("frozen_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            each.reshape(1, -1, 1, 1) for each in (self.frozen_weight, self.frozen_bias, self.frozen_mean, self.frozen_var)
        )
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Frozen(Pooled):
    """conv -> frozen BatchNorm -> relu, three times"""

    def __init__(self) -> None:
        widths = (3, 12, 16, 16)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), FrozenNorm(b), nn.ReLU()) for a, b in itertools.pairwise(widths)
        ]
        super().__init__(*layers, width=16)


class WeightNorm(Pooled):
    """Convolutions whose weight is direction times length."""

    def __init__(self) -> None:
        first, second = (parametrizations.weight_norm(nn.Conv2d(a, b, 3, 2, 1)) for a, b in ((3, 12), (12, 16)))
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), width=16)


class SpectralNorm(Pooled):
    """Convolutions whose weight is divided by its largest singular value."""

    def __init__(self) -> None:
        first, second = (parametrizations.spectral_norm(nn.Conv2d(a, b, 3, 2, 1)) for a, b in ((3, 12), (12, 16)))
        super().__init__(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), width=16)


class StandardisedConv(nn.Conv2d):
    """A convolution that standardises its weight for each output channel, as norm-free networks do."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return F.conv2d(x, weight.view_as(self.weight) * 0.3, self.bias, self.stride, self.padding)


class NormFree(Pooled):
    """Standardised convolutions with ReLU, no normalisation of activations"""

    def __init__(self) -> None:
        first, second, third = (
            StandardisedConv(3, 12, 3, 2, 1),
            StandardisedConv(12, 16, 3, 2, 1),
            StandardisedConv(16, 16, 3, 1, 1),
        )
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), width=16)


class Cast(nn.Module):
    """x.float() -> normalised with buffers -> conv -> conv -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(cbr(3, 12, stride=2), cbr(12, 16)), nn.Linear(16, CLASSES)
        self.register_buffer("center", torch.rand(3, 1, 1))
        self.register_buffer("spread", torch.rand(3, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.float() - self.center) / self.spread
        return self.head(self.body(x).mean((2, 3)))


class Recurrent(nn.Module):
    """conv -> conv -> columns as a sequence -> bidirectional GRU or LSTM -> linear for each column, as in text recognition"""

    def __init__(self, layer: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(3, 12, stride=2), cbr(12, 8, stride=2))
        self.recurrent, self.head = layer(8 * 4, 10, batch_first=True, bidirectional=True), nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.recurrent(y)[0])


class Sound(nn.Module):
    """Conv1d -> depthwise Conv1d -> residual -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv1d(2, 12, 9, 4, 4, bias=False), nn.BatchNorm1d(12)
        self.b, self.c, self.norm_c = nn.Conv1d(12, 12, 5, padding=2, groups=12), nn.Conv1d(12, 12, 1), nn.BatchNorm1d(12)
        self.d, self.head = nn.Conv1d(12, 16, 5, 2, 2), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.a(x)))
        x = x + F.relu(self.norm_c(self.c(self.b(x))))
        return self.head(F.relu(self.d(x)).mean(2))


class Video(nn.Module):
    """Conv3d -> BatchNorm3d -> factorised (2 + 1)D block -> residual -> pool -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 10, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(10), nn.ReLU())
        self.space, self.time = nn.Conv3d(10, 12, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(12, 10, (3, 1, 1), padding=(1, 0, 0))
        self.pool, self.head = nn.AdaptiveAvgPool3d(1), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pool(F.relu(x + self.time(F.relu(self.space(x))))).flatten(1))
