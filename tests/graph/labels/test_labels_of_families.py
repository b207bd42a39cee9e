"""Labels of small networks of every family: the narrowed graph answers like the silenced one, by ONNX Runtime."""

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.graph.export import export_trainable
from pipeline.graph.labels.space import label_graph, name_nodes
from pipeline.graph.silence import silence
from pipeline.graph.slice import prepare

DEFAULT = (
    "resnet-option-a",
    "densenet",
    "shufflenet-v2",
    "swin",
    "c2f-split",
    "cnn-gru",
)
"""Families that are tried in the default tests. The others are slow only because there are many."""


@pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_a_narrowed_family_answers_like_the_silenced_one(name: str) -> None:
    torch.manual_seed(0)
    module, example = FAMILIES[name]()
    example = example[:1]
    model = export_trainable(module.eval(), example, 18, 10, 20)
    name_nodes(model)
    labelled = label_graph(model)
    sliceable, generator = prepare(model, labelled), np.random.default_rng(0)
    assert labelled.space.groups
    for left in (lambda width: max(1, width // 2), lambda width: width - 1, lambda width: 1):
        kept = {
            group.name: tuple(sorted(generator.permutation(group.channels)[: left(group.channels)].tolist()))
            for group in labelled.space.groups
        }
        silent = run_onnx(silence(model, labelled, kept).SerializeToString(), example.numpy())
        narrow = run_onnx(sliceable.slice(kept).SerializeToString(), example.numpy())

        assert largest_difference(silent, narrow) <= TOLERANCE
        assert largest_difference(run_onnx(model.SerializeToString(), example.numpy()), silent) > TOLERANCE, "nothing was removed"
