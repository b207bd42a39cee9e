"""The table of docs/benchmarks/few.md follows from its raw lines."""

from pathlib import Path

from few import finished, table

ROOT = Path(__file__).parents[2]


def test_every_line_of_the_table_follows_from_the_raw_lines() -> None:
    page = (ROOT / "docs" / "benchmarks" / "few.md").read_text().splitlines()
    made = table(finished(ROOT / "benchmarks" / "results" / "few.jsonl"))
    first = page.index(made[0])

    assert len(made) > 2
    assert page[first : first + len(made) + 1] == [*made, ""]
