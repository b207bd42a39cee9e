"""The table of docs/benchmarks/few.md follows from its raw lines."""

from pathlib import Path

from few import finished, table

ROOT = Path(__file__).parents[2]


def test_every_line_of_the_table_follows_from_the_raw_lines() -> None:
    page = (ROOT / "docs" / "benchmarks" / "few.md").read_text().splitlines()
    documented = [line for line in page if line.startswith("|")]

    assert documented == table(finished(ROOT / "benchmarks" / "results" / "few.jsonl"))
    assert len(documented) > 2
