"""Which networks can be compressed, and how far. Run: python benchmarks/coverage.py --help

Each network is examined in a process of its own, with limits on processor time and memory. Its result is a raw line in
results/coverage.jsonl. A network whose line was made with the current pipeline/graph is not examined again, so an interrupted run
continues. The last line of a network counts. Every run writes docs/coverage.md from the raw lines.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from coverage_networks import Network, architectures, families
from coverage_page import page
from coverage_runs import PAGE, RESULTS, Limits, Line, append, examined, is_due, lines_of, revision_of_analysis, versions

from pipeline.system.files import write_atomically


@click.command()
@click.option("--families", "which", flag_value="families", default=True, help="One smallest variant of each family.  [default]")
@click.option("--all", "which", flag_value="all", help="Every architecture of timm with at most 30 M parameters.")
@click.option("--only", default="*", metavar="GLOB", help="Networks whose name matches, such as 'torchvision:*' or 'resnet*'.")
@click.option("--failed", is_flag=True, help="Only networks that were not proven when they were last examined.")
@click.option("--limit-s", default=300.0, show_default=True, help="Processor time for one network.")
@click.option("--memory-gib", default=8.0, show_default=True, help="Memory for one network.")
@click.option("--jobs", default=1, show_default=True, help="Networks at a time.")
@click.option("--table", is_flag=True, help="Examine nothing; write the page.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Raw lines.  [default: those in results/]")
def main(which: str, only: str, failed: bool, limit_s: float, memory_gib: float, jobs: int, table: bool, results: Path) -> None:
    """Examine the networks that have no raw line of today's analysis, and write the page."""
    networks = families(only) if which == "families" else architectures(only)
    revision = revision_of_analysis()
    known = {line["network"]: line for line in lines_of(results)}
    todo = [each for each in networks if is_due(known.get(each.name), revision, failed)] if not table else []
    lock = threading.Lock()

    def finish(network: Network) -> None:
        line = examined(network, Limits(limit_s, memory_gib))
        with lock:
            append(results, {"network": network.name, "family": network.family, **revision, **versions(), **line})
            print(_told(network, line), flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(finish, todo))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C it waits for what has begun
    if results == RESULTS:
        lines = lines_of(results)
        shown = [each.name for each in families(known=[line["network"] for line in lines])]
        write_atomically(PAGE, page(lines, shown, [each.name for each in architectures()]).encode())


def _told(network: Network, line: Line) -> str:
    left = f" P {line['params_left']:.1%} M {line['macs_left']:.1%}" if "macs_left" in line else ""
    return f"{network.name}: {line['outcome']}{left} {line.get('processor_s', '?')} s: {line['reason'][:160]}"


if __name__ == "__main__":
    main()
