"""Search quality for readers: the table, the ranking and the plot. They are made from raw lines, and quality.py prints them."""

import statistics
from pathlib import Path

import matplotlib as mpl
from cells import Campaign, Cell, Facts, finished
from matplotlib.figure import Figure
from rivals import RIVALS

from pipeline.search.searchers import SEARCHERS
from pipeline.system.units import format_duration

DEFAULT = "ppo-lagrangian"
KNOWN = ("uniform", "random", "torch-pruning, uniform")
OTHERS = (
    *(name for name in SEARCHERS if name != DEFAULT),
    "random, scaled",
    *(name for name, (_, longer) in RIVALS.items() if not longer),
)
"""Rows that the default is compared with. Its own other rewards, and a row with longer training, are not among them."""
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "*", "h", "d", "8", "H", "x", "+", "1", "2")


def table_of(campaign: Campaign, budgets: tuple[str, ...], searchers: tuple[str, ...], seeds: int) -> str:
    """One line for each budget and searcher. Cells that were not run are counted."""
    head = ("budget", "searcher", "test accuracy", "latency p50, % of dense", "of the budget", "within", "time", "not run")
    lines = [f"{campaign.model}\n", f"| {' | '.join(head)} |", f"| --- | --- |{' --: |' * (len(head) - 2)}"]
    known = finished(campaign)
    for budget in budgets:
        for searcher in searchers:
            found = facts_of(known, budget, searcher, seeds)
            if not found:
                lines.append(f"| {budget} | {searcher} | | | | | | {seeds} |")
                continue
            accuracy = spread([float(each["accuracy"]) for each in found], "{:.2f} %")
            latency = spread([100 * float(each["latency_p50"]) for each in found], "{:.1f}")
            used = spread([100 * float(each["used"]) for each in found], "{:.0f} %")
            within = sum(each["verdict"] == "within" for each in found)
            seconds = format_duration(statistics.mean(float(each["seconds"]) for each in found))
            line = (budget, searcher, accuracy, latency, used, f"{within} of {len(found)}", seconds, str(seeds - len(found)))
            lines.append(f"| {' | '.join(line)} |")
    shown = [each for cell, each in known.items() if cell.budget in budgets and cell.searcher in searchers and cell.seed < seeds]
    networks = ", ".join(sorted({f"{each['dense_accuracy']:.2f} %" for each in shown}))
    machines = ", ".join(sorted({each["machine"] for each in shown}))
    return "\n".join(("", *lines, "", f"Dense network: {networks or 'not run'}. Measured on: {machines or 'none'}."))


def facts_of(known: dict[Cell, Facts], budget: str, searcher: str, seeds: int) -> list[Facts]:
    """The finished cells of one row, by seed."""
    return [known[cell] for seed in range(seeds) if (cell := Cell(budget, searcher, seed)) in known]


def standing_of(campaign: Campaign, budgets: tuple[str, ...], seeds: int) -> str:
    """One line for each budget. It compares the default's test accuracy with that of the best of the others, which are the
    searchers and torch-pruning with the same fine-tuning, and with three well-known rows.
    """
    head = ("network", "budget", "seeds", "dense", DEFAULT, "best of the others", "the default is", *KNOWN)
    lines = [f"| {' | '.join(head)} |", f"| --- | --- | --: | --: | --: | --- | --- |{' --: |' * len(KNOWN)}"]
    known = finished(campaign)
    for budget in budgets:
        runs = {name: facts_of(known, budget, name, seeds) for name in (DEFAULT, *OTHERS)}
        found = {name: [float(each["accuracy"]) for each in run] for name, run in runs.items() if run}
        if DEFAULT not in found or len(found) < 2:
            continue
        best = max(found.keys() - {DEFAULT}, key=lambda name: (statistics.mean(found[name]), name))
        dense = " and ".join(sorted({f"{each['dense_accuracy']:.2f} %" for each in runs[DEFAULT]}))
        shown = {name: spread(values, "{:.2f} %") for name, values in found.items()}
        line = [campaign.model, budget, str(len(found[DEFAULT])), dense, shown[DEFAULT], f"{best}: {shown[best]}"]
        line += [verdict(found[DEFAULT], found[best]), *(shown.get(name, "not run") for name in KNOWN)]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def verdict(ours: list[float], theirs: list[float]) -> str:
    """Compares two searchers' accuracies: ahead if every seed of ours is above every seed of theirs, a tie if they overlap."""
    if min(len(ours), len(theirs)) < 2:
        return f"{'ahead' if statistics.mean(ours) > statistics.mean(theirs) else 'behind'}, by one seed"
    if min(ours) > max(theirs):
        return "ahead"
    return "behind" if max(ours) < min(theirs) else "a tie"


def draw(path: Path, campaign: Campaign, budgets: tuple[str, ...], searchers: tuple[str, ...], seeds: int) -> None:
    """Draw each cell as a point. The front joins the points that no other beats in both accuracy and latency."""
    points: list[tuple[float, float]] = []
    everything = finished(campaign)
    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "compress", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for number, searcher in enumerate(searchers):
            cells = [Cell(budget, searcher, seed) for budget in budgets for seed in range(seeds)]
            known = [everything[cell] for cell in cells if cell in everything]
            found = [(100 * float(each["latency_p50"]), float(each["accuracy"])) for each in known]
            if found:
                axes.plot(*zip(*found, strict=True), MARKERS[number % len(MARKERS)], label=searcher, markersize=6, alpha=0.8)
            points += found
        front = [p for p in sorted(points) if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
        if front:
            axes.plot(*zip(*front, strict=True), "-", color="#9aa4b2", linewidth=1, zorder=0, label="Pareto front")
        axes.set_xlabel("latency p50 of the shipped file, % of dense")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(campaign.model, loc="left")
        axes.legend(fontsize=7, ncols=2)
        figure.savefig(path, format="svg", metadata={"Date": None})


def spread(values: list[float], form: str) -> str:
    """Mean, and the smallest and largest value if there are several."""
    text = form.format(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"
