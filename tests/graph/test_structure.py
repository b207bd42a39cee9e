"""Structure: what a runtime sees of a graph, and nothing else."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from pipeline.graph.structure import load_graph, structure

HEADER = '<ir_version: 9, opset_import: ["" : 18]>'


def graph(body: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """ONNX text, with weights of the given shapes, all ones."""
    model = onnx.parser.parse_model(f"{HEADER} {body}")
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, dtype=np.float32), name))
    return model


def with_integers(body: str, name: str, *values: int) -> onnx.ModelProto:
    """ONNX text, with a vector of integers."""
    model = graph(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return model


BASE = """agraph (float[1,4] x) => (float[1,2] z) {
    y = MatMul(x, w)
    z = Relu(y)
}"""


def test_names_and_values_do_not_matter() -> None:
    other = BASE.replace("y", "hidden").replace("w", "weight")
    renamed = graph(other, weight=(4, 2))
    renamed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 2), 7, dtype=np.float32), "weight"))

    assert structure(graph(BASE, w=(4, 2))) == structure(renamed)


def test_the_order_of_independent_nodes_does_not_matter() -> None:
    """a = relu(x), b = sigmoid(x): either may come first"""
    first = "agraph (float[4] x) => (float[4] z) { a = Relu(x)  b = Sigmoid(x)  z = Add(a, b) }"
    second = "agraph (float[4] x) => (float[4] z) { b = Sigmoid(x)  a = Relu(x)  z = Add(a, b) }"

    assert structure(graph(first)) == structure(graph(second))


def test_the_way_a_reshape_spells_its_target_does_not_matter() -> None:
    """[1, 8] or [0, -1] of a (1, 2, 4) tensor"""
    text = "agraph (float[1,2,4] x) => (float[1,8] z) { z = Reshape(x, s) }"

    assert structure(with_integers(text, "s", 1, 8)) == structure(with_integers(text, "s", 0, -1))


def test_the_axes_of_a_mean_do_matter() -> None:
    """over the rows or over the columns of a square"""
    text = "agraph (float[4,4] x) => (float[4] z) { z = ReduceMean <keepdims = 0> (x, axes) }"

    assert structure(with_integers(text, "axes", 0)) != structure(with_integers(text, "axes", 1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("z = Sub(a, b)", "z = Sub(b, a)"),
        ("z = Sub(a, b)", "z = Sub(a, a)"),
        ("c, d = Split <num_outputs = 2> (a) z = Concat <axis = 0> (c, d)", "c, d = Split <num_outputs = 2> (a) z = Concat <axis = 0> (d, c)"),
        ("c = Relu(a) z = Relu(c)", "z = Relu(a)"),
    ],
    ids=["operands", "a branch", "outputs of a split", "depth"],
)  # fmt: skip
def test_what_is_connected_to_what_does_matter(one: str, other: str) -> None:
    """a = relu(x), b = sigmoid(x), and then"""
    text = "agraph (float[4] x) => (float[4] z) { a = Relu(x)  b = Sigmoid(x)  %s }"

    assert structure(graph(text % one)) != structure(graph(text % other))


def test_the_type_of_a_weight_does_matter() -> None:
    double = graph(BASE, w=(4, 2))
    double.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 2)), "w"))

    assert structure(graph(BASE, w=(4, 2))) != structure(double)


def test_looking_leaves_the_graph_as_it_was() -> None:
    model = graph(BASE, w=(4, 2))
    before = model.SerializeToString()
    structure(model)

    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    "other",
    [
        graph(BASE.replace("[1,2]", "[1,3]"), w=(4, 3)),  # a width
        graph(BASE.replace("Relu", "Sigmoid"), w=(4, 2)),  # an op
        graph(BASE.replace("[1,4]", "[2,4]").replace("[1,2]", "[2,2]"), w=(4, 2)),  # the batch
        graph(BASE.replace("Relu(y)", "LeakyRelu <alpha = 0.5> (y)"), w=(4, 2)),
    ],
    ids=["width", "op", "batch", "op with an attribute"],
)
def test_what_a_runtime_sees_does_matter(other: onnx.ModelProto) -> None:
    assert structure(graph(BASE, w=(4, 2))) != structure(other)


def test_an_attribute_matters() -> None:
    half, third = (graph(BASE.replace("Relu(y)", f"LeakyRelu <alpha = {alpha}> (y)"), w=(4, 2)) for alpha in (0.5, 0.3))

    assert structure(half) != structure(third)


def test_weights_in_other_files_are_refused() -> None:
    model = graph(BASE, w=(4, 2))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")

    with pytest.raises(ValueError, match="keeps weights in other files"):
        load_graph(model.SerializeToString())


def test_external_data_inside_a_branch_is_refused_too() -> None:
    """a constant in the body of an If"""
    model = onnx.parser.parse_model(
        HEADER
        + """agraph (bool c, float[2] x) => (float[2] z) {
            z = If (c) <then_branch = t () => (float[2] a) { a = Identity(x) }, else_branch = e () => (float[2] b) { b = Identity(x) }>
        }"""
    )
    branch = model.graph.node[0].attribute[0].g
    tensor = branch.initializer.add(name="hidden", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="elsewhere.bin")

    with pytest.raises(ValueError, match="keeps weights in other files"):
        load_graph(model.SerializeToString())


def test_external_data_in_a_constant_of_a_node_is_refused_too() -> None:
    model = onnx.parser.parse_model(
        HEADER + "agraph (float[2] x) => (float[2] z) { c = Constant <value = float[2] {1.0, 2.0}> ()  z = Add(x, c) }"
    )
    tensor = model.graph.node[0].attribute[0].t
    tensor.data_location = onnx.TensorProto.EXTERNAL

    with pytest.raises(ValueError, match="keeps weights in other files"):
        load_graph(model.SerializeToString())


def test_external_data_in_a_sparse_weight_is_refused_too() -> None:
    model = graph(BASE, w=(4, 2))
    sparse = model.graph.node.add(op_type="Constant", output=["unused"]).attribute.add(name="sparse_value", type=11).sparse_tensor
    sparse.values.data_location = onnx.TensorProto.EXTERNAL

    with pytest.raises(ValueError, match="keeps weights in other files"):
        load_graph(model.SerializeToString())


def test_external_data_in_a_function_is_refused_too() -> None:
    """a graph may bring ops of its own, made of other ops"""
    model = graph(BASE, w=(4, 2))
    function = model.functions.add(name="bias", domain="own", output=["c"])
    function.node.add(op_type="Constant", output=["c"]).attribute.add(
        name="value", type=4
    ).t.data_location = onnx.TensorProto.EXTERNAL

    with pytest.raises(ValueError, match="keeps weights in other files"):
        load_graph(model.SerializeToString())


def test_what_is_loaded_is_what_was_written() -> None:
    model = graph(BASE, w=(4, 2))

    assert load_graph(model.SerializeToString()) == model
