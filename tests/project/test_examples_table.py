"""The tables on the pages of the examples follow from the raw lines."""

from pathlib import Path

from examples import lines_of, table

ROOT = Path(__file__).parents[2]


def test_each_row_follows_from_the_raw_lines() -> None:
    made = table(lines_of(ROOT / "benchmarks" / "results" / "examples.jsonl"))
    pages = [(ROOT / "docs" / "examples" / f"{name}.md").read_text() for name in ("detector", "segmenter")]
    shown = [line for page in pages for line in page.splitlines() if line.startswith(("| detector |", "| segmenter |"))]

    assert len(made) > 2
    assert shown == made[2:]
