"""The pages in a real browser: readable on a telephone and on a screen, by day and by night, by mouse and by keyboard, and on paper."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from helpers.browser import facts, launched, needs_browser, opened, printed_pages
from helpers.pages import PLOTS, write_pages
from helpers.recorded import write_run

from pipeline.packaging.report.recorded_run import read_recorded_run
from pipeline.packaging.report.report import page_of_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [needs_browser, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_there_and_every_text_can_be_read(
    browser: "Browser", pages: dict[str, Path], name: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    with opened(browser, pages[name], width, scheme) as page:
        found = facts(page)

    assert found["wide"] == 0
    assert {plot for plot, (wide, high, marks) in found["plots"].items() if wide > 200 and high > 20 and marks} == PLOTS[name]
    assert [text for text in found["texts"] if text["pixels"] < 11 or text["contrast"] < 4.5] == []
    assert len(found["texts"]) > 10


@pytest.mark.parametrize("width", [400, 1400])
def test_a_trial_shows_its_plan_and_figures_to_mouse_and_keyboard(browser: "Browser", pages: dict[str, Path], width: int) -> None:
    with opened(browser, pages["finished"], width) as page:
        trials, tips = (page.locator(f"[data-plot=search] {each}") for each in (".dot[tabindex]", ".tip"))
        before = [tips.nth(number).is_visible() for number in range(tips.count())]
        trials.nth(1).hover()
        pointed_at = tips.nth(1).inner_text()
        trials.nth(0).focus()
        page.keyboard.press("Tab")
        page.mouse.move(0, 0)
        focused = [number for number in range(tips.count()) if tips.nth(number).is_visible()]
        too_wide = facts(page)["wide"]

    assert not any(before)
    assert pointed_at.splitlines()[0] == "trial 2, within the budget"
    assert "score 97.00" in pointed_at
    assert "stem 28 of 64" in pointed_at
    assert focused == [1]
    assert too_wide == 0


@pytest.mark.parametrize("name", PLOTS)
def test_a_page_needs_two_sheets_of_paper_at_most(browser: "Browser", pages: dict[str, Path], name: str) -> None:
    with opened(browser, pages[name], 1400, "dark") as page:
        assert 1 <= printed_pages(page) <= 2


def test_five_runs_of_two_networks_with_many_settings_need_two_sheets(browser: "Browser", tmp_path: Path) -> None:
    """Two runs cannot be compared with the first, there are two tables of widths, and 80 settings differ."""
    runs = [
        write_run(
            tmp_path / f"run-{n}", shipped=(0.8, 96.0), dense=f"net-{n % 2}", job={f"setting {k}": f"{n}" for k in range(80)}
        )
        for n in range(5)
    ]
    (tmp_path / "page.html").write_bytes(page_of_runs([read_recorded_run(run) for run in runs]))
    with opened(browser, tmp_path / "page.html", 1400) as page:
        on_screen = page.locator("td", has_text="setting 79").is_visible()
        sheets = printed_pages(page)

    assert on_screen
    assert sheets == 2
