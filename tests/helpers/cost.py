"""The processor time of each test, which says more than its duration, because other programs do not change it much."""

import os
from collections import Counter
from collections.abc import Generator

import pytest

__all__ = ["print_costs", "pytest_runtest_makereport"]

MOST_S = 20.0
"""A default test that takes more is named at the end."""
_used = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report what was used since the last one, by this process and by those that it started and that have ended."""
    report = yield
    now = sum(os.times()[:4])
    report.processor_s = now - item.config.stash.get(_used, now)
    item.config.stash[_used] = now
    return report


def print_costs(reporter: pytest.TerminalReporter) -> None:
    """Print the total, and warn of each costly test that is not marked as slow."""
    costs: Counter[str] = Counter()
    for report in (each for found in reporter.stats.values() for each in found if hasattr(each, "processor_s")):
        costs[f"{report.nodeid}{' (slow)' * ('slow' in report.keywords)}"] += report.processor_s
    if costs:
        reporter.write_line(f"processor time: {sum(costs.values()) / 60:.1f} minutes")
    for name, seconds in costs.most_common():
        if seconds > MOST_S and not name.endswith(" (slow)"):
            reporter.write_line(f"warning: {name} took {seconds:.0f} s of processor time; CONTRIBUTING.md says how to save some")
