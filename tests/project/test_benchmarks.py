"""The documented tables say what the raw lines say."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from attention import RESULTS as ATTENTION
from attention import lines_of, page_tables
from candidate_costs import Costs, tables
from cells import Campaign, Cell, finished, keep
from deepen import deepened
from probe_load import read_lines, read_turns
from probe_load_table import drift, is_inside, table
from quality import ALL, RESULTS
from tables import standing_of, table_of, verdict

from models.vgg import VGG
from pipeline.core.statistics import DRIFT, Estimate

FILES = sorted(RESULTS.parent.glob("quality*.jsonl"))
DOCS = Path(__file__).parents[2] / "docs"
TEXT = "\n".join(page.read_text() for page in (DOCS / "benchmarks.md", *sorted((DOCS / "benchmarks").glob("*.md"))))
ROW = re.compile(r"^\| (?:latency_p50|macs|params)=.*$", flags=re.MULTILINE)
STANDING = re.compile(r"^\| [a-z0-9_]+ \| (?:latency_p50|macs|params)=.*$", flags=re.MULTILINE)


def campaign(results: Path = RESULTS) -> Campaign:
    return Campaign("resnet20", trials=100, epochs=2, pinned_rate=0.05, results=results)


def campaigns() -> list[Campaign]:
    found = {
        (line["model"], line["trials"], line["epochs"], line["pinned_rate"], file)
        for file in FILES
        for line in map(json.loads, file.read_text().splitlines())
    }
    return [Campaign(*each) for each in found]


def budgets() -> tuple[str, ...]:
    return tuple({json.loads(text)["budget"] for file in FILES for text in file.read_text().splitlines()})


def test_every_row_of_search_quality_is_made_of_the_raw_lines() -> None:
    made = {row for each in campaigns() for seeds in (1, 2, 3) for row in ROW.findall(table_of(each, budgets(), ALL, seeds))}
    documented = ROW.findall(re.sub(r", \d+ epochs \|", " |", TEXT))

    assert len([row for row in documented if row.count("|") == 9]) > 50
    assert [row for row in documented if row.count("|") == 9 and row not in made] == []


def test_where_the_default_stands_is_made_of_the_raw_lines() -> None:
    made = {row for each in campaigns() for seeds in (1, 2, 3) for row in STANDING.findall(standing_of(each, budgets(), seeds))}
    documented = STANDING.findall(TEXT)

    assert len(documented) > 5
    assert [row for row in documented if row not in made] == []


def test_the_tables_of_vision_transformers_are_made_of_the_raw_lines() -> None:
    made = page_tables(lines_of(ATTENTION)).split("\n")

    assert len(made) > 8
    assert [row for row in made if row not in TEXT] == []


def test_the_tables_of_the_cost_of_a_candidate_are_made_of_the_raw_lines() -> None:
    made = tables(lines_of(RESULTS.with_name("candidate.jsonl"))).split("\n")

    assert len(made) > 8
    assert [row for row in made if row not in TEXT] == []


def test_a_whole_trial_of_the_library_holds_the_same_measurement_and_score_as_the_hurried_one() -> None:
    costs = Costs(*([each] for each in (1.0, 2.0, 4.0, 8.0, 100.0, 20.0, 3.0, 6.0, 8.0)))

    assert costs.ready_ms() == ([3.0], [103.0], [23.0])
    assert costs.trial_ms() == ([15.0], [114.0], [34.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([75.0, 76.0], [74.0, 74.9], "ahead"),
        ([75.0, 76.0], [76.1, 77.0], "behind"),
        ([75.0, 76.0], [74.0, 75.1], "a tie"),
        ([75.0, 76.0], [74.0], "ahead, by one seed"),
        ([75.0], [76.0, 77.0], "behind, by one seed"),
    ],
)
def test_ahead_is_said_only_where_every_seed_is(ours: list[float], theirs: list[float], says: str) -> None:
    assert verdict(ours, theirs) == says


def test_a_cell_that_was_kept_is_finished_for_its_own_settings_only(tmp_path: Path) -> None:
    results, cell = tmp_path / "lines.jsonl", Cell("latency_p50=50%", "random", 0)
    here, longer = campaign(results), Campaign("resnet20", trials=100, epochs=10, pinned_rate=0.05, results=results)
    keep(here, cell, {"accuracy": 80.0})

    assert finished(here)[cell]["accuracy"] == 80.0
    assert finished(longer) == {}


def test_the_last_line_of_a_cell_counts(tmp_path: Path) -> None:
    here, cell = campaign(tmp_path / "lines.jsonl"), Cell("latency_p50=50%", "random", 0)
    keep(here, cell, {"accuracy": 80.0})
    keep(here, cell, {"accuracy": 81.0})

    assert finished(here)[cell]["accuracy"] == 81.0


@pytest.mark.parametrize("seeds", [1, 3])
def test_cells_that_were_not_run_are_counted(seeds: int, tmp_path: Path) -> None:
    table = table_of(campaign(tmp_path / "none.jsonl"), ("latency_p50=50%",), ("random",), seeds)

    assert table.splitlines()[-3] == f"| latency_p50=50% | random | | | | | | {seeds} |"


def test_a_table_of_several_machines_or_dense_networks_says_so(tmp_path: Path) -> None:
    here, other = {"dense_accuracy": 88.0, "machine": "A"}, {"dense_accuracy": 87.5, "machine": "B"}
    figures = {"accuracy": 80.0, "latency_p50": 0.5, "used": 1.0, "verdict": "within", "seconds": 1.0}
    lines = campaign(tmp_path / "lines.jsonl")
    for seed, facts in enumerate((here, other)):
        keep(lines, Cell("latency_p50=50%", "random", seed), {**figures, **facts})
    shown = ("latency_p50=50%",), ("random",)

    assert table_of(lines, *shown, seeds=1).endswith("Dense network: 88.00 %. Measured on: A.")
    assert table_of(lines, *shown, seeds=2).endswith("Dense network: 87.50 %, 88.00 %. Measured on: A, B.")


def test_a_deepened_vgg_computes_what_the_shallower_one_did() -> None:
    torch.manual_seed(0)
    shallow, images = VGG(16, 10), torch.rand(16, 3, 32, 32)
    shallow(images)  # running statistics that are not those of a new network
    deep = deepened(shallow.eval(), images)

    with torch.no_grad():
        expected, found = shallow(images), deep.eval()(images)
    assert len(deep.features) == len(shallow.features) + 9
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.std())


@pytest.mark.slow
def test_every_row_of_ratios_under_load_is_made_of_the_raw_lines() -> None:
    rows = [row for row in table(read_lines(), read_turns()) if row.startswith("|")]

    assert [row for row in rows if row not in TEXT] == []


def test_the_drift_of_intervals_is_what_the_turns_with_one_thread_show() -> None:
    """the median of 16 pairs, within 0.3 points"""
    assert abs(np.median(drift(read_turns(), threads=1)) - DRIFT) < 0.003


@pytest.mark.parametrize(("value", "inside"), [(0.68, False), (0.66, True), (0.5, True), (0.39, True), (0.37, False)])
def test_a_measurement_is_inside_when_it_differs_no_more_than_two_estimates_do(value: float, inside: bool) -> None:
    """The quiet ratio is 0.5. Above it, the reaches 0.12 and 0.12 allow 0.17; below it, 0.08 and 0.09 allow 0.12."""
    assert is_inside(Estimate(value, value - 0.12, value + 0.08), Estimate(0.5, 0.41, 0.62)) == inside
