"""Which figure says best which blocks to drop? Run: python benchmarks/block_priors.py --help

Half of the blocks are dropped by an order, and the network is recovered from a few hundred pictures without labels. Blocks of the
ResNets for CIFAR-10 save about as much latency each, so the plans are about equally fast. The orders:

    even            spread evenly from input to output
    outputs         difference of the outputs without the block alone, after the layers behind it were fitted by least squares
    agreement       agreement without the block alone, on the validation and training pictures
    recoverability  PRACTISE's, see practise.py

Each order and seed is one raw line in results/block_priors.jsonl, and is not run again. --table prints the table.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import click
import torch
from depth_bench import Bench, Sources, start_bench
from depth_cells import Settings
from practise import recoverabilities
from torch import nn

from pipeline.core.plan import ChannelPlan
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.stages.finetune_chosen import kept_inputs_of
from pipeline.stages.search_space import search_space
from pipeline.training.scoring import hits, measure_shifts
from pipeline.training.statistics_shift import kept_shifts, set_shifts
from pipeline.training.task import Classification
from pipeline.training.teacher import Teacher

RESULTS = Path(__file__).with_name("results") / "block_priors.jsonl"
ORDERS = ("even", "outputs", "agreement", "recoverability")
SETTINGS = Settings(pictures=500, validation=100, test=1000, epochs=8)

Line = dict[str, Any]


@click.command()
@click.option("--network", "networks", multiple=True, default=("resnet20", "resnet56"), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--orders", default=",".join(ORDERS), show_default=True)
@click.option("--cifar", type=click.Path(path_type=Path), default=Path("cifar10-jpeg"), show_default=True)
@click.option("--scratch", type=click.Path(path_type=Path), default=Path("runs/depth"), show_default=True)
@click.option("--table", is_flag=True, help="Run nothing; print the table.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(networks: tuple[str, ...], seeds: int, orders: str, cifar: Path, scratch: Path, table: bool, out: Path) -> None:
    """Run what is missing, and print the table."""
    torch.set_num_threads(1)
    for network in () if table else networks:
        bench: Bench | None = None
        for seed in range(seeds):
            known = {(line["network"], line["seed"], line["order"]) for line in lines_of(out)}
            missing = [order for order in orders.split(",") if (network, seed, order) not in known]
            if missing:
                bench = bench or start_bench(network, Sources(cifar, None, scratch), SETTINGS)
                for line in _run(bench, seed, missing):
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"network": network, "seed": seed, **line}) + "\n")
    print(table_of(lines_of(out)))


def _run(bench: Bench, seed: int, orders: list[str]) -> Iterator[Line]:
    builder, task = bench.of_seed(seed)
    batches = [pixels for pixels, _ in task.calibration()]
    reconstruction = start_reconstruction(builder.module, builder.space, batches)
    shifts = measure_shifts(builder.module, task.statistics_images())
    even = search_space(builder, 4).uniform(1.0, 0.5)
    count = len(even.dropped)

    def cut(plan: ChannelPlan) -> nn.Module:
        kept = builder.kept(plan)
        module = shrink(builder.module, builder.space, kept).eval()
        reconstruction.apply(module, kept)
        set_shifts(module, kept_shifts(shifts, builder.space, kept))
        return module

    for order in orders:
        started = time.process_time()
        cost = _costs(order, builder, task, reconstruction, cut)
        taken = time.process_time() - started
        names = sorted(cost, key=lambda name: cost[name])[:count] if cost else list(even.dropped)
        plan = builder.space.plan(dict(builder.space.dense()), names)
        module = cut(plan)
        task.score(module)  # it estimates the statistics
        before = 100 * float(hits(module, task.splits.test).mean())
        teacher = Teacher(builder.module, kept_inputs_of(builder.module, builder.space, builder.kept(plan)))
        with tempfile.TemporaryDirectory() as scratch:
            tuned = task.finetune(module, teacher, seed, Path(scratch) / "state", lambda *_: None)
        after = 100 * float(hits(tuned.module, task.splits.test).mean())
        figures = {"before": before, "after": after, "processor_s": round(taken, 1)}
        yield {"order": order, "dropped": list(plan.dropped), **figures, "costs": cost}


def _costs(
    order: str,
    builder: PrunedModelBuilder,
    task: Classification,
    reconstruction: Reconstruction,
    cut: Callable[[ChannelPlan], nn.Module],
) -> dict[str, float]:
    """What each block costs by `order`; nothing for "even"."""
    if order == "outputs":
        return reconstruction.block_errors()
    if order == "recoverability":
        return recoverabilities(builder, task.splits.train, task.seed)
    plans = {block.name: builder.space.plan(dict(builder.space.dense()), [block.name]) for block in builder.space.blocks}
    return {name: -task.score(cut(plan)) for name, plan in plans.items()} if order == "agreement" else {}


def lines_of(path: Path) -> list[Line]:
    """All raw lines."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table_of(lines: list[Line]) -> str:
    """One line for each network and order."""
    rows = [
        "| network | order | seeds | agreement before recovery | after recovery, each seed | mean | seconds to find the order |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for network in dict.fromkeys(line["network"] for line in lines):
        for order in ORDERS:
            found = [line for line in lines if (line["network"], line["order"]) == (network, order)]
            found.sort(key=lambda line: line["seed"])
            if found:
                each = ", ".join(f"{line['after']:.1f}" for line in found)
                after, took = (mean(line[name] for line in found) for name in ("after", "processor_s"))
                known = [line["before"] for line in found if "before" in line]  # the first lines had another figure
                before = f"{mean(known):.1f} %" if known else ""
                rows.append(f"| {network} | {order} | {len(found)} | {before} | {each} | {after:.1f} % | {took:.0f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
