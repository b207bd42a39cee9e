"""The cost of a score: the table of docs/benchmarks/score-cost.md follows from its raw lines."""

from pathlib import Path

from score_cost import table_of

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "score-cost.md"


def test_every_line_of_the_table_follows_from_the_raw_lines() -> None:
    page, made = PAGE.read_text().splitlines(), table_of()
    first = page.index(made[0])

    assert len(made) > 2
    assert page[first : first + len(made) + 1] == [*made, ""]
