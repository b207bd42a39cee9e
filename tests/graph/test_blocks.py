"""Blocks: what can be dropped is found on the graph, whatever its layers are called."""

import numpy as np
from helpers.block_graphs import INPUT, SQUARE, found, net, operators, silence_of, without
from helpers.onnx_text import graph

from pipeline.core.onnx_outputs import run_onnx
from pipeline.core.plan import Block
from pipeline.graph import blocks as reasons
from pipeline.graph.blocks import find_blocks
from pipeline.graph.labels.space import label_graph
from pipeline.graph.prove import prove_blocks
from pipeline.graph.silence import silence
from pipeline.graph.slice import prepare


def test_a_block_adds_its_result_to_its_own_entry() -> None:
    """e -+-> conv a -> relu -> conv b -+-> z
    +-------------------------+; its name has a number, because a group of channels is called 'a'"""
    model = net("p = Conv(e, a) q = Relu(p) r = Conv(q, b) z = Add(e, r)", a=SQUARE, b=SQUARE)
    (block,), refused = find_blocks(model, label_graph(model).space.groups)

    assert (block.name, block.entry, block.tensors, block.groups, refused) == ("a#2", 0, ("a", "b"), ("a",), ())


def test_the_entry_may_be_either_input_of_the_addition() -> None:
    """the branch is the first input, and the entry the second"""
    blocks, _ = find_blocks(net("p = Conv(e, a) z = Add(p, e)", a=SQUARE))

    assert [(block.name, block.entry) for block in blocks] == [("a", 1)]


def test_without_a_block_its_readers_read_its_entry() -> None:
    """e -> relu between two blocks: both, either and none of them can leave"""
    model = net("p = Conv(e, a) q = Add(e, p) r = Relu(q) s = Conv(r, b) z = Add(s, r)", a=SQUARE, b=SQUARE)

    assert operators(without(model, "a")) == ["Conv", "Relu", "Conv", "Add", "Conv"]
    assert operators(without(model, "a", "b")) == ["Conv", "Relu", "Conv"]
    assert operators(without(model)) == operators(model)


def test_a_relu_that_reads_the_result_of_a_relu_leaves_with_the_block_between_them() -> None:
    """relu -> (+ a) -> relu -> (+ b) -> relu, as in a residual network; the last ReLU stays where its input can be negative"""
    body = "r = Relu(e) p = Conv(r, a) f = Add(r, p) s = Relu(f) q = Conv(s, b) g = Add(s, q) z = Relu(g)"
    model = net(body, a=SQUARE, b=SQUARE)

    assert operators(without(model, "a", "b")) == ["Conv", "Relu", "Conv"]
    assert operators(without(model, "a")) == ["Conv", "Relu", "Conv", "Add", "Relu", "Conv"]
    assert operators(without(model, "b")) == ["Conv", "Relu", "Conv", "Add", "Relu", "Conv"]
    for names in ("a", "b", "ab"):
        silent = silence_of(model, *names)
        assert np.allclose(run_onnx(without(model, *names).SerializeToString(), INPUT), silent, atol=1e-5)


def test_a_maximum_of_results_of_a_relu_needs_no_other_relu() -> None:
    """relu -> max pool -> (+ a) -> relu, as at the start of a residual network; an average of other values needs its ReLU"""
    body = "r = Relu(e) m = {} <kernel_shape=[1,1]> ({}) p = Conv(m, a) f = Add(m, p) z = Relu(f)"

    assert operators(without(net(body.format("MaxPool", "r"), a=SQUARE), "a")) == ["Conv", "Relu", "MaxPool", "Conv"]
    assert operators(without(net(body.format("MaxPool", "e"), a=SQUARE), "a")) == ["Conv", "MaxPool", "Relu", "Conv"]


def test_a_relu_that_reads_the_result_of_a_relu_without_a_dropped_block_is_left_as_it_is() -> None:
    """the file without a block differs from the dense one only where the block was"""
    model = net("r = Relu(e) s = Relu(r) p = Conv(s, a) z = Add(s, p)", a=SQUARE)

    assert operators(without(model, "a")) == ["Conv", "Relu", "Relu", "Conv"]


def test_neighbouring_blocks_leave_together() -> None:
    """the result of one block is the entry of the next: e -> (+ a) -> (+ b) -> (+ c) -> z"""
    body = "p = Conv(e, a) f = Add(e, p) q = Conv(f, b) g = Add(q, f) r = Conv(g, c) z = Add(g, r)"
    model = net(body, a=SQUARE, b=SQUARE, c=SQUARE)

    assert operators(without(model, "a", "b", "c")) == ["Conv", "Conv"]
    assert operators(without(model, "b")) == ["Conv", "Conv", "Add", "Conv", "Add", "Conv"]


def test_a_block_inside_a_block_is_a_block_of_its_own() -> None:
    """e -+-> conv a -> f -+-> conv b -+-> g -> conv c -+-> z
    |            +-----------+                 |
    +------------------------------------------+"""
    model = net("f = Conv(e, a) p = Conv(f, b) g = Add(f, p) q = Conv(g, c) z = Add(e, q)", a=SQUARE, b=SQUARE, c=SQUARE)
    inner, outer = find_blocks(model)[0]

    assert (inner.tensors, inner.inside) == (("b",), ())
    assert (outer.tensors, outer.inside) == (("a", "b", "c"), (inner.name,))
    assert operators(without(model, inner.name, outer.name)) == ["Conv", "Conv"]


def test_layer_scale_belongs_to_the_branch() -> None:
    """e -+-> conv a -> times gamma -+-> z, as in ConvNeXt"""
    (block,), _ = find_blocks(net("p = Conv(e, a) q = Mul(p, gamma) z = Add(q, e)", a=SQUARE, gamma=(4, 1, 1)))

    assert block.tensors == ("a", "gamma")


def test_attention_and_mlp_of_a_transformer_are_two_blocks() -> None:
    """t + softmax(q k) v, then t + linear(gelu(linear(t))), on 5 tokens of 4 values"""
    model = graph(
        """(float[1,5,3] x) => (float[1,5,2] y) {
            t = MatMul(x, stem)
            q = MatMul(t, wq) k = MatMul(t, wk) v = MatMul(t, wv)
            kt = Transpose <perm=[0,2,1]> (k)
            scores = MatMul(q, kt) weights = Softmax <axis=2> (scores)
            mixed = MatMul(weights, v) projected = MatMul(mixed, wo)
            u = Add(t, projected)
            h = MatMul(u, w1) a = Relu(h) m = MatMul(a, w2)
            z = Add(u, m)
            y = MatMul(z, head)
        }""",
        stem=(3, 4),
        head=(4, 2),
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (4, 4)),
        w1=(4, 8),
        w2=(8, 4),
    )
    attention, mlp = find_blocks(model)[0]

    assert (attention.tensors, mlp.tensors) == (("wq", "wk", "wv", "wo"), ("w1", "w2"))


def test_a_projection_shortcut_is_refused_with_its_reason() -> None:
    """e -+-> conv a -+-> z
    +-> conv b -+"""
    assert found(net("p = Conv(e, a) q = Conv(e, b) z = Add(p, q)", a=SQUARE, b=SQUARE)) == ([], {"a#2": reasons.PROJECTION})


def test_a_branch_that_reads_more_than_the_entry_is_refused() -> None:
    """the branch multiplies what is computed from the entry with what is computed from the image"""
    model = net("p = Conv(e, a) c = Conv(x, b) q = Mul(p, c) z = Add(e, q)", a=SQUARE, b=(4, 3, 1, 1))

    assert list(found(model)[1].values()) == [reasons.SEVERAL]


def test_a_branch_whose_inside_is_read_elsewhere_is_refused() -> None:
    """the first layer of the branch is read again behind the block, as in a densely connected network"""
    model = net("p = Conv(e, a) q = Conv(p, b) s = Add(e, q) z = Mul(s, p)", a=SQUARE, b=SQUARE)

    assert list(found(model)[1].values()) == [reasons.READ_OUTSIDE]


def test_weights_that_are_used_twice_keep_their_blocks() -> None:
    """two blocks in a row with one weight"""
    model = net("p = Conv(e, a) s = Add(e, p) q = Conv(s, a) z = Add(s, q)", a=SQUARE)

    assert list(found(model)[1].values()) == [reasons.SHARED, reasons.SHARED]


def test_a_block_at_the_image_or_at_the_output_is_refused() -> None:
    """x + conv(x) is the whole network, or its first part"""
    first = graph("(float[1,3,4,4] x) => (float[1,2,4,4] y) { p = Conv(x, a) z = Add(x, p) y = Conv(z, b) }", a=(3, 3, 1, 1), b=(2, 3, 1, 1))  # fmt: skip
    last = graph("(float[1,3,4,4] x) => (float[1,4,4,4] y) { e = Conv(x, a) p = Conv(e, b) y = Add(e, p) }", a=(4, 3, 1, 1), b=SQUARE)  # fmt: skip

    assert [find_blocks(model)[1][0].reason for model in (first, last)] == [reasons.FIRST, reasons.LAST]


def test_additions_that_are_no_blocks_are_not_mentioned() -> None:
    """a bias, two times the same value, a branch without a layer, and a mean that is subtracted from all pixels"""
    body = "p = Add(e, bias) q = Add(p, p) r = Relu(q) s = Add(q, r) t = GlobalAveragePool(s) z = Sub(s, t)"

    assert found(net(body, bias=(4, 1, 1))) == ([], {})


def test_a_dropped_block_answers_like_a_silenced_one() -> None:
    """outer block with an inner one: every subset, with half of the channels inside"""
    model = net("f = Conv(e, a) p = Conv(f, b) g = Add(f, p) q = Conv(g, c) z = Add(e, q)", a=SQUARE, b=SQUARE, c=SQUARE)
    labelled = label_graph(model)
    labelled = labelled.with_blocks(*find_blocks(model, labelled.space.groups))
    names = [block.name for block in labelled.space.blocks]
    sliceable = prepare(model, labelled)
    for dropped in ([], names[:1], names[1:], names):
        kept = {group.name: (0, 2) for group in labelled.space.groups} | dict.fromkeys(dropped, ())
        sliced, silenced = sliceable.slice(kept), silence(model, labelled, kept)

        assert np.allclose(run_onnx(sliced.SerializeToString(), INPUT), run_onnx(silenced.SerializeToString(), INPUT), atol=1e-5)
        used = {name for node in sliced.graph.node for name in node.input}
        assert {tensor.name for tensor in sliced.graph.initializer} <= used


def test_the_proof_refuses_a_block_whose_entry_has_another_shape() -> None:
    """a block, and an addition of one pixel to all pixels, which is said to have the pixel as its entry"""
    model = net("p = Conv(e, a) f = Add(e, p) t = GlobalAveragePool(f) q = Conv(t, b) z = Add(f, q)", a=SQUARE, b=SQUARE)
    labelled = label_graph(model)
    (right,), _ = find_blocks(model, labelled.space.groups)
    wrong = Block("wrong", model.graph.node[-2].name, 1, ("a", "b"))
    good, refused = prove_blocks(model, labelled.with_blocks([right, wrong]))

    assert ([block.name for block in good], [layer.name for layer in refused]) == ([right.name], ["wrong"])
