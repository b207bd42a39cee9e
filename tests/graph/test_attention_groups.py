"""Attention: a head leaves whole, with its part of q, k, v and the projection; an MLP and the embedding have groups of their own."""

import pytest
import torch
from helpers.families import FAMILIES
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from pipeline.core.plan import PruneSpace
from pipeline.graph.analyse import analyse

HEADS, WIDTH, HIDDEN = 4, 24, 48


def family(name: str) -> tuple[nn.Module, Tensor]:
    module, example = FAMILIES[name]()
    return module.eval(), example[:1]


def torchvision_vit() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(32, 16, 2, HEADS, WIDTH, HIDDEN, num_classes=5).eval(), torch.randn(1, 3, 32, 32)


def torchvision_swin() -> tuple[nn.Module, Tensor]:
    """two stages of one block; windows of 4 x 4; patch merging in between"""
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 8, [1, 1], [2, 4], [4, 4], 2.0, num_classes=5).eval(), torch.randn(1, 3, 32, 32)


def widths(space: PruneSpace) -> dict[str, tuple[int, int]]:
    return {group.name: (group.channels, group.bundle) for group in space.groups}


@pytest.mark.parametrize(
    ("make", "embedding", "attention", "mlp", "bundle", "parts"),
    [
        pytest.param(
            lambda: family("vit"),
            "patches.proj",
            "blocks.{}.attention.qkv",
            "blocks.{}.mlp.fc1",
            3 * WIDTH // HEADS,
            ("attention.qkv.weight", "attention.qkv.bias", "attention.proj.weight"),
            id="fused q, k and v",
        ),
        pytest.param(
            lambda: family("vit-separate"),
            "patches.proj",
            "blocks.{}.attention.q",
            "blocks.{}.mlp.fc1",
            WIDTH // HEADS,
            tuple(f"attention.{part}" for part in ("q.weight", "q.bias", "k.weight", "v.weight", "v.bias", "proj.weight")),
            id="separate q, k and v",
        ),
        pytest.param(
            torchvision_vit,
            "conv_proj",
            "encoder.layers.encoder_layer_{}.self_attention.in_proj_weight",
            "encoder.layers.encoder_layer_{}.mlp.0",
            3 * WIDTH // HEADS,
            tuple(f"self_attention.{part}" for part in ("in_proj_weight.weight", "in_proj_weight.bias", "out_proj.weight")),
            id="torchvision, nn.MultiheadAttention",
        ),
    ],
)
def test_a_block_has_one_group_of_heads_and_one_for_its_mlp(make, embedding, attention, mlp, bundle, parts) -> None:  # type: ignore[no-untyped-def]
    """two blocks on one residual stream, whose width is the third kind of group"""
    space = analyse(*make()).space
    groups = {group.name: group for group in space.groups}

    expected = {embedding: (WIDTH, 1)}
    for number in range(2):
        expected |= {attention.format(number): (HEADS, bundle), mlp.format(number): (HIDDEN, 1)}
        heads = groups[attention.format(number)]
        assert {slot.tensor.partition(f"{number}.")[2] for slot in heads.slots} == set(parts)
        assert all(len(slot.entries) % HEADS == 0 for slot in heads.slots)
    assert widths(space) == expected


def test_a_window_block_has_one_group_of_heads_with_their_position_bias() -> None:
    """Swin of torchvision: the embedding doubles at the patch merging, and each stage has one"""
    space = analyse(*torchvision_swin()).space
    groups = {group.name: group for group in space.groups}

    assert widths(space) == {
        "features.0.0": (8, 1),
        "features.1.0.attn.qkv": (2, 12),
        "features.1.0.mlp.0": (16, 1),
        "features.2.reduction": (16, 1),
        "features.3.0.attn.qkv": (4, 12),
        "features.3.0.mlp.0": (32, 1),
    }
    assert {slot.tensor for slot in groups["features.1.0.attn.qkv"].slots} >= {
        "features.1.0.attn.qkv.weight",
        "features.1.0.attn.qkv.bias",
        "features.1.0.attn.proj.weight",
    }
    assert len(groups["features.1.0.attn.qkv"].slots) == 4, "and the bias of each relative position"


def test_a_network_whose_last_layer_is_zero_is_analysed_like_others() -> None:
    """the channels of a normalised layer sum up to zero, so equal weights in the last layer would show rounding alone"""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8, elementwise_affine=False)
    )
    module.append(nn.Linear(8, 5, bias=False))
    nn.init.zeros_(module[-1].weight)

    assert widths(analyse(module.eval(), torch.randn(1, 3, 16, 16)).space) == {"0": (16, 1), "3": (8, 1)}
