"""One page of each kind, with every plot that it can have."""

from pathlib import Path

from pydantic import TypeAdapter

from helpers.recorded import write_run
from pipeline.core.alignment import Alignment, ConvPair, Sweep
from pipeline.core.plan import NotPrunable
from pipeline.core.statistics import Estimate
from pipeline.graph.layer_facts import LayerFacts
from pipeline.inspection.inspect_network import GroupFacts, Inspection, PlanFacts
from pipeline.inspection.page import inspection_page
from pipeline.packaging.report.recorded_run import read_recorded_run
from pipeline.packaging.report.report import page_of_runs

PLOTS: dict[str, set[str]] = {
    "finished": {"latency", "widths", "search", "best", "alignment-1"},
    "unfinished": {"search", "best", "widths"},
    "several": {"runs-latency", "runs-relative", "trials", "widths"},
    "inspection": {"layers"},
}
"""Page -> its plots."""
SWEEP = Sweep(ConvPair("block1.conv1", 64, 96, 96, (3, 3), (1, 1), (8, 8)), {width: (width / 8,) for width in (8, 16, 24, 32)})


def write_pages(folder: Path) -> dict[str, Path]:
    """Name of a page -> its file."""
    done, other = write_run(folder / "done", shipped=(0.9, 97.0)), write_run(folder / "other", shipped=(0.7, 95.0))
    killed = write_run(folder / "killed")
    (done / "alignment.json").write_bytes(TypeAdapter(Alignment).dump_json(Alignment((SWEEP,))))
    runs = {"finished": [done], "unfinished": [killed], "several": [done, other, killed]}
    pages = {name: page_of_runs([read_recorded_run(run) for run in each]) for name, each in runs.items()}
    for name, page in {**pages, "inspection": inspection_page(inspection())}.items():
        (folder / f"{name}.html").write_bytes(page)
    return {name: folder / f"{name}.html" for name in PLOTS}


def inspection() -> Inspection:
    """Twelve layers, from one that takes no time to one that takes most of it."""
    layers = tuple(
        LayerFacts(
            f"stage{place // 4}.block{place}.conv",
            "Conv 3x3",
            (16 * (1 + place), 8, 8),
            100,
            900,
            (f"group{place}",),
            "",
            place / 10,
        )
        for place in range(11)
    )
    layers += (LayerFacts("head", "Gemm", (10,), 10, 10, (), "its channels are the network's output", 0.0),)
    groups = tuple(GroupFacts(f"group{place}", 16 * (1 + place), 4, (layers[place].name,), 0.05, 0.07) for place in range(11))
    kept = (NotPrunable("head", "its channels are the network's output"),)
    dense = PlanFacts(160, 1010, 2**20, Estimate(4.0, 3.9, 4.1))
    return Inspection("net.onnx", ((1, 3, 8, 8),), layers, groups, kept, dense, dense, 4, {"Softmax": 1.0}, None, 2.0, False, 30)
