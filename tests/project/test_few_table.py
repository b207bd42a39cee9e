"""Few pictures: the table of docs/benchmarks/few.md follows from its raw lines, and the cells and pictures are as the page says."""

from pathlib import Path

import numpy as np
import pytest
from few import in_order
from few_bench import drawn
from few_cells import NETWORKS, RESULTS, ROWS, Amount, Cell, Facts, cells_of, finished, keep, packed, unpacked
from few_plans import plans_in
from few_table import table_of

ROOT = Path(__file__).parents[2]
CELL = Cell("resnet20", 200, False, 70, 1.0, 0, "auto")


def facts(hits: list[bool]) -> Facts:
    each = np.asarray(hits)
    agreement = 100 * float(each.mean())
    return {
        "agreement": agreement,
        "macs": 0.5,
        "core_minutes_taken": 1.0,
        "pictures_of": [170, 30, len(each)],
        "hits": packed(each),
    }


def test_every_line_of_the_table_follows_from_the_raw_lines() -> None:
    page = (ROOT / "docs" / "benchmarks" / "few.md").read_text().splitlines()
    made = table_of(RESULTS)
    first = page.index(made[0])

    assert len(made) > 2
    assert page[first : first + len(made) + 1] == [*made, ""]


def test_a_kept_cell_is_finished_and_no_other_one(tmp_path: Path) -> None:
    keep(tmp_path, CELL, facts([True, False]))

    assert finished(tmp_path, "resnet20") == {CELL: facts([True, False])}
    assert finished(tmp_path, "resnet56") == {}


def test_the_difference_of_two_rows_uses_the_seeds_that_both_have(tmp_path: Path) -> None:
    few, many = [True] * 20 + [False] * 20, [True] * 30 + [False] * 10
    for seed, row, hits in ((0, "auto", many), (1, "auto", many), (0, "statistics", few), (0, "mir", many)):
        keep(tmp_path, Cell("resnet20", 200, False, 70, 1.0, seed, row), facts(hits))
    cells = [cell.strip() for cell in table_of(tmp_path)[2].split("|")[1:-1]]

    assert cells[:5] == ["resnet20", "200", "70 %", "50 %", "2"]
    assert cells[5:13] == ["", "50.0 % (1)", "", "", "", "", "75.0 % (1)", "75.0 %"]
    assert cells[14].startswith("+25.0 [+")
    assert cells[15].startswith("mir: +0.0 [-")


@pytest.mark.parametrize("count", [1, 7, 8, 500, 2001])
def test_hits_are_packed_without_loss(count: int) -> None:
    hits = np.random.default_rng(count).random(count) < 0.5

    assert (unpacked(packed(hits), count) == hits).all()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_each_cell_runs_once_and_mir_after_the_row_that_gives_its_steps(name: str) -> None:
    cells = list(cells_of(NETWORKS[name]))

    assert len(set(cells)) == len(cells) == 3 * len(ROWS) * len(NETWORKS[name].settings)
    for number, cell in enumerate(cells):
        if cell.row == "mir":
            assert Cell(**{**vars(cell), "row": "auto"}) in cells[:number]


def test_the_first_setting_of_every_network_comes_before_the_second_of_any() -> None:
    networks = [NETWORKS["efficientnet_lite0"], NETWORKS["resnet20"]]
    cells = list(in_order(networks, (0,)))
    first = cells[: 2 * len(ROWS)]

    assert {cell.network for cell in first} == {"efficientnet_lite0", "resnet20"}
    assert {(cell.network, cell.budget, cell.amount) for cell in first} == {
        (n.name, n.settings[0][1], n.settings[0][0]) for n in networks
    }
    assert len(cells) == sum(len(list(cells_of(network, (0,)))) for network in networks)


@pytest.mark.parametrize("split", [True, False])
def test_test_pictures_are_never_trained_on_and_the_same_for_every_amount(split: bool, tmp_path: Path) -> None:
    for part in ("train", "test") if split else ("",):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(20):
                (tmp_path / part / label / f"{number}.jpg").touch()
    draws = [drawn(tmp_path, amount, 1) for amount in (Amount(5), Amount(20), Amount(3, per_class=True))]

    assert [len(train) for train, _ in draws] == [5, 20, 6]
    assert {tuple(test) for _, test in draws} == {tuple(draws[0][1])}
    assert not {path for train, _ in draws for path in train} & set(draws[0][1])
    assert sorted(path.parent.name for path in draws[2][0]) == ["cat"] * 3 + ["dog"] * 3
    assert drawn(tmp_path, Amount(5), 2) != draws[0]


def test_every_stored_plan_saves_macs_and_latency() -> None:
    for network, plans in plans_in(RESULTS).items():
        for budget, plan in plans.items():
            assert plan["latency"] <= int(budget) / 100, network
            assert plan["macs"] < 1, network
