"""A batch of another size than the exported one: every image gets the answer that it gets alone."""

import numpy as np
import pytest
import torch
from helpers.rebuilt import batch_difference, random, rebuilt
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.graph.to_torch.batch.call import Call, State, block, moved, repeated
from pipeline.graph.to_torch.batch.reshape import state_after
from pipeline.graph.to_torch.node import Node, Precision

BATCH = torch.from_numpy(random(3, 4, 6, 6))

WHOLE = {
    "reshape to (1, channels x pixels)": "s = Constant <value_ints=[1, 144]> ()  y = Reshape (x, s)",
    "flatten": "y = Flatten (x)",
    "windows of 3x3 in front": """s = Constant <value_ints=[1, 4, 2, 3, 2, 3]> ()  a = Reshape (x, s)  b = Transpose <perm=[0, 2, 4, 1, 3, 5]> (a)
        t = Constant <value_ints=[4, 4, 9]> ()  c = Reshape (b, t)  d = Softmax (c)
        u = Constant <value_ints=[1, 2, 2, 4, 3, 3]> ()  e = Reshape (d, u)  f = Transpose <perm=[0, 3, 1, 4, 2, 5]> (e)
        v = Constant <value_ints=[1, 4, 6, 6]> ()  y = Reshape (f, v)""",
    "a number for each window": """s = Constant <value_ints=[4, 36]> ()  a = Reshape (x, s)  m = Constant <value=float[4, 1] {1, 2, 3, 4}> ()
        b = Mul (a, m)  t = Constant <value_ints=[1, 144]> ()  y = Reshape (b, t)""",
    "positions in front, batch behind": """s = Constant <value_ints=[1, 4, 36]> ()  a = Reshape (x, s)  b = Transpose <perm=[2, 0, 1]> (a)
        t = Constant <value_ints=[36, 4]> ()  c = Reshape (b, t)  w = Constant <value=float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()  d = MatMul (c, w)
        u = Constant <value_ints=[36, 1, 2]> ()  e = Reshape (d, u)  y = Transpose <perm=[1, 0, 2]> (e)""",
    "class token": """s = Constant <value_ints=[1, 4, 36]> ()  a = Reshape (x, s)  k = Constant <value=float[1, 4, 1] {1, 2, 3, 4}> ()
        y = Concat <axis=2> (k, a)""",
    "expanded class token": """s = Constant <value_ints=[1, 4, 36]> ()  a = Reshape (x, s)  k = Constant <value=float[4, 1] {1, 2, 3, 4}> ()
        e = Constant <value_ints=[1, 4, 1]> ()  t = Expand (k, e)  y = Concat <axis=2> (a, t)""",
    "expand": """r = Constant <value_ints=[2, 3]> ()  a = ReduceMean (x, r)  s = Constant <value_ints=[1, 4, 5, 6]> ()  y = Expand (a, s)""",
    "shape of the input": """s = Shape (x)  y = Reshape (x, s)""",
    "zeros of the input's shape": """s = Shape (x)  z = ConstantOfShape <value=float[1] {2}> (s)  y = Add (x, z)""",
    "joined along the batch": """a = Neg (x)  b = Concat <axis=0> (x, a)  c = Split <axis=0, num_outputs=2> (b)  y = Add (c, x)""",
    "softmax along the batch": "y = Softmax <axis=0> (x)",
    "mean over everything": "y = ReduceMean <keepdims=1> (x)",
    "slice from the batch": """a = Constant <value_ints=[0, 1]> ()  b = Constant <value_ints=[1, 3]> ()  y = Slice (x, a, b)""",
    "gather of the flat image": """s = Constant <value_ints=[144]> ()  a = Reshape (x, s)  i = Constant <value=int64[1, 2] {3, -1}> ()  y = Gather (a, i)""",
    "first position": "i = Constant <value_int=0> ()  y = Gather <axis=2> (x, i)",
    "products of positions": """s = Constant <value_ints=[1, 4, 36]> ()  a = Reshape (x, s)  b = Transpose <perm=[0, 2, 1]> (a)  y = MatMul (b, a)""",
    "squeezed batch": "a = ReduceMean <keepdims=1> (x)  z = Constant <value_ints=[0]> ()  b = Squeeze (x, z)  c = Mul (b, b)  y = Unsqueeze (c, z)",
    "resize to sizes": """s = Constant <value_ints=[1, 4, 9, 9]> ()  y = Resize <mode="linear"> (x, , , s)""",
    "one row for each class": """s = Constant <value_ints=[1, 144]> ()  a = Reshape (x, s)  c = Constant <value=float[2, 1] {1, 2}> ()  y = Mul (a, c)""",
    "image against itself": """a = Constant <value_ints=[1, 1, 4, 36]> ()  b = Reshape (x, a)  c = Constant <value_ints=[1, 4, 1, 36]> ()  d = Reshape (x, c)
        y = Sub (b, d)""",
    "top values": "k = Constant <value_ints=[2]> ()  y, i = TopK (x, k)",
    "cumulative sum": "a = Constant <value_int=1> ()  y = CumSum (x, a)",
    "einsum": """w = Constant <value=float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()  y = Einsum <equation="bchw,cd->bdhw"> (x, w)""",
    "pixel shuffle": "y = DepthToSpace <blocksize=2> (x)",
    "scatter": """i = Constant <value=int64[1, 4] {0, 1, 2, 3}> ()  u = Constant <value=float[1] {7}> ()  y = ScatterND (x, i, u)""",
    "the largest position": "a = ArgMax <axis=1, keepdims=0> (x)  y = Cast <to=1> (a)",
    "padding": "p = Constant <value_ints=[0, 0, 1, 0, 0, 0, 1, 2]> ()  y = Pad (x, p)",
    "one hot": """a = ArgMax <axis=1, keepdims=0> (x)  d = Constant <value_int=4> ()  v = Constant <value=float[2] {0, 1}> ()  y = OneHot <axis=1> (a, d, v)""",
    "embedding": "a = ArgMax <axis=1, keepdims=0> (x)  e = Constant <value=float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()  y = Gather (e, a)",
}
"""Name -> nodes that compute y from x, exported for one image (1, 4, 6, 6)"""


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_of_three_has_the_answers_of_its_images(name: str) -> None:
    network = rebuilt(f"(float[1,4,6,6] x) => (float[A] y) {{ {WHOLE[name]} }}")

    assert batch_difference(network, BATCH) < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "windows of 3x3 in front",
        "positions in front, batch behind",
        "class token",
        "gather of the flat image",
        "a number for each window",
    ],
)
def test_usual_rearrangements_are_computed_for_all_images_at_once(name: str) -> None:
    network = rebuilt(f"(float[1,4,6,6] x) => (float[A] y) {{ {WHOLE[name]} }}")

    network(BATCH)

    assert (network.looped, network.one_by_one) == ((), None)


def test_a_network_with_sizes_of_its_own_for_each_image_runs_image_by_image() -> None:
    """x -> positions of positive values -> how many"""
    network = rebuilt(
        "(float[1,4,6,6] x) => (float[1] y) { a = Relu (x)  n = NonZero (a)  s = Shape <start=1> (n)  y = Cast <to=1> (s) }"
    )

    assert batch_difference(network, BATCH) == 0
    assert "NonZero" in str(network.one_by_one)


def test_a_graph_exported_for_two_images_runs_with_any_number() -> None:
    text = """(float[2,4,6,6] x) => (float[2,144] y) {
        s = Constant <value_ints=[8, 36]> ()  a = Reshape (x, s)  b = Softmax (a)  t = Constant <value_ints=[2, 144]> ()  y = Reshape (b, t) }"""
    two = rebuilt(text)
    one = rebuilt(text.replace("2,4,6,6", "1,4,6,6").replace("[8, 36]", "[4, 36]").replace("[2, 144]", "[1, 144]"))
    batch = torch.from_numpy(random(5, 4, 6, 6))

    assert torch.equal(two(batch), one(batch))
    assert two.one_by_one is None


def test_a_graph_exported_for_two_images_that_may_mix_them_runs_in_pairs() -> None:
    network = rebuilt("(float[2,4] x) => (float[2,4] y) { a = Softmax <axis=0> (x)  y = Neg (a) }")
    batch = torch.from_numpy(random(4, 4))

    assert torch.equal(network(batch), torch.cat([network(batch[:2]), network(batch[2:])]))
    assert len(network(batch[:3])) == 3
    assert "Softmax" in str(network.one_by_one)


def test_a_graph_exported_for_any_batch_is_run_as_it_is() -> None:
    network = rebuilt("(float[N,4,6,6] x) => (float[N,C] y) { s = Constant <value_ints=[0, -1]> ()  y = Reshape (x, s) }")

    assert torch.equal(network(BATCH), BATCH.flatten(1))


def test_an_answer_that_does_not_depend_on_the_image_is_repeated() -> None:
    network = rebuilt(
        "(float[1,4,6,6] x) => (float[1,2] y, float[1,4,6,6] z) { y = Constant <value=float[1, 2] {1, 2}> ()  z = Relu (x) }"
    )

    assert network(BATCH)[0].tolist() == [[1.0, 2.0]] * 3


def test_two_inputs_of_one_image_each_are_both_batches() -> None:
    network = rebuilt("(float[1,4,6,6] x, float[1,4,1,1] g) => (float[1,4,6,6] y) { y = Mul (x, g) }")
    gates = torch.from_numpy(random(3, 4, 1, 1))

    assert torch.equal(network(BATCH, gates), BATCH * gates)


def test_an_image_of_another_size_is_refused() -> None:
    network = rebuilt("(float[1,4,6,6] x) => (float[1,4,6,6] y) { y = Relu (x) }")

    with pytest.raises(ValueError, match=r"input 'x' has the shape \(3, 4, 6, 5\), and the graph takes \(batch, 4, 6, 6\)"):
        network(BATCH[..., :5])


def test_recurrent_layers_take_the_batch_in_their_second_axis() -> None:
    weights = {"w": random(1, 24, 4), "r": random(1, 24, 6), "h": random(1, 1, 6)}
    nodes = """s = Constant <value_ints=[1, 4, 36]> ()  a = Reshape (x, s)  b = Transpose <perm=[2, 0, 1]> (a)
        y = LSTM <hidden_size=6> (b, w, r, , , h, h)"""
    network = rebuilt(
        f"(float[1,4,6,6] x) => (float[1,6] y2) {{ {nodes}  z = Constant <value_ints=[0, 1]> ()  y1 = Squeeze (y, z) y2 = Relu (y)}}".replace(
            "y1 = Squeeze (y, z) ", ""
        ),
        weights,
    )

    network(BATCH)

    assert network.looped == ()


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_reshape_puts_the_images_where_the_rule_says(data: st.DataObject) -> None:
    single = data.draw(SHAPES)
    axis = data.draw(st.integers(0, len(single) - 1))
    outer = data.draw(st.sampled_from([n for n in range(1, single[axis] + 1) if single[axis] % n == 0]))
    numbers = [n for size in single for n in factors(size)]
    order = data.draw(st.permutations(numbers))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    target = [int(np.prod(order[a:b])) for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    images = torch.arange(3 * int(np.prod(single))).reshape(3, *single)
    state = State(axis, outer)
    value = moved(images.flatten(0, 1), State(0), state, 3)
    found = state_after(single, state, target, 1)

    if found is not None:
        shape = list(target)
        shape[found.axis] *= 3
        reshaped = value.reshape(shape)
        assert all(torch.equal(block(reshaped, found, 3, place), images[place].reshape(target)) for place in range(3))


def factors(size: int) -> list[int]:
    return {1: [], 2: [2], 3: [3], 4: [2, 2]}[size]


def test_moving_and_repeating_keep_what_each_image_is() -> None:
    images = torch.from_numpy(random(3, 2, 6))
    value = moved(images.flatten(0, 1), State(0), State(1, 3), 3)

    assert value.shape == (2, 18)
    assert all(torch.equal(block(value, State(1, 3), 3, place), images[place]) for place in range(3))
    again = repeated(images[0], State(1, 2), 3)
    assert all(torch.equal(block(again, State(1, 2), 3, place), images[0]) for place in range(3))


def test_a_call_knows_the_shapes_of_the_exported_graph() -> None:
    node = Node(0, "Relu", "n", ("x",), ("y",), {}, 18, Precision(1))

    assert Call(node, [torch.zeros(5, 12)], [State(1, 2)], images=3, exported=1).single(0) == [5, 4]
