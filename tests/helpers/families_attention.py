"""Families of attention networks in small. A patch is 8 x 8 pixels, or fewer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


class Patches(nn.Module):
    """x -> convolution with stride -> tokens (N, T, width), plus learned positions"""

    def __init__(self, width: int, side: int = 8, tokens: int = 16, class_token: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, side, side)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens + class_token, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return x + self.positions


class Mlp(nn.Module):
    """linear -> GELU -> linear"""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FusedAttention(nn.Module):
    """One linear layer for q, k and v; scaled_dot_product_attention; a projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(y)


class SeparateAttention(nn.Module):
    """A linear layer each for q, k and v; the softmax is written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (part(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) * self.dim**-0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))"""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """patches with a class token -> blocks with fused qkv -> norm -> the class token -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24, class_token=True)
        self.blocks = nn.Sequential(*(Block(FusedAttention(24, 4), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x)))[:, 0])


class VitSeparate(nn.Module):
    """patches -> blocks with separate q, k, v -> norm -> mean over the tokens -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24)
        self.blocks = nn.Sequential(*(Block(SeparateAttention(24, 4), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x))).mean(1))


class Multihead(nn.Module):
    """nn.MultiheadAttention as self-attention"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class MultiheadVit(nn.Module):
    """patches -> blocks with nn.MultiheadAttention -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24, class_token=True)
        self.blocks = nn.Sequential(*(Block(Multihead(24, 4), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x)))[:, 0])


class TransformerEncoder(nn.Module):
    """convolution -> tokens -> nn.TransformerEncoderLayer, norm first -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24)
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x)).mean(1))


class Swin(nn.Module):
    """patches -> window block -> shifted window block -> patch merging -> block -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.first = nn.Sequential(WindowBlock(16, 2, 0), WindowBlock(16, 2, 2))
        self.merge_norm, self.merge = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)
        self.second = WindowBlock(32, 4, 0)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.norm(self.second(self.merge(self.merge_norm(x)))).mean((1, 2)))


class WindowBlock(nn.Module):
    """Attention inside windows of 4 x 4, with a learned bias for each relative position; the windows may be shifted."""

    def __init__(self, width: int, heads: int, shift: int, side: int = 4) -> None:
        super().__init__()
        self.heads, self.shift, self.side = heads, shift, side
        self.norm1, self.norm2, self.mlp = nn.LayerNorm(width), nn.LayerNorm(width), Mlp(width, 2 * width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(0.1 * torch.randn((2 * side - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        relative = (place[:, :, None] - place[:, None, :]) + side - 1
        self.register_buffer("index", relative[0] * (2 * side - 1) + relative[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2)) if self.shift else self.norm1(x)
        y = y.view(batch, height // self.side, self.side, width // self.side, self.side, channels)
        y = self._attend(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.side**2, channels))
        y = y.view(batch, height // self.side, width // self.side, self.side, self.side, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        x = x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        windows, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.flatten()].view(tokens, tokens, self.heads).permute(2, 0, 1)
        weights = (q * (channels // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(windows, tokens, channels))


class EfficientLinearAttention(nn.Module):
    """stem -> linear attention with ReLU, as in EfficientViT: q (k^T v), divided by q sum(k) -> conv -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dim = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.Hardswish()), 8
        self.qkv = nn.Conv2d(16, 48, 1, bias=False)
        self.aggregate = nn.Sequential(nn.Conv2d(48, 48, 5, padding=2, groups=48), nn.Conv2d(48, 48, 1, groups=6))
        self.proj, self.norm, self.head = nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, _, height, width = x.shape
        qkv = self.qkv(x)
        both = torch.cat([qkv, self.aggregate(qkv)], 1).reshape(batch, -1, 3 * self.dim, height * width).transpose(-1, -2)
        q, k, v = both.chunk(3, dim=-1)
        q, k = F.relu(q), F.relu(k)
        v = F.pad(v, (0, 1), value=1.0)
        y = q @ (k.transpose(-1, -2) @ v)
        y = y[..., :-1] / (y[..., -1:] + 1e-5)
        y = self.norm(self.proj(y.transpose(-1, -2).reshape(batch, -1, height, width)))
        return self.head((x + y).mean((2, 3)))


class Xcit(nn.Module):
    """patches -> cross-covariance attention: heads attend over channels, q and k are normalised over the tokens"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24)
        self.blocks = nn.Sequential(*(Block(CrossCovariance(24, 4), 24) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x))).mean(1))


class CrossCovariance(nn.Module):
    """softmax(normalise(q)^T normalise(k) * temperature) v, over channels"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.temperature = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            nn.Parameter(torch.ones(heads, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ v).permute(0, 3, 1, 2).reshape(batch, tokens, width))


class MobileVit(nn.Module):
    """stem -> conv -> 1x1 -> patches of 2 x 2 unfolded -> transformer -> folded -> 1x1 -> concat with the input -> conv"""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 4, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.local, self.into = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.SiLU()), nn.Conv2d(12, 16, 1, bias=False)
        self.block, self.norm = Block(FusedAttention(16, 4), 16), nn.LayerNorm(16)
        self.out, self.fuse = nn.Conv2d(16, 12, 1, bias=False), nn.Conv2d(24, 12, 3, padding=1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.stem(x)
        x = self.into(self.local(x))
        batch, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        x = x.reshape(batch * channels * rows, 2, columns, 2).transpose(1, 2)
        x = x.reshape(batch, channels, rows * columns, 4).transpose(1, 3).reshape(batch * 4, rows * columns, channels)
        x = self.norm(self.block(x))
        x = x.contiguous().view(batch, 4, rows * columns, channels).transpose(1, 3)
        x = x.reshape(batch * channels * rows, columns, 2, 2).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(F.silu(self.fuse(torch.cat((shortcut, self.out(x)), dim=1))).mean((2, 3)))


class MlpMixer(nn.Module):
    """patches -> (mlp over the tokens, mlp over the channels) x 2 -> norm -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(24)
        self.blocks = nn.Sequential(*(MixerBlock(24, 16) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x))).mean(1))


class MixerBlock(nn.Module):
    """x + mlp over the tokens, then x + mlp over the channels"""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.mix_tokens = nn.LayerNorm(width), Mlp(tokens, 2 * tokens)
        self.norm2, self.mix_channels = nn.LayerNorm(width), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mix_channels(self.norm2(x))
