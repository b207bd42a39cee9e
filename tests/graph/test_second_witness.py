"""torch-pruning as a second witness: on most families it finds the same channels coupled. Where it does not, the reason is here."""

import ast
from pathlib import Path

import pytest
from helpers.families import FAMILIES
from helpers.witness import Verdict, second_opinion

import pipeline

EVENLY = "the same channels leave each group; torch-pruning's sets hold one of them, and its pruner adds the others"
HEADS = "heads leave whole; torch-pruning's sets hold single channels of a head"
PARTS = "the parts of a split have channels of their own; torch-pruning couples them, or takes one part for another"
ONE_LAYER = "torch-pruning takes nn.MultiheadAttention as one layer, and does not look into it"
COMPUTED = "weights of the graph are computed from several tensors of the module"

OTHERS: dict[str, tuple[Verdict, str]] = {
    "resnet-option-a": ("differs", "channels are padded on both sides; torch-pruning forgets those in front"),
    "bottleneck-group-norm": ("differs", EVENLY),
    "resnext": ("differs", EVENLY),
    "split-attention": ("differs", EVENLY),
    "res2net": ("differs", PARTS),
    "mixnet": ("differs", PARTS),
    "c2f-chunk": ("differs", PARTS),
    "csp": ("differs", PARTS),
    "uneven-split": ("differs", PARTS),
    "c2f-split": ("cannot trace it", "its index arithmetic fails at the split"),
    "shufflenet-v2": ("cannot trace it", "it divides by zero at the channel shuffle"),
    "depth-multiplier": ("differs", "two outputs follow each input; torch-pruning ends at the input"),
    "super-resolution": ("differs", "four outputs make a channel of the pixel shuffle; torch-pruning's set holds one of them"),
    "glu": ("differs", "a gate leaves with its value; torch-pruning does not know torch.nn.functional.glu"),
    "vit": ("differs", HEADS),
    "vit-separate": ("differs", HEADS),
    "mobilevit": ("differs", HEADS),
    "xcit": ("differs", HEADS),
    "mlp-mixer": ("differs", "tokens and channels meet; torch-pruning takes one for the other"),
    "multihead-attention": ("differs", ONE_LAYER),
    "transformer-encoder": ("differs", ONE_LAYER),
    "swin": ("differs", "four patches are merged; torch-pruning follows one of them"),
    "weight-norm": ("has other weights", COMPUTED),
    "spectral-norm": ("has other weights", COMPUTED),
    "norm-free": ("has other weights", COMPUTED),
    "cnn-gru": ("cannot trace it", "its index arithmetic fails between the convolutions and the recurrent layer"),
}
"""Family -> what the witness says, and why. It agrees on all others."""

DEFAULT = ("resnet", "densenet", "unet", "c2f-split")


@pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_the_second_witness_agrees_or_the_reason_is_known(name: str) -> None:
    expected, _reason = OTHERS.get(name, ("agrees", ""))

    assert second_opinion(*FAMILIES[name]()) == expected


def test_each_known_difference_is_one_of_a_family_that_is_tried() -> None:
    assert set(OTHERS) <= set(FAMILIES)


def test_the_program_runs_without_torch_pruning() -> None:
    """it is a witness in tests and benchmarks only"""
    root = Path(pipeline.__file__).parent
    trees = (ast.parse(path.read_text()) for path in root.rglob("*.py"))
    imported = {name for tree in trees for node in ast.walk(tree) for name in modules_of(node)}

    assert "torch" in imported
    assert "torch_pruning" not in imported


def modules_of(node: ast.AST) -> list[str]:
    """The packages that a statement imports."""
    names = [entry.name for entry in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [name.partition(".")[0] for name in names]
