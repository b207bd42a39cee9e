"""The page of an inspection: every layer is in its picture, and nothing in it runs."""

import html.parser
import re

import pytest

from pipeline.core.plan import NotPrunable
from pipeline.core.statistics import Estimate
from pipeline.graph.layer_facts import LayerFacts
from pipeline.inspection.inspect_network import GroupFacts, Inspection, PlanFacts
from pipeline.inspection.page import inspection_page

EVIL = "<script>alert(1)</script>"
LAYERS = (
    LayerFacts("stem", "Conv 3x3", (32, 8, 8), 100, 900, ("stem",), latency_ms=3.0),
    LayerFacts(EVIL, "Conv 1x1", (64, 8, 8), 50, 100, ("stem",), latency_ms=1.0),
    LayerFacts("head", "Gemm", (10,), 10, 10, (), "its channels are the network's output", 0.0),
)


def inspection(layers: tuple[LayerFacts, ...] = LAYERS) -> Inspection:
    dense = PlanFacts(160, 1010, 2**20, Estimate(4.0, 3.9, 4.1))
    groups = (GroupFacts("stem", 32, 4, ("stem", EVIL), 0.5, 0.25),)
    kept = (NotPrunable("head", "its channels are the network's output"),)
    return Inspection("net.onnx", ((1, 3, 8, 8),), layers, groups, kept, dense, dense, 4, {"Softmax": 1.0}, None, 2.0, False, 30)


class Tags(html.parser.HTMLParser):
    """The tags of a page, and the boxes of its picture."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.boxes: list[dict[str, str | None]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if "layer" in (dict(attrs).get("class") or "").split():
            self.boxes.append(dict(attrs))


def test_each_layer_is_a_box_and_the_slowest_has_the_strongest_colour() -> None:
    boxes = Tags(inspection_page(inspection())).boxes
    colours = [float(re.search(r", ([\d.]+)\)", str(box["style"]))[1]) for box in boxes]  # type: ignore[index]

    assert len(boxes) == 3
    assert colours[0] == max(colours) > colours[1] > colours[2] == 0
    assert [box["class"] for box in boxes] == ["layer", "layer", "layer kept"]
    assert boxes[2]["title"] == "its channels are the network's output"


def test_text_from_a_file_is_shown_and_not_run() -> None:
    page = inspection_page(inspection())

    assert "script" not in Tags(page).tags
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in page


@pytest.mark.parametrize(("timed", "expected"), [(True, "share of time"), (False, "share of multiply-accumulate operations")])
def test_the_page_says_what_the_colour_means(timed: bool, expected: str) -> None:
    layers = LAYERS if timed else tuple(LayerFacts(layer.name, layer.kind, layer.outputs, 1, layer.macs) for layer in LAYERS)

    assert expected in inspection_page(inspection(layers)).decode()


def test_the_page_tells_the_plans_and_the_length_of_the_search() -> None:
    page = inspection_page(inspection()).decode()

    assert "4.000 ms" in page
    assert "Search: about 1:00 for 30 trials, without scoring, without training" in page
