"""The depth benchmark: its tables follow from its raw lines, and missing cells come in a fixed order."""

from pathlib import Path

import numpy as np
import pytest
from block_priors import RESULTS as PRIORS
from block_priors import lines_of, table_of
from depth_cells import RESULTS, ROWS, Cell, Settings, cells, finished, keep, packed, unpacked
from depth_table import tables, with_tables

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "depth.md"


def facts(hits: list[bool], **changes: object) -> dict[str, object]:
    known = {"test": len(hits), "agreement": 100 * np.mean(hits), "agreements": packed(np.asarray(hits)), "hits": packed(np.asarray(hits))}  # fmt: skip
    known |= {"accuracy": 90.0, "before": 50.0, "latency": [0.5, 0.49, 0.51], "macs": 0.4, "dropped": ["a"], "blocks": 3, "wall_s": 60}  # fmt: skip
    return {**known, **changes}


def test_the_tables_of_the_page_are_made_of_the_raw_lines() -> None:
    page = PAGE.read_text()

    assert page == with_tables(page, finished(RESULTS, Settings()))


def test_the_table_of_orders_is_made_of_the_raw_lines() -> None:
    page = (PAGE.parents[1] / "decisions" / "0034-which-blocks-leave-first.md").read_text().splitlines()
    made = table_of(lines_of(PRIORS)).splitlines()

    assert len(made) > 4
    assert [line for line in made if line not in page] == []


def test_the_cells_that_tell_most_come_first() -> None:
    order = list(cells(seeds=2))

    assert order[:3] == [Cell("resnet56", 50, row, 0) for row in ROWS]
    assert [(cell.network, cell.budget) for cell in order].index(("resnet20", 50)) == 2 * len(ROWS)
    assert all(cell.budget == 50 for cell in order[: len(order) // 2])


def test_a_cell_is_finished_for_its_own_settings_only(tmp_path: Path) -> None:
    path, cell = tmp_path / "results" / "lines.jsonl", Cell("resnet56", 50, "both", 0)
    keep(path, cell, Settings(), facts([True, False]))
    keep(path, cell, Settings(), facts([True, True]))

    assert finished(path, Settings())[cell]["agreement"] == 100.0
    assert finished(path, Settings(trials=60)) == {}


@pytest.mark.parametrize("count", [1, 8, 13])
def test_hits_are_read_as_they_were_written(count: int) -> None:
    hits = np.random.default_rng(count).random(count) < 0.5

    np.testing.assert_array_equal(unpacked({"test": count, "hits": packed(hits)}, "hits"), hits)


def test_two_rows_are_compared_on_the_same_pictures() -> None:
    """Depth and width is right on 80 of 100 pictures, and width alone on 60 of these 80."""
    both, width = [number < 80 for number in range(100)], [number < 60 for number in range(100)]
    text = tables({Cell("resnet56", 50, "both", 0): facts(both), Cell("resnet56", 50, "width", 0): facts(width)})

    assert "in 1 of 1 pairs of cells, by +20.0 points on average" in text
    assert "| resnet56 | 50 % | width alone | 1 | +20.0 points of accuracy | +20.0 [" in text
    assert "| resnet56 | 50 % | depth and width | 1 | 80.0 % | 90.0 % | 50.0 % | 50.0 % | 40.0 % | 0.80 | 1 of 3 | 1 |" in text
