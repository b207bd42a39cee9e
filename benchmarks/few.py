"""How well is a pruned network recovered from few pictures without labels? Run: python benchmarks/few.py --help

Each cell is one recovery and one raw line. Cells that have a raw line are not run again, so the same command continues, and the
most telling cells come first. Limits are in processor time, so a busy machine changes the result little. The score is agreement
with the dense network.
"""

import functools
import json
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import click
from efficientnet_lite0 import missing_packages
from few_bench import Bench, Inputs
from few_cells import NETWORKS, RESULTS, SEEDS, Amount, Cell, Network, cells_of, finished, keep
from few_plans import make_plans, plans_in, widths_of
from few_table import table_of

from pipeline.system.files import write_atomically
from pipeline.system.malloc import keep_freed_memory

PLAN_PICTURES, PLAN_SEED = Amount(200), 1000
"""The pictures from which plans are made."""
FEWEST_STEPS = 64
"""MiR takes as many steps as `auto`, but at least so many."""
PATH = click.Path(path_type=Path)


@click.command()
@click.option("--cifar", type=PATH, help="Pictures of CIFAR-10: a folder with train/ and test/, one sub-folder per class.")
@click.option("--imagenet", type=PATH, help="Pictures of ImageNet: a folder with one sub-folder per class.")
@click.option("--vgg16-weights", type=PATH, help="Weights of VGG-16 for CIFAR-10; they are not in the repository.")
@click.option("--network", "networks", multiple=True, default=tuple(NETWORKS), type=click.Choice(list(NETWORKS)))
@click.option("--seed", "seeds", multiple=True, default=SEEDS, show_default=True)
@click.option("--budget", "budgets", multiple=True, type=int, help="Only these, in percent.")
@click.option("--row", "rows", multiple=True, help="Only these.")
@click.option("--pictures", "amounts", multiple=True, help="Only these, for example '200' or '50 a class'.")
@click.option("--minutes", type=float, help="Start no cell after so many minutes.")
@click.option("--results", type=PATH, default=RESULTS, help="Folder of the plans and the raw lines.")
@click.option("--table", "only_table", is_flag=True, help="Print the table and run nothing.")
def main(
    cifar: Path | None,
    imagenet: Path | None,
    vgg16_weights: Path | None,
    networks: tuple[str, ...],
    seeds: tuple[int, ...],
    results: Path,
    minutes: float | None,
    only_table: bool,
    **only: tuple[object, ...],
) -> None:
    """Run the cells that are missing, and print the table of all cells."""
    keep_freed_memory()
    inputs, started = Inputs(cifar, imagenet, vgg16_weights), time.monotonic()
    chosen = [] if only_table else list(usable([NETWORKS[name] for name in networks], inputs))
    for network in chosen:
        add_plans(network, inputs, results, only["budgets"])
    for cell in in_order(chosen, seeds):
        known = finished(results, cell.network)
        wanted = {"budgets": cell.budget, "rows": cell.row, "amounts": str(cell.amount)}
        if cell in known or any(only[name] and value not in only[name] for name, value in wanted.items()):
            continue
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            break
        run(cell, inputs, results)
    print("\n".join(table_of(results)))


def usable(networks: list[Network], inputs: Inputs) -> Iterator[Network]:
    """The networks that can be examined here. Says why another one cannot."""
    for network in networks:
        missing = missing_packages() if network.name == "efficientnet_lite0" else []
        if missing:
            print(f"{network.name} is skipped: pip install {' '.join(missing)}")
        elif inputs.pictures(network) is None:
            print(f"{network.name} is skipped: give its pictures with --{network.pictures}")
        elif network.needs_weights and inputs.weights is None:
            print(f"{network.name} is skipped: give its weights with --vgg16-weights")
        else:
            yield network


def in_order(networks: list[Network], seeds: tuple[int, ...]) -> Iterator[Cell]:
    """All cells: the most telling setting of each network first."""

    def by_setting(network: Network) -> list[list[Cell]]:
        cells = list(cells_of(network, seeds))
        size = len(cells) // len(network.settings)
        return [cells[first : first + size] for first in range(0, len(cells), size)] if size else []

    for settings in zip_longest(*map(by_setting, networks), fillvalue=[]):
        for cells in settings:
            yield from cells


def run(cell: Cell, inputs: Inputs, results: Path) -> None:
    """Run one cell, and add its raw line."""
    widths = widths_of(results, cell.network, cell.budget)
    assert widths is not None
    steps = 0
    if cell.row == "mir":
        auto = finished(results, cell.network).get(Cell(**{**vars(cell), "row": "auto"}))
        if auto is None:
            print(f"{cell} waits for the row of auto, which gives its number of steps")
            return
        steps = max(int(auto["steps"]), FEWEST_STEPS)
    facts = bench_of(cell.network, inputs, cell.amount, cell.seed).run(cell, widths, steps)
    keep(results, cell, facts)
    shown = {name: value for name, value in facts.items() if name != "hits"}
    print(json.dumps(vars(cell) | shown), flush=True)


@functools.lru_cache(maxsize=len(SEEDS))
def bench_of(network: str, inputs: Inputs, amount: Amount, seed: int) -> Bench:
    """The network with these pictures. The last ones are kept, because exporting a network takes long."""
    return Bench(NETWORKS[network], inputs, amount, seed)


def add_plans(network: Network, inputs: Inputs, results: Path, budgets: tuple[object, ...]) -> None:
    """Make the plans of `network` that are missing, of all its budgets or only of `budgets`, and store them."""
    known = plans_in(results)
    wanted = {budget for _, budget in network.settings if not budgets or budget in budgets}
    missing = sorted(wanted - {int(budget) for budget in known.get(network.name, {})})
    if not missing:
        return
    found = make_plans(Bench(network, inputs, PLAN_PICTURES, PLAN_SEED), tuple(missing))
    known = plans_in(results)
    known[network.name] = known.get(network.name, {}) | {str(budget): plan for budget, plan in found.items()}
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / "plans.json", json.dumps(known, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
