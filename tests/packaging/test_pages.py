"""The pages as text: nothing in them runs or loads, every plot is there, and every reference leads somewhere."""

from collections import Counter
from html.parser import HTMLParser

import pytest
from helpers.pages import PLOTS, write_pages

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
VOID = {"meta", "br", "link", "img", "input", "hr", "base"}


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the tags that are not closed where they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [tag] if tag not in VOID else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def all(self, name: str) -> list[str]:
        return [value for _, attributes in self.found for key, value in attributes.items() if key == name and value is not None]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: path.read_text() for name, path in write_pages(tmp_path_factory.mktemp("pages")).items()}


@pytest.mark.parametrize("name", PLOTS)
def test_a_page_runs_nothing_loads_nothing_and_says_so_to_the_browser(pages: dict[str, str], name: str) -> None:
    page = Elements(pages[name])
    tags = {tag for tag, _ in page.found}
    policies = [facts["content"] for tag, facts in page.found if facts.get("http-equiv") == "Content-Security-Policy"]

    assert policies == [POLICY]
    assert not tags & {"script", "iframe", "object", "embed", "link", "img", "form", "base", "a"}
    assert not {key for _, facts in page.found for key in facts if key.startswith("on") or key in ("src", "href")}
    assert "url(" not in pages[name]
    assert "@import" not in pages[name]


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_there_and_every_description_belongs_to_a_point(pages: dict[str, str], name: str) -> None:
    page = Elements(pages[name])
    ids = Counter(page.all("id"))

    assert set(page.all("data-plot")) == PLOTS[name]
    assert page.all("aria-describedby") == list(ids)
    assert set(ids.values()) <= {1}
    assert (page.unbalanced, page.open) == ([], [])
