"""An installed Chromium, driven by Playwright. No browser is downloaded."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="no browser here: apt-get install chromium, and pip install playwright",
)

FACTS = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [.2126, .7152, .0722][place], 0);
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1]; };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const paper = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || !element.checkVisibility() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), inSvg = element.namespaceURI.endsWith('svg');
    const below = paper(element), ink = over(parse(inSvg ? style.fill : style.color), below);
    const [high, low] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    texts.push({text: text.slice(0, 40), pixels: parseFloat(style.fontSize), contrast: (high + .05) / (low + .05)});
  }
  const plots = Object.fromEntries([...document.querySelectorAll('[data-plot]')].map(plot => {
    const box = (plot.querySelector('.plot') || plot).getBoundingClientRect();
    return [plot.dataset.plot, [box.width, box.height, plot.querySelectorAll('.dot, circle, line:not(.grid, .axis), .track, .layer').length]];
  }));
  return {wide: document.documentElement.scrollWidth - innerWidth, texts, plots};
}"""
"""What a page shows now: how far it is too wide in pixels, each visible text with its size and contrast, and each plot with width,
height and number of marks."""


@contextmanager
def launched() -> "Iterator[Browser]":
    """The browser. It may be root's, who has no sandbox; the pages are our own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: "Browser", path: Path, width: int, scheme: Literal["light", "dark"] = "light") -> "Iterator[Page]":
    """The page of a file in a window `width` pixels wide. It must ask for no other file, and say nothing on the console."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda problem: said.append(str(problem)))
    page.on("request", lambda request: said.extend([request.url] if request.url != path.as_uri() else []))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert said == []


def facts(page: "Page") -> dict[str, Any]:
    """See `FACTS`."""
    found: dict[str, Any] = page.evaluate(FACTS)
    return found


def printed_pages(page: "Page") -> int:
    """Number of pages on paper."""
    return len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True)))
