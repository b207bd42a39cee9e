"""Screen for a ranking: the providers and numbers of threads of a machine, the fastest first."""

from dataclasses import asdict
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.screen_layers import short
from pipeline.cli.screen_measured import figures_line, file_facts, show_failure
from pipeline.core.profile import Provider
from pipeline.measuring.everywhere import Ranked, Ranking

__all__ = ["print_ranking", "ranking_json"]


def print_ranking(console: Console, found: Ranking, *, random_inputs: bool) -> None:
    """Print a table with a row for each configuration, the reasons of those that failed, and what to write into the profile."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "provider", "threads", "p50 in ms", "p90 in ms", "times the row above"):
        table.add_column(title, justify="left" if title in ("provider", "times the row above") else "right")
    for number, each in enumerate(found.ranked, start=1):
        p50, p90 = each.measured.latency_p50_ms, each.measured.latency_p90_ms
        table.add_row(
            str(number),
            short(each.configuration.provider),
            str(each.configuration.threads),
            f"{_ms(p50.value)} [{_ms(p50.low)}, {_ms(p50.high)}]",
            _ms(p90.value) if p90 else "few runs",
            _against(each),
        )
    console.print(table)
    told = {f"{each.configuration.provider}: {each.fallback}" for each in found.ranked if each.fallback}
    told |= {f"{each.configuration}: {remark.text}" for each in found.ranked for remark in each.measured.doubts}
    for text in sorted(told):
        console.print(Text(text, style="bold yellow"), soft_wrap=True)
    for where, failure in found.failed:
        text = f"{where}: {show_failure(failure, random_inputs=random_inputs)}"
        console.print(Text(text, style="bold red"), soft_wrap=True)
    if found.ranked:
        console.print(_advice(found), soft_wrap=True)
    console.print(Text(figures_line(found.fingerprint, found.period_ms, of_one_configuration=False), style="dim"))


def ranking_json(found: Ranking) -> dict[str, Any]:
    """The ranking for scripts, with the raw runs."""
    return {
        **file_facts(found.path, found.size_bytes, found.inputs),
        "period_ms": found.period_ms,
        "ranked": [_ranked_json(each) for each in found.ranked],
        "failed": [{"configuration": where, **asdict(failure)} for where, failure in found.failed],
    }


def _ranked_json(each: Ranked) -> dict[str, Any]:
    measured = each.measured
    return {
        "provider": each.configuration.provider,
        "threads": each.configuration.threads,
        "latency_p50_ms": asdict(measured.latency_p50_ms),
        "latency_p90_ms": asdict(measured.latency_p90_ms) if measured.latency_p90_ms else None,
        "ratio_to_the_one_above": asdict(each.above) if each.above else None,
        "slower_than_the_one_above": each.slower if each.above else None,
        "fallback": each.fallback,
        "memory": asdict(measured.memory),
        "remarks": [remark.text for remark in measured.remarks],
        "fingerprint": {**asdict(measured.fingerprint), "settings": dict(measured.fingerprint.settings)},
        "processes": [asdict(process) for process in measured.processes],
    }


def _ms(value: float) -> str:
    """A latency with digits to the microsecond, or to the tenth of a millisecond if it is long."""
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _against(each: Ranked) -> Text:
    if each.above is None:
        return Text("")
    interval = f"[{each.above.low:.2f}, {each.above.high:.2f}]"
    return Text(f"{each.above.value:.2f} {interval}") if each.slower else Text(f"undecided {interval}", style="yellow")


def _advice(found: Ranking) -> str:
    """Which configuration to choose. Those that are not decidedly slower than the fastest are named with it."""
    first = found.ranked[0]
    equal = 1
    while equal < len(found.ranked) and not found.ranked[equal].slower:
        equal += 1
    provider, threads = first.configuration.provider, first.configuration.threads
    text = f"\nfastest: {first.configuration}"
    if equal > 1:
        text = f"\nfastest: undecided between the first {equal} rows; the first is {first.configuration}"
    if provider in get_args(Provider):
        text += f"; in a profile: runtime: {{execution_provider: {provider}, threads: {threads}}}"
    return text
