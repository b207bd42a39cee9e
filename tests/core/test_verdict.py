"""What the table, the last line and artifact.json say of a network that was tested, and of artifacts from before there were intervals."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.readers import write_artifact
from rich.console import Console

from pipeline.cli.screen_result import print_results, results_json
from pipeline.compress import Finished
from pipeline.core.artifact import Artifact, FileFacts, Row, dump_artifact, read_artifact
from pipeline.core.budget import Constraint, known_metrics
from pipeline.core.candidate import Candidate
from pipeline.core.paired_difference import HitCounts, Scores, newcombe, paired_drop
from pipeline.errors import ModelError
from pipeline.packaging.budget_rows import budget_rows
from pipeline.packaging.report.page import headline
from pipeline.training.task import OwnTask

IMAGES = torch.zeros(4, 1, 2, 2)


def artifact(folder: Path, rows: tuple[Row, ...] = (), shipped: Candidate | None = None) -> Artifact:
    write_artifact(folder / "artifact.json")
    empty = read_artifact(folder)
    verdicts = {row.verdict for row in rows}
    verdict = next((each for each in ("over", "undecided") if each in verdicts), "within")
    return replace(empty, rows=rows, shipped=shipped or empty.shipped, verdict=verdict, files={"model.onnx": FileFacts("", 1)})


def network_pair(folder: Path, hits: HitCounts, limit: float) -> Artifact:
    """An artifact whose networks answer `hits` rightly, held to `limit` points of accuracy and nothing else."""
    values = np.repeat(
        [[100.0, 100], [100, 0], [0, 100], [0, 0]],
        [int(n) for n in (hits.both, hits.only_dense, hits.only_after, hits.neither)],
        0,
    )
    dense, after = (Scores(float(each.mean()), each) for each in values.T)
    empty = artifact(folder).shipped
    shipped = replace(empty, score=after.value, drop=paired_drop(dense, after))
    constraint = Constraint(known_metrics()["accuracy_drop"], limit, relative=False)
    return artifact(folder, tuple(budget_rows((constraint,), replace(empty, score=dense.value), shipped))[:1], shipped)


def table(found: Artifact) -> list[str]:
    written = io.StringIO()
    print_results(Console(file=written, width=80, color_system=None), [Finished(found, Path("artifact"))])
    return [line.strip() for line in written.getvalue().splitlines()]


def test_a_budget_is_met_where_every_interval_lies_below_its_limit(tmp_path: Path) -> None:
    """360 images, of which the compressed network alone reads two, and the dense one alone reads one"""
    found = network_pair(tmp_path, HitCounts(356, 1, 2, 1), 2.0)

    assert found.rows[0].verdict == "within"
    assert headline(found) == "Budget met: every 95 % confidence interval lies below its limit."
    assert "accuracy (test)  99.17 %  99.44 %    +0.28 points  <= 2.00 points  within" in table(found)
    assert "[-1.16, +1.84]" in table(found)


def test_the_summary_repeats_the_notices_of_the_run(tmp_path: Path) -> None:
    found = replace(network_pair(tmp_path, HitCounts(356, 1, 2, 1), 2.0), notices=("the thinnest plan is taken",))

    assert "note: the thinnest plan is taken" in table(found)
    assert results_json([Finished(found, tmp_path)])["notices"] == ["the thinnest plan is taken"]


def test_several_budgets_have_a_row_each_and_notices_say_whose_they_are(tmp_path: Path) -> None:
    """One budget is met, and the other one is missed"""
    met = replace(network_pair(tmp_path, HitCounts(356, 1, 2, 1), 2.0), notices=("the machine is busy",))
    missed = replace(network_pair(tmp_path, HitCounts(170, 20, 1, 9), 1.0), notices=("the machine is busy", "thinnest plan"))
    finished = [
        Finished(met, tmp_path / "run" / "a", "params <= 50.0 %"),
        Finished(missed, tmp_path / "run" / "b", "params <= 9.0 %"),
    ]
    written = io.StringIO()
    print_results(Console(file=written, width=100, color_system=None), finished)
    lines = [" ".join(line.split()) for line in written.getvalue().splitlines()]
    told = results_json(finished)

    assert "params <= 50.0 % 99.44 % (+0.28) 1 B within" in lines
    assert "params <= 9.0 % 85.50 % (-9.50) 1 B over" in lines
    assert [line for line in lines if line.startswith("note:")] == [
        "note: the machine is busy",
        "note: thinnest plan (params <= 9.0 %)",
    ]
    assert lines[-1] == str(tmp_path / "run" / "report.html")
    assert (told["verdict"], [each["verdict"] for each in told["budgets"]]) == ("over", ["within", "over"])
    assert [each["budget"] for each in told["budgets"]] == ["params <= 50.0 %", "params <= 9.0 %"]


def test_what_is_undecided_says_how_many_images_would_decide_it(tmp_path: Path) -> None:
    """200 images: 8 lost and 2 won are 3 points, give or take 4"""
    found = network_pair(tmp_path, HitCounts(185, 8, 2, 5), 1.0)
    row = found.rows[0]

    assert headline(found) == (
        f"UNDECIDED: accuracy (test) 93.50 % (-3.00 points, 95 % interval {row.interval_text}), limit 1.00 points: undecided with "
        f"200 test images; about {row.test_images_needed:,} would decide it"
    )
    assert 200 < (row.test_images_needed or 0) < 1000


def test_what_is_over_with_its_whole_interval_is_missed(tmp_path: Path) -> None:
    found = network_pair(tmp_path, HitCounts(170, 20, 1, 9), 1.0)

    assert headline(found).startswith("BUDGET MISSED: accuracy (test) 85.50 % (-9.50 points, 95 % interval [")
    assert headline(found).endswith("]), limit 1.00 points: over")
    assert found.rows[0].test_images_needed is None


def test_a_drop_of_the_limit_itself_promises_no_number_of_images(tmp_path: Path) -> None:
    found = network_pair(tmp_path, HitCounts(190, 4, 2, 4), 1.0)

    assert headline(found).endswith(
        "undecided; the drop is so close to the limit that more test images are unlikely to decide it"
    )


def test_counts_and_interval_are_in_the_artifact(tmp_path: Path) -> None:
    hits = HitCounts(356, 1, 2, 1)
    found = network_pair(tmp_path, hits, 2.0)
    told = json.loads(dump_artifact(found))

    assert told["shipped"]["drop"]["hits"] == {"both": 356, "only_dense": 1, "only_after": 2, "neither": 1}
    assert told["rows"][0]["drop"] == {"value": newcombe(hits).value, "low": newcombe(hits).low, "high": newcombe(hits).high}
    assert told["shipped"]["drop"]["images"] == 360


def test_an_artifact_from_before_there_were_intervals_is_read_and_says_that_it_has_none(tmp_path: Path) -> None:
    told = json.loads(dump_artifact(replace(network_pair(tmp_path, HitCounts(356, 1, 2, 1), 2.0), files={})))
    for row in told["rows"]:
        del row["drop"], row["test_images_needed"]
    del told["shipped"]["drop"], told["dense"]["drop"]
    (tmp_path / "artifact.json").write_text(json.dumps(told))
    found = read_artifact(tmp_path)

    assert found.rows[0].interval_text == ""
    assert headline(found) == (
        "Budget met: every 95 % confidence interval lies below its limit. The accuracy drop has no interval: the verdict uses its value alone."
    )


# tasks of one's own


def test_ones_own_scores_per_image_make_the_test_score() -> None:
    task = OwnTask(IMAGES, lambda module: 1.0, lambda module: module, test_each_image=lambda module: [10, 20, 60])
    found = task.test(torch.nn.Identity())

    assert task.tests_each_image
    assert found.value == 30
    assert found.each is not None
    assert found.each.tolist() == [10, 20, 60]


def test_right_and_wrong_count_a_hundred_and_nothing() -> None:
    task = OwnTask(IMAGES, lambda module: 1.0, lambda module: module, test_each_image=lambda module: torch.tensor([True, False]))

    assert task.test(torch.nn.Identity()).value == 50


def test_without_values_per_image_the_score_stands_alone() -> None:
    task = OwnTask(IMAGES, lambda module: 1.0, lambda module: module, evaluate_test=lambda module: 2.0)

    assert not task.tests_each_image
    assert (task.test(torch.nn.Identity()).value, task.test(torch.nn.Identity()).each) == (2.0, None)


def test_values_that_are_no_numbers_are_named() -> None:
    task = OwnTask(IMAGES, lambda module: 1.0, lambda module: module, test_each_image=lambda module: ["good"])

    with pytest.raises(ModelError, match=r"OwnTask\.test_each_image: expected one number per image"):
        task.test(torch.nn.Identity())
