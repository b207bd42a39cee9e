"""Searchers on recorded plans, at equal trials. Run: python benchmarks/table_searches.py --help

A search takes seconds, because the evaluations come from a table of real measurements (`plan_tables.py`), with their noise. The
result of a search is the plan with the best score among the eight best that it found within the budget, provided that its latency
without noise is within it too: a run measures that many plans again after its search. A search without such a plan gets the score
of the best uniform plan that is.

A finished search is a line in the results, and is not run again.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from generated_tables import generated_table
from intervals import mean_difference
from plan_tables import PlanTable, load_table

from pipeline.core.plan import ChannelPlan
from pipeline.search.amortised_policy import path_of_policy
from pipeline.search.pretrained import PretrainedSettings, search_from_path
from pipeline.search.problem import Evaluation, Problem, Searcher, SearcherFactory
from pipeline.search.searchers import SEARCHERS
from pipeline.search.sensitivity import path_of
from pipeline.system.files import write_atomically

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.toys import requested

FINALISTS = 8
"""Number of plans that a run measures again after its search."""
TRIALS = (10, 20, 60)
"""Results are read after so many trials."""
RESULTS = Path(__file__).parent / "results" / "table_searches.jsonl"
EXTRAS: Mapping[str, tuple[str | PretrainedSettings, str]] = {
    "pretrained, distances": (PretrainedSettings(), "policy"),
    "pretrained, distances, no agent": (PretrainedSettings(agent=None), "policy"),
    "pretrained, sensitivity, no agent": (PretrainedSettings(agent=None), "sensitivity"),
    "pretrained, no agent": (PretrainedSettings(agent=None), "policy without distances"),
    "pretrained, uniform, no agent": (PretrainedSettings(agent=None), "uniform"),
    "surrogate, sensitivity": ("surrogate", "sensitivity"),
    "surrogate, policy": ("surrogate", "policy"),
    "ppo-lagrangian, sensitivity": ("ppo-lagrangian", "sensitivity"),
    "ppo-lagrangian, policy": ("ppo-lagrangian", "policy"),
}
"""Row -> a searcher, or the settings of `pretrained`, and the path on which it starts."""
ROWS = (*SEARCHERS, *EXTRAS)
GENERATED = "generated-"
Searches = Mapping[tuple[str, int], dict[str, Any]]
"""(network, seed) -> the line of a search."""


@click.command()
@click.option("--network", "networks", multiple=True, default=("resnet20",), show_default=True, help="Recorded ones.")
@click.option("--generated", default=0, help="Search this number of held-out generated networks instead, with one seed each.")
@click.option("--budget", "budgets", multiple=True, type=float, default=(0.5, 0.35, 0.25), show_default=True)
@click.option("--searcher", "names", multiple=True, type=click.Choice(ROWS), default=ROWS, help="[default: all]")
@click.option("--trials", default=max(TRIALS), show_default=True)
@click.option("--seeds", default=50, show_default=True)
@click.option("--against", type=click.Choice(ROWS), default="surrogate", show_default=True, help="The row of the differences.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--table", is_flag=True, help="Run nothing; print what there is.")
def main(
    networks: tuple[str, ...],
    generated: int,
    budgets: tuple[float, ...],
    names: tuple[str, ...],
    trials: int,
    seeds: int,
    against: str,
    results: Path,
    table: bool,
) -> None:
    """Run the searches that are missing, seed by seed, and print the tables."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    cells = [(f"{GENERATED}{number}", 0) for number in range(generated)]
    cells = cells or [(network, seed) for seed in range(seeds) for network in networks]
    for network, seed in cells if not table else ():
        for budget in budgets:
            for name in names:
                done = {(line["network"], line["seed"], line["budget"], line["searcher"], line["trials"]) for line in lines}
                if (network, seed, budget, name, trials) not in done:
                    lines.append({"network": network, **run_search(cached_table(network), budget, name, trials, seed)})
        write_atomically(results, "".join(json.dumps(line) + "\n" for line in lines).encode())
        print(f"{network}, seed {seed}, {time.process_time():.0f} s of processor time", file=sys.stderr, flush=True)
    for budget in budgets:
        chosen = [
            line
            for line in lines
            if (line["network"], line["seed"]) in cells and line["budget"] == budget and line["trials"] == trials
        ]
        if chosen:
            print(f"Latency {budget:.0%}:\n\n{table_of(chosen, names, against)}\n")


def run_search(table: PlanTable, budget: float, name: str, trials: int, seed: int) -> dict[str, Any]:
    """One search, and its results after 10, 20 and 60 trials."""
    started = time.process_time()
    asked = requested(table.space, table.evaluations(budget, seed), searcher_of(table, name), trials, seed)
    seconds = time.process_time() - started
    found = {str(count): outcome(table, budget, asked[:count]) for count in TRIALS if count <= trials}
    return {"budget": budget, "searcher": name, "seed": seed, "trials": trials, "seconds": round(seconds, 2), "after": found}


def searcher_of(table: PlanTable, name: str) -> SearcherFactory:
    """The searcher of a row."""
    if name not in EXTRAS:
        return SEARCHERS[name]
    base, start = EXTRAS[name]

    def started(problem: Problem) -> Searcher | None:
        if isinstance(base, PretrainedSettings):
            return search_from_path(problem, _path(table, start), base)
        path = _path(table, start)
        return SEARCHERS[base](replace(problem, path=lambda share, _=1.0: path(share)))

    return started


def outcome(table: PlanTable, budget: float, asked: list[Evaluation]) -> dict[str, float]:
    """The score and the share of the budget that is used, of the result of a search with these evaluations."""
    within = sorted({answer.plan: answer for answer in asked if answer.feasible}.values(), key=lambda answer: -answer.score)
    for answer in within[:FINALISTS]:
        used = float(table.ratios(table.kept(answer.plan))[0]) / budget
        if used <= 1:
            return {"score": round(answer.score, 3), "used": round(used, 4)}
    best = uniform_within(table, budget)
    return {"score": round(float(table.scores(table.kept(best))[0]), 3), "used": 0.0}


@functools.cache
def uniform_within(table: PlanTable, budget: float) -> ChannelPlan:
    """The widest uniform plan within the budget, without noise; the thinnest plan if there is none."""
    plans = [table.space.uniform(share) for share in np.linspace(1, 0, 201)]
    return next((plan for plan in plans if table.ratios(table.kept(plan))[0] <= budget), table.space.thinnest())


def table_of(lines: list[dict[str, Any]], names: tuple[str, ...], against: str) -> str:
    """Mean scores after each number of trials; the best row first.

    In brackets is the mean difference to the row `against`, on the same networks and seeds, with its 95 % interval.
    """
    counts = [str(count) for count in TRIALS if all(str(count) in line["after"] for line in lines)]
    found = {name: {(line["network"], line["seed"]): line for line in lines if line["searcher"] == name} for name in names}
    rows = []
    for name, searches in found.items():
        if not searches:
            continue
        cells = [_cell(searches, found.get(against, {}), count) for count in counts]
        last = float(np.mean([line["after"][counts[-1]]["score"] for line in searches.values()]))
        used = np.mean([line["after"][counts[-1]]["used"] for line in searches.values()])
        seconds = np.mean([line["seconds"] for line in searches.values()])
        rows.append((last, f"| {name} | {' | '.join(cells)} | {used:.1%} | {seconds:.1f} | {len(searches)} |"))
    rows.sort(reverse=True)
    head = " | ".join(f"{count} trials" for count in counts)
    text = "\n".join(row for _, row in rows)
    return f"| searcher | {head} | used | s | searches |\n| --- |{' --: |' * (len(counts) + 3)}\n{text}"


def _cell(searches: Searches, others: Searches, count: str) -> str:
    scores = {key: line["after"][count]["score"] for key, line in searches.items()}
    mean = f"{np.mean(list(scores.values())):.2f}"
    both = [scores[key] - others[key]["after"][count]["score"] for key in scores.keys() & others.keys()]
    if searches is others or len(both) < 2:
        return mean
    return f"{mean} ({mean_difference(both)})"


@functools.cache
def cached_table(network: str) -> PlanTable:
    """The table of a recorded or a generated network."""
    number = network.removeprefix(GENERATED)
    return generated_table(int(number)) if number != network else load_table(network)


def _path(table: PlanTable, start: str) -> Callable[[float], ChannelPlan]:
    if start == "uniform":
        return table.space.uniform
    if start == "policy without distances":
        return path_of_policy(table.space)
    return path_of(table.space, table.distances) if start == "sensitivity" else path_of_policy(table.space, table.distances)


if __name__ == "__main__":
    main()
