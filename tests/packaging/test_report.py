"""The report of a run: names in it are only names, and a part that cannot be made costs nothing else."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Literal

import pytest
from helpers.readers import artifact, candidate
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.core.artifact import Artifact, dump_artifact
from pipeline.core.plan import NotPrunable
from pipeline.core.run import Trial
from pipeline.foreign_text import clean_text
from pipeline.packaging.report.chart import LABEL_LIMIT
from pipeline.packaging.report.page import report_page
from pipeline.packaging.report.plots import width_bars
from pipeline.search.problem import Evaluation

FOUND = replace(
    artifact(),
    job={"model": "digits", "searcher": "random", "seed": 0},
    validation={"dense": 97.0, "before_finetuning": 90.0, "after_finetuning": 96.0},
)
ANY_NAME = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=30) | st.text(r"$\_^{}%#&~<>", max_size=12)


@settings(max_examples=20)
@given(name=ANY_NAME)
def test_a_layer_of_any_name_is_drawn_under_its_cleaned_name(name: str) -> None:
    page = Texts(report_page(replace(FOUND, widths={name: (4, 8, 1)}), [], [], ()))

    assert page.names == [clean_text(name, LABEL_LIMIT)]
    assert "script" not in page.tags


class Texts(HTMLParser):
    """The tags of a page, and the names of its groups."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: list[str] = []
        self.in_name = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.in_name = ("class", "name") in attrs
        self.names += [""] * self.in_name

    def handle_data(self, data: str) -> None:
        if self.in_name:
            self.names[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.in_name = False


def test_the_page_of_a_run_has_its_plots_and_its_layers() -> None:
    trial = Trial("search", 1, candidate(), 0.25)
    found = replace(FOUND, widths={"$conv_1": (8, 16, 1)})
    page = report_page(found, [trial], [Evaluation(trial.candidate.plan, 97.5, ())], ()).decode()

    assert "plots are missing" not in page
    assert page.count("<svg") >= 2


def test_the_page_shows_which_blocks_were_dropped_and_no_bar_for_what_was_in_them() -> None:
    widths = {"stem": (6, 8, 1), "body.1.conv": (0, 8, 1), "body.2.conv": (8, 8, 1)}
    found = replace(FOUND, widths=widths, blocks={"body.1": True, "body.2": False, "<b>": False})
    page = report_page(found, [], [], ()).decode()

    assert "<p>1 of 3 blocks and 42 % of the channels were removed.</p>" in page
    assert "<p>Dropped blocks:</p><ul><li><code>body.1</code></li></ul>" in page
    assert [(bar.kept, bar.kept_share) for bar in width_bars(widths)] == [(6, 75.0), (0, 0.0), (8, 100.0)]
    assert "blocks" not in replace(found, blocks={}).removed_text


def test_a_name_cannot_turn_the_direction_of_the_page_s_text() -> None:
    found = replace(FOUND, widths={"a": (8, 16, 1)}, frozen=(NotPrunable("layer\u202egnp", "<b>why\u202e</b>"),))
    page = report_page(found, [], [], ()).decode()

    assert "\u202e" not in page
    assert r"<code>layer\u202egnp</code>: &lt;b&gt;why\u202e&lt;/b&gt;" in page


@pytest.mark.parametrize(
    ("network", "reason", "sentence"),
    [
        ("own", "", "The weights are those of your own module with fewer channels."),
        (
            "rebuilt",
            "it does not run with fewer channels: split_with_sizes expects 11 <b> (nets.py:41)",
            "rebuilt from the exported graph, not of your own module. The reason: it does not run with fewer channels: "
            "split_with_sizes expects 11 &lt;b&gt; (nets.py:41).",
        ),
    ],
)
def test_the_page_says_whose_module_has_the_weights(network: Literal["own", "rebuilt"], reason: str, sentence: str) -> None:
    page = report_page(replace(FOUND, network=network, network_reason=reason), [], [], ()).decode()

    assert sentence in page


def test_the_page_of_an_older_artifact_says_nothing_of_the_module() -> None:
    """artifact.json without the two fields"""
    facts = json.loads(dump_artifact(FOUND))
    found = TypeAdapter(Artifact).validate_python({name: facts[name] for name in facts if not name.startswith("network")})

    assert found.network is None
    assert "your own module" not in report_page(found, [], [], ()).decode()


def test_a_plot_that_cannot_be_drawn_costs_the_plots_and_nothing_else() -> None:
    """a width without its three numbers"""
    page = report_page(replace(FOUND, widths={"conv1": ()}), [], [], ()).decode()  # type: ignore[dict-item]

    assert "The plots are missing because they could not be drawn: ValueError" in page
    assert "Before and after" in page


def test_a_page_that_cannot_be_made_is_a_plain_one_that_says_why() -> None:
    """no measurement"""
    found = artifact()
    page = report_page(replace(found, shipped=replace(found.shipped, measurement=None)), [], [], ()).decode()

    assert "Verdict: within. The full report could not be made (ValueError: the artifact holds no measurement)" in page
