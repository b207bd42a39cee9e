"""Additions in all their spellings: what is dropped, and the reason where nothing can be."""

import numpy as np
import pytest
from helpers.block_graphs import INPUT, SQUARE, found, net, operators, silence_of, without
from helpers.onnx_text import graph

from pipeline.core.onnx_outputs import run_onnx
from pipeline.graph import blocks as reasons
from pipeline.graph.blocks import find_blocks


def test_parallel_branches_of_one_entry_are_dropped_each_alone() -> None:
    """(e + conv a) + conv b, as in a transformer whose attention and MLP read the same values"""
    model = net("p = Conv(e, a) q = Conv(e, b) s = Add(e, p) z = Add(s, q)", a=SQUARE, b=SQUARE)

    assert [block.tensors for block in find_blocks(model)[0]] == [("a",), ("b",)]
    assert operators(without(model, "b")) == operators(without(model, "a")) == ["Conv", "Conv", "Add", "Conv"]
    assert operators(without(model, "a", "b")) == ["Conv", "Conv"]
    for names in ("a", "b", "ab"):
        assert np.allclose(run_onnx(without(model, *names).SerializeToString(), INPUT), silence_of(model, *names), atol=1e-5)


def test_a_branch_ends_the_nearest_value_that_is_a_part_of_the_sum() -> None:
    """e + f + conv b of f, where f = e + conv a: the second block is conv b alone, although all of it is computed from e"""
    model = net("p = Conv(e, a) f = Add(e, p) q = Conv(f, b) s = Add(e, f) z = Add(s, q)", a=SQUARE, b=SQUARE)

    assert [block.tensors for block in find_blocks(model)[0]] == [("a",), ("b",)]
    for names in ("a", "b", "ab"):
        assert np.allclose(run_onnx(without(model, *names).SerializeToString(), INPUT), silence_of(model, *names), atol=1e-5)


def test_an_added_constant_does_not_hide_the_entry() -> None:
    """(e + 0) + conv a of e, as Python's sum() spells it"""
    model = net("s = Add(e, zero) p = Conv(e, a) z = Add(s, p)", zero=(1,), a=SQUARE)

    assert operators(without(model, "a")) == ["Conv", "Add", "Conv"]
    assert np.allclose(run_onnx(without(model, "a").SerializeToString(), INPUT), silence_of(model, "a"), atol=1e-5)


def test_a_branch_that_is_subtracted_from_its_entry_is_a_block() -> None:
    """e - conv a"""
    model = net("p = Conv(e, a) z = Sub(e, p)", a=SQUARE)

    assert operators(without(model, "a")) == ["Conv", "Conv"]
    assert np.allclose(run_onnx(without(model, "a").SerializeToString(), INPUT), silence_of(model, "a"), atol=1e-5)


def test_blocks_may_share_a_table_that_is_only_multiplied_or_added() -> None:
    """two blocks, each conv * table, as with the sines of rotary positions; without one of them the other still reads the table"""
    body = "p = Conv(e, a) r = Mul(p, table) f = Add(e, r) q = Conv(f, b) t = Add(q, table) z = Add(f, t)"
    model = net(body, a=SQUARE, b=SQUARE, table=(1, 4, 4, 4))

    assert [block.tensors for block in find_blocks(model)[0]] == [("a",), ("b",)]
    assert operators(without(model, "a")) == ["Conv", "Conv", "Add", "Add", "Conv"]
    assert np.allclose(run_onnx(without(model, "a").SerializeToString(), INPUT), silence_of(model, "a"), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "listed"),
    [
        ("p = Conv(e, a) q = Conv(e, b) z = Sum(e, p, q)", [reasons.NOT_TWO, reasons.NOT_TWO]),
        ("p = Conv(e, a) q = Conv(e, b) r = Conv(p, b2) z = Sum(r, p, q)", [reasons.NOT_TWO]),
        ("p = Conv(e, a) q = Conv(e, b) r = Conv(e, b2) z = Sum(r, p, q)", [reasons.PROJECTION]),
        (
            "p = Conv(e, a) i = Unsqueeze(e, zero) j = Unsqueeze(p, zero) k = Concat <axis=0> (i, j) z = ReduceSum <keepdims=0> (k, zero)",
            [reasons.NOT_TWO],
        ),
        ("p = Conv(e, a) q = Relu(e) z = Add(q, p)", [reasons.SHORTCUT]),
        ("p = Conv(e, a) z = Sub(p, e)", [reasons.SHORTCUT]),
        ("m = GlobalAveragePool(e) p = Conv(m, a) z = Add(e, p)", [reasons.BROADCAST]),
        ("p = Conv(e, a) q = Relu(e) z = Sum(e, q, q)", []),
    ],
    ids=[
        "sum of three",
        "sum that holds a block",
        "sum of three layers",
        "stack",
        "changed",
        "subtracted",
        "broadcast",
        "no layer",
    ],
)
def test_a_result_of_layers_that_cannot_leave_has_its_reason(body: str, listed: list[str]) -> None:
    """b2 is a second layer with the shape of b"""
    model = net(body, a=SQUARE, b=SQUARE, b2=SQUARE, zero=[0])
    blocks, refused = found(model)

    assert (blocks, list(refused.values())) == ([], listed)


def test_an_addition_inside_a_product_of_matrices_has_its_reason() -> None:
    """e + relu(e A) B, where the second product and the addition are one Gemm"""
    text = "(float[1,3] x) => (float[1,2] y) { e = MatMul(x, stem) p = MatMul(e, a) q = Relu(p) z = Gemm(q, b, e) y = MatMul(z, head) }"
    model = graph(text, stem=(3, 4), a=(4, 8), b=(8, 4), head=(4, 2))

    assert found(model) == ([], {"a#2": reasons.NOT_TWO})
