"""The screen: lines in a log, a bar on a terminal, and no long silence on either."""

import contextlib
import errno
import io

import pytest
from helpers.workers import until
from rich.console import Console

from pipeline.cli.screen import Screen
from pipeline.cli.terminal import OutputLost, make_console
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure
from pipeline.core.plan import ChannelPlan


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def log(clock: Clock | None = None, **options: bool) -> tuple[Screen, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, width=100, highlight=False, markup=False, color_system=None, **options)
    return Screen(console, clock=clock), written


def for_seconds(seconds: int, screen: Screen, clock: Clock) -> None:
    """So many seconds pass, in each of which the screen's thread looks once."""
    for _ in range(seconds):
        clock.now_s += 1
        screen.beat()


def candidate(score: float | None, failure: Failure | None = None) -> Candidate:
    return Candidate(ChannelPlan((("a", 4),)), 123_456, 0, 0, "", None, score, failure)


def test_in_a_log_no_stage_is_silent_for_more_than_five_seconds() -> None:
    clock = Clock()
    screen, written = log(clock)
    screen.phase("analyse", "find the groups")
    for_seconds(13, screen, clock)

    assert written.getvalue().splitlines()[1:] == [
        "  analyse: at work for 4 s",
        "  analyse: at work for 8 s",
        "  analyse: at work for 12 s",
    ]


def test_a_stage_that_is_counted_shows_its_share_and_the_time_left() -> None:
    """ten steps of one second, of which one is done each second"""
    clock = Clock()
    screen, written = log(clock)
    screen.phase("fine-tune", "10 steps")
    for done in range(1, 11):
        for_seconds(1, screen, clock)
        screen.progress(done, 10, "epoch 1")

    assert written.getvalue().splitlines()[1:] == [
        "  fine-tune: 30 % after 4 s, 9 s left; epoch 1",
        "  fine-tune: 70 % after 8 s, 3 s left; epoch 1",
    ]


def test_the_time_left_of_a_resumed_stage_is_that_of_the_steps_that_are_done_now() -> None:
    """it begins at step 80 of 100; the next step takes two seconds, and the one after it has taken two so far"""
    clock = Clock()
    screen, written = log(clock)
    for done in (80, 81, 82):
        screen.progress(done, 100, "epoch 9")
        for_seconds(2, screen, clock)

    assert written.getvalue().splitlines() == ["  start: 81 % after 4 s, 1:16 left; epoch 9"]


def test_the_second_count_of_a_stage_is_shown_by_its_name_and_does_not_claim_to_be_the_whole_stage() -> None:
    """three of three measurements are done, and then 256 of 1,024 images are tested each second"""
    clock = Clock()
    screen, written = log(clock)
    screen.phase("ship", "measure and test")
    for done in range(4):
        screen.progress(done, 3, "measuring")
        for_seconds(1, screen, clock)
    for done in range(3):
        screen.progress(256 * done, 1024, "testing")
        for_seconds(2, screen, clock)

    assert written.getvalue().splitlines()[1:] == [
        "  ship: at work for 4 s",
        "  ship: at work for 8 s; testing: 25 %, 12 s left",
    ]


def test_quick_stages_show_nothing_but_their_lines() -> None:
    """each takes three seconds, and reports its progress"""
    clock = Clock()
    screen, written = log(clock)
    for name in ("load", "analyse", "rehearse"):
        screen.phase(name, "")
        for done in range(1, 4):
            screen.progress(done, 3, "steps")
            for_seconds(1, screen, clock)

    assert [line.split()[0] for line in written.getvalue().splitlines()] == ["load", "analyse", "rehearse"]


def test_the_heartbeat_waits_after_every_other_line() -> None:
    clock = Clock()
    screen, written = log(clock)
    for _ in range(5):
        screen.say("a result")
        for_seconds(3, screen, clock)

    assert written.getvalue().split() == 5 * ["a", "result"]


def test_work_that_is_not_counted_is_named() -> None:
    clock = Clock()
    screen, written = log(clock)
    screen.progress(0, 0, "board: health")
    for_seconds(4, screen, clock)

    assert written.getvalue() == "  start: at work for 4 s; board: health\n"


def test_a_step_that_comes_again_says_how_long_it_took_before() -> None:
    """ten seconds in the rehearsal, and more at the end"""
    clock = Clock()
    screen, written = log(clock)
    screen.phase("rehearse", "")
    screen.progress(0, 0, "exporting")
    for_seconds(10, screen, clock)
    screen.phase("export", "")
    for_seconds(3, screen, clock)
    screen.progress(0, 0, "exporting")
    for_seconds(13, screen, clock)

    assert written.getvalue().splitlines()[4:] == [
        "  export: at work for 4 s; exporting, about 9 s left (it took 10 s before)",
        "  export: at work for 8 s; exporting, about 5 s left (it took 10 s before)",
        "  export: at work for 12 s; exporting, about 1 s left (it took 10 s before)",
        "  export: at work for 16 s; exporting (it took 10 s before)",
    ]


def test_the_time_before_the_first_stage_has_a_name() -> None:
    clock = Clock()
    screen, written = log(clock)
    for_seconds(4, screen, clock)

    assert written.getvalue() == "  start: at work for 4 s\n"


def test_between_two_slow_trials_the_search_says_how_far_it_is() -> None:
    """trials of ten seconds"""
    clock, best = Clock(), candidate(97.5)
    screen, written = log(clock)
    screen.phase("search", "random")
    for number in (1, 2, 3, 4):
        for_seconds(10, screen, clock)
        screen.trial(number, 6, best, best, "within", best)
    for_seconds(4, screen, clock)

    assert written.getvalue().splitlines()[-1] == "  search: 67 % after 44 s, 22 s left; trial 4 of 6 is finished"


def test_a_unit_that_takes_long_makes_the_time_left_longer() -> None:
    """of two units the first took four seconds"""
    clock = Clock()
    screen, written = log(clock)
    screen.phase("rehearse", "")
    screen.progress(0, 2, "a step is trained")
    for_seconds(4, screen, clock)
    screen.progress(1, 2, "a file is exported")
    for_seconds(16, screen, clock)

    assert written.getvalue().splitlines()[-1] == "  rehearse: 50 % after 20 s, 20 s left; a file is exported"


def test_what_silences_a_library_does_not_silence_the_heartbeat(capsys: pytest.CaptureFixture[str]) -> None:
    """the exporter of torch prints, and it is silenced for as long as it runs"""
    clock = Clock()
    screen = Screen(make_console(), clock=clock)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for_seconds(4, screen, clock)

    assert capsys.readouterr().out == "  start: at work for 4 s\n"


def test_a_terminal_gets_a_bar_when_a_stage_is_silent() -> None:
    clock = Clock()
    screen, written = log(clock, force_terminal=True)
    screen.phase("analyse", "find the groups")
    for_seconds(3, screen, clock)
    quick = written.getvalue()
    for_seconds(2, screen, clock)
    screen.close()

    assert "at work" not in quick
    assert "analyse: at work for 5 s" in written.getvalue()


class Full(io.StringIO):
    """Standard output on a disk that is full."""

    def write(self, text: str) -> int:
        raise OutputLost(OSError(errno.ENOSPC, "no space left on device"))


def test_when_the_heartbeat_finds_the_output_lost_the_command_ends_at_its_next_line() -> None:
    clock = Clock()

    def command() -> None:
        with Screen(Console(file=Full()), clock=clock) as screen:
            clock.now_s += 10
            assert until(lambda: not screen.alive)
            screen.progress(1, 2, "epoch 1")

    with pytest.raises(OutputLost):
        command()


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    screen, written = log(force_terminal=True)
    screen.progress(50, 100, "epoch 1")
    screen.phase("ship", "export")
    screen.close()

    assert "━" in written.getvalue()
    assert written.getvalue().rstrip().splitlines()[-1].endswith("ship       export  (after 0 s)")


def test_a_bar_takes_the_total_of_its_last_step() -> None:
    clock = Clock()
    screen, written = log(clock, force_terminal=True)
    screen.progress(10, 10, "short")
    clock.now_s += 1
    screen.progress(25, 100, "long")
    screen.close()

    assert "start: at work for 1 s; long: 25 %" in written.getvalue()
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
