"""The depth benchmark for readers: tables made from the raw lines alone. depth.py prints them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean

import numpy as np
from depth_cells import BUDGETS, NETWORKS, ROWS, Cell, Facts, unpacked

from pipeline.core.paired_difference import Scores, paired_drop

AGAINST = ("width", "practise")
"""Rows with which the search over both is compared."""


BEGIN, END = "<!-- made of the raw lines -->", "<!-- end -->"
"""What is between them in the page follows from the raw lines."""


def with_tables(page: str, found: Mapping[Cell, Facts]) -> str:
    """Return the page with what follows from the cells."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{after}"


def tables(found: Mapping[Cell, Facts]) -> str:
    """The result in a sentence, the table of the rows, and the table of differences on the same test pictures."""
    return "\n".join([_result(found), "", *_rows(found), "", *_differences(found)])


def _result(found: Mapping[Cell, Facts]) -> str:
    pairs = [
        (facts["agreement"], found[other]["agreement"])
        for cell, facts in found.items()
        if cell.row == "both" and (other := replace(cell, row="width")) in found
    ]
    if not pairs:
        return "**No pair of cells has been run yet.**"
    above = sum(both > width for both, width in pairs)
    average = mean(both - width for both, width in pairs)
    return (
        f"**With blocks, the search ends with more agreement than with channels alone in {above} of {len(pairs)} pairs of cells, "
        f"by {average:+.1f} points on average.**"
    )


def _rows(found: Mapping[Cell, Facts]) -> list[str]:
    head = (
        "network",
        "latency allowed",
        "row",
        "seeds",
        "agreement",
        "accuracy",
        "before recovery",
        "latency",
        "MACs",
        "speed-up over MAC reduction",
        "blocks dropped",
        "minutes",
    )
    lines = [f"| {' | '.join(head)} |", f"| --- | --: | --- |{' --: |' * (len(head) - 3)}"]
    for network, budget in _places(found):
        for row, words in ROWS.items():
            facts = [each for cell, each in _of(found, network, budget, row).items()]
            if not facts:
                continue
            measured = [each for each in facts if each["latency"]]
            cells = (
                network,
                f"{budget} %",
                words,
                len(facts),
                _spread(facts, lambda each: each["agreement"], "{:.1f} %"),
                _spread(facts, lambda each: each["accuracy"], "{:.1f} %") if all("accuracy" in each for each in facts) else "",
                _spread(facts, lambda each: each["before"], "{:.1f} %"),
                _spread(measured, lambda each: 100 * each["latency"][0], "{:.1f} %"),
                _spread(facts, lambda each: 100 * each["macs"], "{:.1f} %"),
                _spread(measured, lambda each: each["macs"] / each["latency"][0], "{:.2f}"),
                f"{_spread(facts, lambda each: len(each['dropped']), '{:.0f}')} of {facts[0]['blocks']}",
                f"{mean(each['wall_s'] for each in facts) / 60:.0f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _differences(found: Mapping[Cell, Facts]) -> list[str]:
    """Points by which the search over both is above another row, for each seed, with the paired 95 % interval."""
    lines = [
        "| network | latency allowed | depth and width against | seeds | mean difference | 95 % interval of each seed |",
        "| --- | --: | --- | --: | --: | --- |",
    ]
    for network, budget in _places(found):
        both = _of(found, network, budget, "both")
        for row in AGAINST:
            other = _of(found, network, budget, row)
            shared = [seed for seed in both if seed in other]
            if not shared:
                continue
            kind = "hits" if all("hits" in each[seed] for each in (both, other) for seed in shared) else "agreements"
            drops = [paired_drop(_scores(both[seed], kind), _scores(other[seed], kind)) for seed in shared]
            known = [drop.estimate for drop in drops if drop]
            unit = "points of accuracy" if kind == "hits" else "points of agreement"
            intervals = ", ".join(f"{each.value:+.1f} [{each.low:+.1f}, {each.high:+.1f}]" for each in known)
            average = mean(each.value for each in known)
            lines.append(f"| {network} | {budget} % | {ROWS[row]} | {len(shared)} | {average:+.1f} {unit} | {intervals} |")
    return lines


def _places(found: Mapping[Cell, Facts]) -> list[tuple[str, int]]:
    known = {(cell.network, cell.budget) for cell in found}
    return [(network, budget) for network in NETWORKS for budget in BUDGETS if (network, budget) in known]


def _of(found: Mapping[Cell, Facts], network: str, budget: int, row: str) -> dict[int, Facts]:
    """The finished cells of one row, by seed."""
    place = (network, budget, row)
    cells = sorted((cell for cell in found if (cell.network, cell.budget, cell.row) == place), key=lambda cell: cell.seed)
    return {cell.seed: found[cell] for cell in cells}


def _scores(facts: Facts, kind: str) -> Scores:
    each = np.where(unpacked(facts, kind), 100.0, 0.0)
    return Scores(float(each.mean()), each)


def _spread(facts: list[Facts], value: Callable[[Facts], float], form: str) -> str:
    """Mean, and the smallest and largest value if there are several that differ."""
    values = [value(each) for each in facts]
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return form.format(mean(values)) if low == high else f"{form.format(mean(values))} ({low} to {high})"
