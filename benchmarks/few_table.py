"""The table of `few.py` for readers, made from the raw lines."""

from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import numpy as np
from few_cells import NETWORKS, ROWS, Amount, Facts, finished, unpacked

from pipeline.core.paired_difference import Scores, paired_drop
from pipeline.core.statistics import Estimate

HEAD = (
    *("network", "pictures", "budget", "MACs", "seeds"),
    *ROWS,
    "auto, core minutes",
    "auto minus statistics",
    "auto minus the best other row",
)


def table_of(results: Path) -> list[str]:
    """One line for each network, number of pictures and budget: the mean agreement of each row over its seeds.

    A number in brackets is that of its seeds, where they are not as many as those of `auto`. Differences are paired by picture
    and seed, with 95 % intervals.
    """
    lines = [f"| {' | '.join(HEAD)} |", f"| --- | --- |{' --: |' * (len(HEAD) - 2)}"]
    for network in NETWORKS.values():
        found = finished(results, network.name)
        for amount, budget in sorted(
            network.settings, key=lambda setting: (-setting[1], str(setting[0].per_class), setting[0].pictures)
        ):
            cells = {
                row: {
                    cell.seed: facts
                    for cell, facts in found.items()
                    if (cell.amount, cell.budget, cell.row) == (amount, budget, row)
                }
                for row in ROWS
            }
            if any(cells.values()):
                lines.append(f"| {' | '.join(line_of(network.name, amount, budget, cells))} |")
    return lines


def line_of(network: str, amount: Amount, budget: int, cells: dict[str, dict[int, Facts]]) -> Iterator[str]:
    """The entries of one line. `cells` are the results of each row by seed."""
    some = next(facts for seeds in cells.values() for facts in seeds.values())
    seeds = max(len(found) for found in cells.values())
    yield from (network, str(amount), f"{budget} %", f"{100 * some['macs']:.0f} %", str(seeds))
    for row in ROWS:
        found = cells[row]
        count = f" ({len(found)})" if found and len(found) < seeds else ""
        yield f"{mean(facts['agreement'] for facts in found.values()):.1f} %{count}" if found else ""
    auto = cells["auto"]
    yield f"{mean(facts['core_minutes_taken'] for facts in auto.values()):.1f}" if auto else ""
    yield shown(difference(auto, cells["statistics"]))
    others = {row: gap for row in ROWS if row != "auto" and (gap := difference(auto, cells[row]))}
    best = min(others, key=lambda row: others[row].value, default=None)
    yield f"{best}: {shown(others[best])}" if best else ""


def difference(ours: dict[int, Facts], theirs: dict[int, Facts]) -> Estimate | None:
    """How many points more agreement `ours` has than `theirs` on the same test pictures of the same seeds, with its interval."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    both = []
    for found in (ours, theirs):
        each = np.concatenate([unpacked(found[seed]["hits"], found[seed]["pictures_of"][2]) for seed in seeds])
        both.append(Scores(100.0 * float(each.mean()), np.where(each, 100.0, 0.0)))
    drop = paired_drop(both[0], both[1])
    return drop.estimate if drop else None


def shown(gap: Estimate | None) -> str:
    """A difference in points, with its interval."""
    return f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]" if gap else ""
