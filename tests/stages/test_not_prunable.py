"""The lines before the search: one for each kind of reason, not for each layer."""

from pipeline.core.plan import NotPrunable, PruneSpace
from pipeline.stages.not_prunable import not_prunable


def lines(*layers: tuple[str, str]) -> list[str]:
    return list(not_prunable(PruneSpace((), tuple(NotPrunable(name, reason) for name, reason in layers))))


def test_the_last_layer_alone_is_not_worth_a_line() -> None:
    assert lines(("head", "its channels are the network's output")) == []


def test_layers_with_the_same_reason_share_a_line() -> None:
    reason = "it has a single channel to give"

    assert lines(*((name, reason) for name in "abcde")) == [f"not prunable: a, b, c and 2 more: {reason}"]


def test_reasons_that_differ_in_modules_and_numbers_share_a_line_that_says_so() -> None:
    found = lines(
        ("a", "Conv in 'blocks.0.conv' slides over its channels"),
        ("b", "Conv in 'blocks.1.conv' slides over its channels"),
        ("c", "its 8 outputs can only leave together"),
        ("d", "its 12 outputs can only leave together"),
    )

    assert found == [
        "not prunable: a, b: Conv in 'blocks.0.conv' slides over its channels; the others for similar reasons",
        "not prunable: c, d: its 8 outputs can only leave together; the others for similar reasons",
    ]


def test_reasons_of_the_user_stay_apart() -> None:
    found = lines(("layer1", "--freeze 'layer1' matches layer1"), ("layer2", "--freeze 'layer2' matches layer2"))

    assert len(found) == 2
