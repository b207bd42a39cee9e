"""A trial: its weights are shared by all plans, and each plan gets them whole."""

import numpy as np
import onnx
import pytest
import torch
from helpers.onnx_text import graph
from onnx import numpy_helper

from pipeline.core.plan import Kept
from pipeline.graph.edit import outline_of
from pipeline.graph.labels.space import label_graph
from pipeline.graph.to_torch import network_of
from pipeline.graph.trial import Answers, start_trial

FEW, OTHERS = {"w0": (0, 1), "w1": (2,)}, {"w0": (0, 3), "w1": (0, 1, 2)}


def chain() -> onnx.ModelProto:
    """x -> conv(4) -> normalised over the channels -> conv(3) -> conv(2); the normalisation is a statistic over channels"""
    return graph(
        """(float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0)
            norm = ReduceL2<keepdims = 1>(a, over)
            b = Div(a, norm)
            c = Conv(b, w1)
            d = Relu(c)
            y = Conv(d, out)
        }""",
        w0=(4, 3, 1, 1),
        w1=(3, 4, 1, 1),
        out=(2, 3, 1, 1),
        over=[1],
    )


def alone(kept: Kept) -> Answers:
    """The answers of the silenced graph in a trial that has seen no other plan."""
    return start_trial(chain(), label_graph(chain()), kept).silenced(kept)


@pytest.mark.parametrize("before", [FEW, OTHERS, {}])
def test_a_plan_is_not_affected_by_those_that_were_tried_before(before: Kept) -> None:
    trial = start_trial(chain(), label_graph(chain()), before)
    sliced = trial.sliced(FEW)

    np.testing.assert_array_equal(trial.silenced(FEW), alone(FEW))
    np.testing.assert_array_equal(trial.silenced(OTHERS), alone(OTHERS))
    np.testing.assert_array_equal(trial.sliced(FEW), sliced)


def test_both_graphs_of_a_plan_answer_alike_and_unlike_the_whole_network() -> None:
    trial = start_trial(chain(), label_graph(chain()), FEW)

    np.testing.assert_allclose(trial.sliced(FEW), trial.silenced(FEW), rtol=1e-12, atol=1e-12)
    assert not np.allclose(trial.silenced(FEW), trial.silenced({}))


def test_an_outline_has_the_shapes_of_the_weights_and_not_their_values() -> None:
    outline = outline_of(chain(), {"w0", "w1", "out"})
    values = {tensor.name: (list(tensor.dims), len(tensor.raw_data)) for tensor in outline.graph.initializer}

    assert values == {"w0": ([4, 3, 1, 1], 0), "w1": ([3, 4, 1, 1], 0), "out": ([2, 3, 1, 1], 0), "over": ([1], 8)}
    assert [node.op_type for node in outline.graph.node] == [node.op_type for node in chain().graph.node]


def test_a_network_that_is_rebuilt_from_given_weights_copies_none_of_them() -> None:
    """the second weight is transposed in torch's linear layer"""
    model = graph("(float[1,6] x) => (float[1,4] y) { a = Gemm<transB = 1>(x, w0) y = MatMul(a, w1) }", w0=(5, 6), w1=(5, 4))
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer}
    network = network_of(model, values=values)

    assert {place.axes for place in network.tensors.values()} == {(0, 1), (1, 0)}
    assert {tensor.data_ptr() for tensor in network.state_dict().values()} == {tensor.data_ptr() for tensor in values.values()}
