"""The coverage benchmark for readers: docs/coverage.md, made from the raw lines alone. coverage.py writes it."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.core.paired_difference import wilson
from pipeline.foreign_text import clean_text
from pipeline.system.units import format_duration

Line = dict[str, Any]

OUTCOMES = (
    "proven",
    "every candidate exported",
    "nothing to prune",
    "refused",
    "traceback",
    "too much time",
    "too much memory",
    "not built",
)
"""What a network's raw line can say. `not built` is the library's own failure and does not count."""
FAMILIES_LEFT, ALL_LEFT = 0.10, 0.25
"""Goals: largest shares of the multiply-accumulate operations that the thinnest plan leaves."""
FAMILIES_GOAL, ALL_GOAL = 0.90, 0.80
"""Goals: smallest shares of the networks that must reach them."""
SECONDS_GOAL = 60.0
LEAST_SAMPLE = 50
"""Least number of architectures of which a share is shown."""
REASONS_SHOWN = 3

HEAD = """# Coverage

Which networks can be compressed, and how far. *P* and *M* are the shares of the parameters and of the multiply-accumulate
operations that the thinnest plan leaves. The thinnest plan keeps a thirty-second of the channels of each group, and at least one.
*Proven* means two things. For each group, the pruned network has the output of the whole network in which nobody reads the
removed channels. And the sliced file has the output of the pruned network.

The weights are random, with seed 0. The input is one image of the smallest size with which the network runs. Only the structure
matters here, and it is the same with a larger image. *Blocks that can leave* counts the parts whose result is added to their own
entry and that `--depth auto` can drop, of all additions of layers. It is empty where the blocks have not been counted. Several
outputs are concatenated; detectors are compressed without the selection of boxes. *Time* is the processor time from the start of
the export to the proven search space, on one thread.
Each row is the last examination of its network. The first table says how many families were examined with which state of the
analysis.
"""


def page(lines: Sequence[Line], families: Sequence[str], architectures: Sequence[str] = ()) -> str:
    """The whole page.

    `lines` are all raw lines, the oldest first; `families` are the names of one network for each family; `architectures` are the
    names of all architectures of timm in the order in which they are examined.
    """
    last = {line["network"]: line for line in lines}
    shown = [last[name] for name in families if name in last]
    missing = len(families) - len(shown)
    parts = [HEAD, _goal(shown, missing), "## Families\n", _history(lines, families), _table(shown), _causes(shown)]
    first = {line["network"]: line for line in reversed(lines)}
    sample = [last[name] for name in itertools.takewhile(last.__contains__, architectures)]
    if len(sample) > LEAST_SAMPLE:
        parts += [
            "## All architectures of timm with at most 30 M parameters\n",
            _all(sample, [first[line["network"]] for line in sample], len(architectures)),
            _causes(sample),
        ]
    parts += ["## How to repeat this\n", _repeat(last.values())]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def counted(lines: Iterable[Line]) -> list[Line]:
    """The lines of networks that their library can build."""
    return [line for line in lines if line["outcome"] != "not built"]


def reached(lines: Iterable[Line], left: float) -> int:
    """How many networks are proven and leave at most this share of the multiply-accumulate operations."""
    return sum(line["outcome"] == "proven" and line["macs_left"] <= left for line in lines)


def _goal(shown: list[Line], missing: int) -> str:
    lines = counted(shown)
    if not lines:
        return "No network has been examined yet.\n"
    good, share = reached(lines, FAMILIES_LEFT), reached(lines, FAMILIES_LEFT) / len(lines)
    verdict = "reached" if share >= FAMILIES_GOAL and not missing else "missed" if not missing else "open"
    rest = f" {missing} of the families have not been examined." if missing else ""
    return (
        f"**{good} of {len(lines)} families ({share:.0%}) are proven with M <= {FAMILIES_LEFT:.0%}.** "
        f"The goal is {FAMILIES_GOAL:.0%}: {verdict}.{rest}\n"
    )


def _history(lines: Sequence[Line], families: Sequence[str]) -> str:
    """One row for each state of the analysis with which at least half of the families were examined."""
    states: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line["network"] in families:
            states[line["analysis"]][line["network"]] = line
    head = (
        "analysis of commit",
        "families",
        "proven",
        f"proven, M <= {FAMILIES_LEFT:.0%}",
        *OUTCOMES[1:-1],
        "median time",
        f"over {SECONDS_GOAL:.0f} s",
    )
    rows = []
    for state, found in states.items():
        known = counted(found.values())
        if 2 * len(found) < len(families):
            continue
        outcomes = Counter(line["outcome"] for line in known)
        times = sorted(line["processor_s"] for line in known if line["outcome"] == "proven")
        median = format_duration(times[len(times) // 2]) if times else ""
        slow = sum(value > SECONDS_GOAL for value in times) + outcomes["too much time"]
        cells = (
            f"`{state}`",
            len(known),
            outcomes["proven"],
            reached(known, FAMILIES_LEFT),
            *(outcomes[o] for o in OUTCOMES[1:-1]),
            median,
            slow,
        )
        rows.append(cells)
    return _markdown(head, rows, "l" + "r" * (len(head) - 1)) if rows else ""


def _table(shown: list[Line]) -> str:
    head = (
        "family",
        "network",
        "input",
        "groups",
        "layers prunable",
        "blocks that can leave",
        "P",
        "M",
        "result",
        "time",
        "not prunable, and why",
    )
    rows = []
    for line in shown:
        layers = f"{line['deployed_layers_prunable']} of {line['deployed_layers']}" if "deployed_layers" in line else ""
        left = [f"{100 * line[key]:.1f} %" if key in line else "" for key in ("params_left", "macs_left")]
        time = format_duration(line["processor_s"]) if "processor_s" in line else ""
        side = f"{line['side']} px" if "side" in line else ""
        why = _reasons(line) if line["outcome"] in OUTCOMES[:2] else _clipped(line["reason"], 200)
        cells = (
            line["family"],
            line["network"].partition(":")[2],
            side,
            line.get("groups", ""),
            layers,
            f"{line['blocks']} of {line['blocks_tried']}" if "blocks" in line else "",
            *left,
            line["outcome"],
            time,
            why,
        )
        rows.append(cells)
    return _markdown(head, rows, "lllrrrrrlrl")


def _reasons(line: Line) -> str:
    found = [f"{count} x {_clipped(reason, 110)} ({names[0]})" for reason, count, names in line.get("not_prunable", [])]
    more = f"; {len(found) - REASONS_SHOWN} more reasons" if len(found) > REASONS_SHOWN else ""
    return "; ".join(found[:REASONS_SHOWN]) + more


def _causes(lines: list[Line]) -> str:
    """One row for each reason why networks are not proven."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        if line["outcome"] != "proven":
            groups[line["outcome"], _clipped(line["reason"], 240)].append(line["network"].partition(":")[2])
    ordered = sorted(groups.items(), key=lambda entry: (OUTCOMES.index(entry[0][0]), -len(entry[1])))
    rows = [(outcome, len(names), reason, _clipped(", ".join(sorted(names)), 160)) for (outcome, reason), names in ordered]
    return "### Not proven\n\n" + _markdown(("result", "networks", "reason", "which"), rows, "lrll") if rows else ""


def _all(lines: list[Line], first: list[Line], total: int) -> str:
    """`first` are the lines of the first examinations. Only they are a sample: later ones may follow a change made for them."""
    known, at_first = counted(lines), counted(first)
    good, before = reached(known, ALL_LEFT), reached(at_first, ALL_LEFT)
    low, high = wilson(before / len(at_first), len(at_first))
    text = (
        f"**{good} of {len(known)} ({good / len(known):.1%}) are proven with M <= {ALL_LEFT:.0%}.** The goal is {ALL_GOAL:.0%}. "
    )
    if len(lines) < total:
        text += f"They are the first {len(lines)} of {total} in a random order"
        if (before, len(at_first)) != (good, len(known)):
            text += (
                f". At their first examination, {before} of {len(at_first)} were proven. The analysis was then changed for some "
                "that were not, so only this figure says something about the others"
            )
        text += f"; 95 % interval: {low:.1%} to {high:.1%}. "
    text += "The best figure published for timm is 585 of 945 (61.9 %), by torch-dag, for all sizes.\n"
    files: dict[str, list[Line]] = defaultdict(list)
    for line in known:
        files[line["family"]].append(line)
    head = ("file", "architectures", "proven", f"proven, M <= {ALL_LEFT:.0%}", "largest M", "longest time")
    rows = []
    for file, found in sorted(files.items()):
        proven = [line for line in found if line["outcome"] == "proven"]
        most = f"{100 * max(line['macs_left'] for line in proven):.1f} %" if proven else ""
        longest = format_duration(max(line.get("processor_s", 0.0) for line in found))
        rows.append((file, len(found), len(proven), reached(found, ALL_LEFT), most, longest))
    return text + "\n" + _markdown(head, rows, "lrrrrr")


def _repeat(lines: Iterable[Line]) -> str:
    used: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        for package in ("torch", "torchvision", "timm", "onnxscript"):
            if package in line:
                used[package].add(line[package])
    versions = ", ".join(f"{package} {' and '.join(sorted(found))}" for package, found in used.items())
    return (
        "`python benchmarks/coverage.py`, and `--all` for the architectures of timm. They need `pip install timm`; the YOLO rows "
        f"need ultralytics. An interrupted run continues. Versions: {versions or 'none'}. "
        "Raw lines: `benchmarks/results/coverage.jsonl`.\n"
    )


def _clipped(text: str, length: int) -> str:
    """`text` in one table cell."""
    clean = clean_text(text, length).replace("|", "\\|").replace("<", "&lt;")
    return " ".join(clean.split())


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]], sides: str) -> str:
    lines = [head, [{"l": "---", "r": "--:"}[side] for side in sides], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
