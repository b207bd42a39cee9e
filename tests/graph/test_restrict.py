"""Restrictions: the user says which layers keep their channels, and how many are left in the others."""

import onnx
import pytest
from helpers.nets import EXAMPLE, ZOO, build, exported
from helpers.places import Place, message
from helpers.profiles import command

from pipeline.core.plan import Group, PruneSpace
from pipeline.core.restriction import Restriction, matches
from pipeline.errors import ModelError, NothingToPrune
from pipeline.graph.analyse import analyse
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.settings import PruningSettings
from pipeline.stages.job import Job
from pipeline.stages.search_space import search_space


def space(net: str, **patterns: object) -> PruneSpace:
    settings = PruningSettings(restriction=Restriction(**patterns))  # type: ignore[arg-type]
    return analyse(build(ZOO[net]), EXAMPLE, onnx.load_model_from_string(exported(net)), settings=settings).space


def names(found: PruneSpace) -> list[str]:
    return [group.name for group in found.groups]


@pytest.mark.parametrize(
    ("net", "freeze", "expected"),
    [
        ("chain", ("a.*",), ["b.0"]),
        ("chain", ("a",), ["b.0"]),  # a module stands for all layers in it
        ("chain", ("b.1",), ["a.0"]),  # a BatchNorm keeps its channels if its convolution does
        ("residual", ("outer.0",), ["inner.0"]),  # it is added to the stem's output, so the stem keeps its channels too
        ("residual", ("inner.*", "head"), ["stem.0"]),  # the head is never pruned, and may be named
        ("depthwise", ("filter",), ["project"]),
    ],
)
def test_a_frozen_layer_keeps_its_channels_and_so_does_its_group(net: str, freeze: tuple[str, ...], expected: list[str]) -> None:
    found = space(net, freeze=freeze)

    assert names(found) == expected
    assert any(f"--freeze '{freeze[0]}' matches" in layer.reason for layer in found.frozen)


@pytest.mark.parametrize(
    ("net", "only", "expected"),
    [
        ("chain", ("b.*",), ["b.0"]),
        ("concat", ("left", "joint"), ["left.0", "joint.0"]),
        ("residual", ("*.0", "*.1"), ["stem.0", "inner.0"]),
        ("residual", ("inner", "outer"), ["inner.0"]),  # the outer convolution is tied to the stem, which is not named
    ],
)
def test_with_only_all_other_layers_keep_their_channels(net: str, only: tuple[str, ...], expected: list[str]) -> None:
    assert names(space(net, only=only)) == expected


def test_a_plan_keeps_at_least_the_smallest_width_of_each_group() -> None:
    restriction = Restriction(min_width=(("a", 0.5), ("*", 0.3), ("b", 1.0)))
    model = onnx.load_model_from_string(exported("chain"))
    network = analyse(build(ZOO["chain"]), EXAMPLE, model, settings=PruningSettings(restriction=restriction))
    builder = PrunedModelBuilder(
        network, {g.name: tuple(range(g.channels)) for g in network.space.groups}, EXAMPLE, 18, 9, "", ""
    )
    widths = {choice.name: choice.widths for choice in search_space(builder, 2).choices}

    assert widths == {"a.0": (4, 6, 8), "b.0": (12,)}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"freeze": ("aa.*",)}, "--freeze 'aa.*': matches no layer of the network; the nearest names are a.1, a.0"),
        ({"only": ("b.0", "layer9")}, "--only 'layer9': matches no layer of the network; the nearest names are "),
        ({"min_width": (("hed", 0.5),)}, "--min-width 'hed': matches no layer of the network; the nearest names are head, "),
    ],
    ids=["freeze", "only", "min-width"],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names(patterns: dict[str, object], expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        space("chain", **patterns)

    assert str(caught.value).startswith(expected)


def test_a_restriction_that_leaves_nothing_to_prune_is_an_error_that_names_a_pattern() -> None:
    with pytest.raises(NothingToPrune, match=r"--freeze and --only leave no layer to prune \(a.0: --freeze 'a' matches a.0\)"):
        space("chain", freeze=("a",), only=("head",))


@pytest.mark.parametrize(
    ("pattern", "layer", "expected"),
    [
        ("layer1.*", "layer1.0.conv1", True),
        ("layer1", "layer1.0.conv1", True),
        ("layer1", "layer10.0.conv1", False),
        ("*.conv?", "layer1.0.conv1", True),
        ("conv1", "layer1.0.conv1", False),
        ("layer[12].0", "layer2.0.conv1", True),
        ("LAYER1", "layer1.0.conv1", False),
    ],
)
def test_a_pattern_matches_whole_names_of_layers_and_modules(pattern: str, layer: str, expected: bool) -> None:
    assert matches(pattern, layer) == expected


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_out_of_range_is_refused_before_anything_is_loaded(share: float) -> None:
    with pytest.raises(ModelError, match="give a share above 0 and at most 1"):
        Job(target="raspberrypi", min_width={"conv1": share})


def test_the_smallest_number_of_channels_is_rounded_up() -> None:
    shares = Restriction(min_width=(("a", 0.1), ("b", 1 / 3), ("c", 0.2)))

    assert [shares.fewest([name], 30) for name in "abcd"] == [3, 10, 6, 1]


def test_a_job_without_restriction_has_the_identity_that_older_runs_have() -> None:
    assert Restriction().facts() == {}
    assert Restriction(freeze=("a",), min_width=(("b", 0.5),)).facts() == {"freeze": ["a"], "min_width": {"b": 0.5}}
    assert Group("a", 8, ()) == Group("a", 8, (), 1, 1)


@pytest.mark.parametrize("text", ["conv1", "conv1=", "=0.5", "conv1=0", "conv1=120%", "conv1=half", "conv1=nan"])
def test_a_malformed_smallest_width_is_a_wrong_command_line(text: str) -> None:
    result = command("--target", "raspberrypi", "--min-width", text)

    assert result.exit_code == 2
    assert "give GROUP=SHARE with a share above 0 and at most 1" in result.stderr


def test_the_command_line_hands_the_patterns_on(place: Place) -> None:
    assert message((*place.net(), "--freeze", "conv9"), ModelError).startswith(
        "--freeze 'conv9': matches no layer of the network; "
    )
