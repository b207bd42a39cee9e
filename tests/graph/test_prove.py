"""The proof: it finds the wrong groups among right ones, whatever found them and whatever the trained weights are."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from helpers.onnx_text import graph
from onnx import numpy_helper

from pipeline.core.plan import Group, Slot
from pipeline.graph.labels.space import GraphSpace, label_graph
from pipeline.graph.prove import Proven, prove_groups
from pipeline.graph.trial import start_trial

Change = Callable[[Slot], Slot | None]
"""What becomes of a slot; None removes it."""


def chain(layers: int) -> onnx.ModelProto:
    """x -> conv w0 -> leaky relu -> conv w1 -> ... -> conv: all layers but the last have 4 channels that can be removed"""
    lines = [f"a{i} = Conv({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = LeakyRelu <alpha=0.3> (a{i})" for i in range(layers)]
    shapes: dict[str, tuple[int, ...] | list[int]] = {f"w{i}": (4, 3 if i == 0 else 4, 1, 1) for i in range(layers)}
    lines.append(f"y = Conv(r{layers - 1}, out)")
    return graph(f"(float[1,3,4,4] x) => (float[1,2,4,4] y) {{ {' '.join(lines)} }}", 18, **shapes, out=(2, 4, 1, 1))


def gate() -> onnx.ModelProto:
    """x -> conv w0 -> split into halves, which are multiplied -> conv out: channel k belongs to channel k + 4"""
    return graph(
        """(float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0)
            left, right = Split <axis=1, num_outputs=2> (a)
            b = Mul(left, right)
            y = Conv(b, out)
        }""",
        w0=(8, 3, 1, 1),
        out=(2, 4, 1, 1),
    )


def changed(labelled: GraphSpace, name: str, change: Change) -> GraphSpace:
    """`labelled` as a wrong rule would have found it: `change` is applied to every slot of one group."""

    def apply(group: Group) -> Group:
        slots = tuple(made for slot in group.slots if (made := change(slot)) is not None)
        return replace(group, slots=slots) if group.name == name else group

    groups = tuple(apply(group) for group in labelled.numbered)
    return replace(labelled, space=replace(labelled.space, groups=groups), numbered=groups)


def reversed_reader(weight: str) -> Change:
    """The layer that reads channel k is said to read the channel counted from the other end."""
    return lambda slot: replace(slot, channels=slot.channels[::-1]) if (slot.tensor, slot.axis) == (weight, 1) else slot


def names(proven: Proven) -> tuple[list[str], list[str]]:
    return [group.name for group in proven.groups], [layer.name for layer in proven.refused]


def test_right_groups_pass_in_double_precision_with_no_more_than_rounding() -> None:
    model = chain(3)
    proven = prove_groups(model, label_graph(model))

    assert names(proven) == (["w0", "w1", "w2"], [])
    assert (proven.precision, proven.worst < 1e-12) == ("double", True)


def test_a_wrong_group_fails_and_costs_the_right_ones_nothing() -> None:
    model = chain(4)
    proven = prove_groups(model, changed(label_graph(model), "w1", reversed_reader("w2")))

    assert names(proven) == (["w0", "w2", "w3"], ["w1"])
    assert proven.refused[0].reason.startswith("removing its channels changes more than they carry")


@pytest.mark.parametrize("activation", ["Relu(a{0})", "Clip(a{0}, low, high)", "HardSwish(a{0})"])
def test_a_network_whose_activations_would_all_be_zero_hides_no_wrong_group(activation: str) -> None:
    """16 layers of 4 channels without a bias: with random weights, hardly any value is above zero in the last ones"""
    lines = [
        f"a{i} = Conv({'x' if i == 0 else f'r{i - 1}'}, w{i}) r{i} = {activation.format(i)} y{i} = Neg(r{i})" for i in range(16)
    ]
    shapes: dict[str, tuple[int, ...] | list[int]] = {f"w{i}": (4, 3 if i == 0 else 4, 1, 1) for i in range(16)}
    lines.append("y = Conv(y15, out)")
    text = "(float[1,3,4,4] x) => (float[1,2,4,4] y) { low = Constant <value_float=0.0> () high = Constant <value_float=6.0> () "
    model = graph(f"{text}{' '.join(lines)} }}", 18, **shapes, out=(2, 4, 1, 1))
    proven = prove_groups(model, changed(label_graph(model), "w0", reversed_reader("w1")))

    assert names(proven)[1] == ["w0"]


def test_a_network_that_needs_positive_values_is_tried_with_its_own_activations() -> None:
    """generalised mean: values are limited from below, cubed, averaged, and the third root is taken"""
    model = graph(
        """(float[1,3,4,4] x) => (float[1,2,1,1] y) {
            low = Constant <value_float=0.000001> () three = Constant <value_float=3.0> () third = Constant <value_float=0.33> ()
            a = Conv(x, w0)
            b = Clip(a, low)
            c = Pow(b, three)
            d = GlobalAveragePool(c)
            e = Pow(d, third)
            y = Conv(e, out)
        }""",
        w0=(4, 3, 1, 1),
        out=(2, 4, 1, 1),
    )
    proven = prove_groups(model, label_graph(model))
    wrong = prove_groups(model, changed(label_graph(model), "w0", reversed_reader("out")))

    assert (names(proven), proven.precision) == ((["w0"], []), "double")
    assert names(wrong) == ([], ["w0"])


def unsteady() -> onnx.ModelProto:
    """x -> conv(16) -> conv(16) -> a -> relu(-a * a) -> sine of a large multiple, added to a -> conv

    The ReLU of a negative number is zero. With a slope it is not, and the sine makes noise of its rounding.
    """
    return graph(
        """(float[1,3,8,8] x) => (float[1,2,8,8] y) {
            large = Constant <value_float=1e12> ()
            c = Conv(x, w0) a = Conv(c, w1)
            squares = Mul(a, a) negative = Neg(squares) zero = Relu(negative)
            much = Mul(zero, large) noise = Sin(much) sum = Add(a, noise)
            y = Conv(sum, out)
        }""",
        w0=(16, 3, 1, 1),
        w1=(16, 16, 1, 1),
        out=(2, 16, 1, 1),
    )


def test_a_network_that_amplifies_rounding_when_activations_have_slopes_is_tried_without_them() -> None:
    model = unsteady()
    labelled = label_graph(model)
    proven = prove_groups(model, labelled)
    wrong = prove_groups(model, changed(labelled, "w0", reversed_reader("w1")))

    assert start_trial(model, labelled, {}).is_unsteady({})
    assert (names(proven), proven.precision, proven.worst < 1e-12) == ((["w0", "w1"], []), "double", True)
    assert names(wrong) == (["w1"], ["w0"])


def test_an_ordinary_network_amplifies_no_rounding() -> None:
    assert not start_trial(chain(16), label_graph(chain(16)), {}).is_unsteady({})


def test_two_wrong_groups_are_both_found() -> None:
    model = chain(5)
    labelled = changed(label_graph(model), "w0", reversed_reader("w1"))
    proven = prove_groups(model, changed(labelled, "w3", reversed_reader("w4")))

    assert names(proven) == (["w1", "w2", "w4"], ["w0", "w3"])


@pytest.mark.parametrize(("groups", "wrong", "trials"), [(16, "w0", 9), (16, "w9", 9), (42, "w41", 13)])
def test_one_wrong_group_of_sixteen_is_found_in_nine_trials_and_one_of_forty_two_in_thirteen(
    groups: int, wrong: str, trials: int
) -> None:
    """all together, and two halves at each of four or six levels"""
    model = chain(groups)
    number = int(wrong[1:])
    reader = f"w{number + 1}" if number < groups - 1 else "out"
    reports: list[int] = []
    proven = prove_groups(
        model, changed(label_graph(model), wrong, reversed_reader(reader)), lambda done, total, text: reports.append(done)
    )

    assert names(proven)[1] == [wrong]
    # one report before each trial, one in its middle unless it fails before, and one at the end; half of the trials succeed
    succeeding = trials // 2
    assert trials - 1 + succeeding <= len(reports) <= 2 * trials + 1


def test_a_group_without_one_of_its_readers_fails() -> None:
    """the layer behind the group would still expect the removed channels"""
    model = chain(2)
    forgotten = changed(label_graph(model), "w0", lambda slot: None if slot.tensor == "w1" else slot)
    proven = prove_groups(model, forgotten)

    assert names(proven) == (["w1"], ["w0"])
    assert proven.refused[0].reason == "the network does not run without it (the sizes do not fit at 'Conv_2' (Conv))"


def test_a_forgotten_coupling_that_keeps_all_shapes_fails() -> None:
    """channel k is said to belong to channel 7 - k, so that both halves keep equally many, but not the same ones"""
    model = gate()
    labelled = label_graph(model)
    name = labelled.space.groups[0].name
    pairs = (0, 1, 2, 3, 3, 2, 1, 0)

    assert names(prove_groups(model, labelled)) == ([name], [])
    wrong = changed(labelled, name, lambda slot: replace(slot, channels=pairs) if slot.tensor == "w0" else slot)
    assert names(prove_groups(model, wrong)) == ([], [name])


def test_silent_trained_weights_do_not_hide_a_wrong_coupling() -> None:
    """no channel of w1 reaches the output of the trained network, so any removal would leave its answer as it is"""
    model = chain(3)
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((4, 4, 1, 1), np.float32), tensor.name))
    proven = prove_groups(model, changed(label_graph(model), "w1", reversed_reader("w2")))

    assert names(proven) == (["w0", "w2"], ["w1"])


def quantised() -> onnx.ModelProto:
    """x -> conv w0 -> rounded to 8 bits and back -> conv out; torch has no counterpart of the rounding"""
    return graph(
        """(float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0)
            scale = Constant <value_float=0.05> ()
            q = QuantizeLinear(a, scale)
            b = DequantizeLinear(q, scale)
            y = Conv(b, out)
        }""",
        w0=(4, 3, 1, 1),
        out=(2, 4, 1, 1),
    )


def test_a_network_that_does_not_run_in_double_precision_is_tried_in_single() -> None:
    model = quantised()
    right = prove_groups(model, label_graph(model))
    wrong = prove_groups(model, changed(label_graph(model), "w0", reversed_reader("out")))

    assert (right.precision, *names(right)) == ("single", ["w0"], [])
    assert (wrong.precision, *names(wrong)) == ("single", [], ["w0"])


def test_progress_is_reported_before_each_trial_in_its_middle_and_at_the_end() -> None:
    model = chain(2)
    reports: list[tuple[int, int]] = []
    prove_groups(
        model,
        changed(label_graph(model), "w0", reversed_reader("w1")),
        lambda done, total, text: reports.append((done, total)),
    )

    assert reports == [(0, 4), (0, 4), (2, 4), (3, 4), (4, 4)]  # both, w0 alone, w1 alone and the middle of it, the end


def test_a_network_without_a_group_has_nothing_to_prove() -> None:
    model = graph("(float[1,3,4,4] x) => (float[1,2,4,4] y) { y = Conv(x, w) }", w=(2, 3, 1, 1))

    assert names(prove_groups(model, label_graph(model))) == ([], [])
