"""Plans: one form for each network, also with dropped blocks, and older plans are still read."""

from pydantic import TypeAdapter

from pipeline.core.plan import Block, ChannelPlan, Group, PruneSpace, Slot

PLAN = TypeAdapter(ChannelPlan)


def space() -> PruneSpace:
    """stem -> outer (a -> inner (b) -> c) -> other (d): inner is a part of outer"""
    groups = tuple(
        Group(name, 4, (Slot(f"{name}.weight", 0, (0, 1, 2, 3), (0, 1, 2, 3)),)) for name in ("stem", "a", "b", "c", "d")
    )
    blocks = (
        Block("inner", "add1", 0, ("b.weight",), ("b",)),
        Block("outer", "add2", 0, ("a.weight", "b.weight", "c.weight"), ("a", "b", "c"), ("inner",)),
        Block("other", "add3", 1, ("d.weight",), ("d",)),
    )
    return PruneSpace(groups, (), blocks)


def test_what_is_inside_a_dropped_block_is_left_out_of_the_plan() -> None:
    widths = {"stem": 3, "a": 1, "b": 2, "c": 3, "d": 4}

    assert space().plan(widths, ["inner"]) == ChannelPlan((("stem", 3), ("a", 1), ("c", 3), ("d", 4)), ("inner",))
    assert space().plan(widths, ["inner", "outer"]) == ChannelPlan((("stem", 3), ("d", 4)), ("outer",))
    assert space().plan(widths | {"a": 4, "b": 4}, ["outer"]) == space().plan(widths, ["outer", "inner"])


def test_a_plan_with_dropped_blocks_survives_the_journal() -> None:
    plan = space().plan(dict.fromkeys(("stem", "a", "b", "c", "d"), 2), ["other"])

    assert PLAN.validate_json(PLAN.dump_json(plan)) == plan


def test_a_plan_of_an_older_version_has_all_blocks() -> None:
    assert PLAN.validate_json('{"widths": [["stem", 4]]}') == ChannelPlan((("stem", 4),))


def test_a_group_without_an_entry_keeps_all_its_channels() -> None:
    assert space().remaining("a.weight", 0, 4, {"stem": (0,), "outer": ()}).tolist() == [0, 1, 2, 3]
