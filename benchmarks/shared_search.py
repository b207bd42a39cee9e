"""One search for several budgets against a search for each. Run: python benchmarks/shared_search.py --help

Both run on recorded plans (`plan_tables.py`), with the noise of measurements. The separate searches have `--trials` trials each.
The shared search has `--total` trials for all budgets together, and every plan counts for every budget
(`pipeline/search/several_budgets.py`). Results are judged as in `table_searches.py`.

A finished search is a line in the results, and is not run again.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from intervals import mean_difference
from plan_tables import PlanTable
from table_searches import ROWS, cached_table, outcome, searcher_of

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation
from pipeline.search.several_budgets import several_budgets
from pipeline.system.files import write_atomically

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.toys import requested

RESULTS = Path(__file__).parent / "results" / "shared_search.jsonl"


@click.command()
@click.option("--network", default="resnet20", show_default=True)
@click.option("--budget", "budgets", multiple=True, type=float, default=(0.5, 0.35, 0.25), show_default=True)
@click.option("--searcher", "names", multiple=True, type=click.Choice(ROWS), default=("surrogate",), show_default=True)
@click.option("--trials", default=60, show_default=True, help="Of each separate search.")
@click.option("--total", "totals", multiple=True, type=int, default=(60, 90), show_default=True, help="Of the shared search.")
@click.option("--seeds", default=20, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--table", is_flag=True, help="Run nothing; print what there is.")
def main(
    network: str,
    budgets: tuple[float, ...],
    names: tuple[str, ...],
    trials: int,
    totals: tuple[int, ...],
    seeds: int,
    results: Path,
    table: bool,
) -> None:
    """Run the searches that are missing, seed by seed, and print the tables."""
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    wanted = [*(((budget,), trials) for budget in budgets), *((budgets, total) for total in totals)]
    for seed in range(seeds) if not table else ():
        for name in names:
            for together, count in wanted:
                key = {"network": network, "searcher": name, "budgets": list(together), "trials": count, "seed": seed}
                if not any(key.items() <= line.items() for line in lines):
                    lines.append({**key, **run_search(cached_table(network), together, name, count, seed)})
        write_atomically(results, "".join(json.dumps(line) + "\n" for line in lines).encode())
        print(f"seed {seed}, {time.process_time():.0f} s of processor time", file=sys.stderr, flush=True)
    for name in names:
        found = [line for line in lines if (line["network"], line["searcher"]) == (network, name) and line["seed"] < seeds]
        print(f"{name}:\n\n{table_of(found, budgets, trials, totals)}\n")


def run_search(table: PlanTable, budgets: tuple[float, ...], name: str, trials: int, seed: int) -> dict[str, Any]:
    """One search for `budgets`, and its result for each."""
    started = time.process_time()
    boxes = [table.evaluations(budget, seed) for budget in budgets]

    def evaluate(plan: ChannelPlan) -> Evaluation:
        found = [box(plan) for box in boxes]
        return replace(found[0], violations=tuple(each.violations[0] for each in found))

    make = several_budgets(searcher_of(table, name), [(place,) for place in range(len(budgets))])
    asked = requested(table.space, evaluate, make, trials, seed)
    seconds = round(time.process_time() - started, 2)
    results = {}
    for place, budget in enumerate(budgets):
        own = [replace(answer, violations=(answer.violations[place],)) for answer in asked]
        results[str(budget)] = outcome(table, budget, own)
    return {"asked": len(asked), "seconds": seconds, "results": results}


def table_of(lines: list[dict[str, Any]], budgets: tuple[float, ...], trials: int, totals: tuple[int, ...]) -> str:
    """Mean scores by budget, and in brackets the mean difference to the separate searches on the same seeds, with its 95 %
    interval.
    """
    separate = {str(budget): _scores(lines, (budget,), trials, budget) for budget in budgets}
    rows = [_row(f"{len(budgets)} searches of {trials}", len(budgets) * trials, separate, separate)]
    for total in totals:
        shared = {str(budget): _scores(lines, budgets, total, budget) for budget in budgets}
        rows.append(_row("one search", total, shared, separate))
    head = " | ".join(f"{budget:.0%}" for budget in budgets)
    return f"| searches | trials | {head} | mean | seeds |\n| --- |{' --: |' * (len(budgets) + 3)}\n" + "\n".join(rows)


def _scores(lines: list[dict[str, Any]], together: tuple[float, ...], trials: int, budget: float) -> dict[int, float]:
    """Seed -> score under `budget`."""
    return {
        line["seed"]: line["results"][str(budget)]["score"]
        for line in lines
        if line["budgets"] == list(together) and line["trials"] == trials
    }


def _row(title: str, trials: int, scores: dict[str, dict[int, float]], others: dict[str, dict[int, float]]) -> str:
    seeds = sorted(set.intersection(*(set(each) for each in (*scores.values(), *others.values()))))
    found, base = (np.asarray([[each[seed] for seed in seeds] for each in which.values()]) for which in (scores, others))
    cells = []
    for mine, its in zip([*found, found.mean(0)], [*base, base.mean(0)], strict=True):
        cells.append(f"{mine.mean():.2f}" + ("" if scores is others else f" ({mean_difference(list(mine - its))})"))
    return f"| {title} | {trials} | {' | '.join(cells)} | {len(seeds)} |"


if __name__ == "__main__":
    main()
