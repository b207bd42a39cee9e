"""The screen: lines in a log, a bar on a terminal."""

import io

from rich.console import Console

from pipeline.cli.screen import Screen
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure
from pipeline.core.plan import ChannelPlan


def log(**options: bool) -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    return Screen(Console(file=written, width=100, highlight=False, markup=False, color_system=None, **options)), written


def candidate(score: float | None, failure: Failure | None = None) -> Candidate:
    return Candidate(ChannelPlan((("a", 4),)), 123_456, 0, 0, "", None, score, failure)


def test_a_log_gets_a_line_for_every_tenth() -> None:
    screen, written = log()
    for epoch in range(2):
        for done in range(1, 41):
            screen.progress(done, 40, f"epoch {epoch}")
    lines = written.getvalue().splitlines()

    assert [line.split()[0] for line in lines[:3]] == ["2", "12", "22"]
    assert lines[-1] == "  100 % epoch 1"
    assert len(lines) == 22


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    screen, written = log(force_terminal=True)
    screen.progress(50, 100, "epoch 1")
    screen.phase("ship", "export")
    screen.close()

    assert "━" in written.getvalue()
    assert written.getvalue().rstrip().splitlines()[-1].endswith("ship       export  (after 0 s)")


def test_a_bar_takes_the_total_of_its_last_step() -> None:
    screen, written = log(force_terminal=True)
    screen.progress(10, 10, "short")
    screen.progress(25, 100, "long")
    screen.close()

    assert " 25 %  long" in written.getvalue()
    assert "250 %" not in written.getvalue()


def test_a_trial_is_one_line_whatever_came_of_it() -> None:
    screen, written = log()
    best = candidate(97.5)
    screen.trial(1, 12, best, best, "within", best)
    screen.trial(2, 12, candidate(None, Failure("killed", "9 GiB [of] 4\nmore" + 90 * "x")), best, "over", best)
    screen.trial(3, 12, candidate(12.0), best, "undecided", None)
    lines = written.getvalue().splitlines()

    assert lines[0].startswith("   1/12 p50     ?  123.46k params  score  97.50  within     best 97.50")
    assert lines[1].startswith("   2/12 killed: 9 GiB [of] 4")
    assert len(lines) == 3
    assert lines[2].startswith("   3/12 p50     ?  123.46k params  score  12.00  undecided  none yet")


def test_brackets_are_shown_as_they_are() -> None:
    screen, written = log()
    screen.say("shape [/b] of [red]")
    screen.notice("shape [/b] of [red]")

    assert [line.rstrip() for line in written.getvalue().splitlines()] == ["  shape [/b] of [red]", "  note: shape [/b] of [red]"]
