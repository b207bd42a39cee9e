"""Depth beside width at equal trials, under a measured latency. Run: python benchmarks/depth.py --help

For each network and budget, three rows: the search over channels alone, the search over channels and blocks, and the blocks that
PRACTISE chooses. The figures are agreement and accuracy after recovery. All rows get the same pictures without labels, the same
compensation and the same recovery. A cell is one network, budget, row and seed. A finished cell is one line of JSON in the raw
file and is not run again; an interrupted one resumes in the scratch folder. Cells are run one by one, those that tell most first.
The tables of docs/benchmarks/depth.md are written after each cell.
"""

import itertools
import json
import warnings
from pathlib import Path

import click
import torch
from depth_bench import Bench, Skipped, Sources, start_bench
from depth_cells import BUDGETS, NETWORKS, RESULTS, ROWS, Settings, cells, finished, keep
from depth_table import tables, with_tables

from pipeline.system.files import write_atomically
from pipeline.system.malloc import keep_freed_memory

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "depth.md"


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), default=NETWORKS, help="[default: all]")
@click.option("--budget", "budgets", multiple=True, type=int, default=BUDGETS, help="Percent of the latency.  [default: 50, 25]")
@click.option("--row", "rows", multiple=True, type=click.Choice(list(ROWS)), default=list(ROWS), help="[default: all]")
@click.option("--seeds", default=3, show_default=True)
@click.option("--cells", "most", default=0, help="Run at most so many cells.  [default: all]")
@click.option("--cifar", type=click.Path(path_type=Path), default=Path("cifar10-jpeg"), show_default=True, help="train/, test/.")
@click.option("--imagenet", type=click.Path(path_type=Path), help="Folder of images of 224 pixels, in sub-folders.")
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("runs/depth"), show_default=True)
@click.option("--threads", default=1, show_default=True, help="For training and scoring.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="Raw lines.  [default: those in results/]")
@click.option("--table", is_flag=True, help="Run nothing; print the tables.")
def main(
    networks: tuple[str, ...],
    budgets: tuple[int, ...],
    rows: tuple[str, ...],
    seeds: int,
    most: int,
    cifar: Path,
    imagenet: Path | None,
    scratch: Path,
    threads: int,
    out: Path,
    table: bool,
) -> None:
    """Run the cells that are missing, and print the tables."""
    warnings.filterwarnings("ignore")
    settings, sources = Settings(), Sources(cifar, imagenet, scratch)
    if not table:
        keep_freed_memory()
        torch.set_num_threads(threads)
        known = finished(out, settings)
        missing = [cell for cell in cells(networks, budgets, seeds) if cell.row in rows and cell not in known]
        benches: dict[str, Bench | None] = {}
        for cell in itertools.islice(missing, most or None):
            if cell.network not in benches:
                try:
                    benches[cell.network] = start_bench(cell.network, sources, settings)
                except Skipped as problem:
                    benches[cell.network] = None
                    print(f"{cell.network}: skipped: {problem}", flush=True)
            bench = benches[cell.network]
            if bench is not None:
                found = bench.run(cell)
                keep(out, cell, settings, found)
                _write_page(out, settings)
                shown = ("agreement", "accuracy", "latency", "macs", "wall_s", "processor_s")
                print(cell, json.dumps({name: found[name] for name in shown if name in found}), flush=True)
    _write_page(out, settings)
    print(tables(finished(out, settings)))


def _write_page(out: Path, settings: Settings) -> None:
    if out == RESULTS:
        write_atomically(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), finished(out, settings)).encode())


if __name__ == "__main__":
    main()
