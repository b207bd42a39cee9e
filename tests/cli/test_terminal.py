"""The standard streams and Ctrl-C, each with a real process."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from pipeline.cli.terminal import make_console

PROGRAM = """
import os, signal, sys, time
import click
from pipeline.cli.terminal import print_line, run_command

@click.command()
def command():
{body}

sys.exit(run_command(command))
"""
PRINT = "    for number in range(20_000):\n        click.echo(f'line {number}')"
DEVICE_FULL = Path("/dev/full")


def program(body: str, **streams: object) -> subprocess.Popen[str]:
    source = PROGRAM.format(body=body)
    return subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True, **streams)  # type: ignore[call-overload, no-any-return]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what stands on standard error."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_reader_that_has_gone_ends_a_command_with_141_and_no_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = program(PRINT, stdout=writing)
    os.close(writing)

    assert ended(process) == (141, "")


@pytest.mark.parametrize("body", [PRINT, "    click.echo('one line, still buffered at the end')"], ids=["much", "little"])
@pytest.mark.skipif(not DEVICE_FULL.exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_ends_a_command_with_53_and_one_line(body: str) -> None:
    with DEVICE_FULL.open("w") as full:
        found = ended(program(body, stdout=full))

    assert found == (53, "compress: standard output cannot be written (No space left on device)\n")


@pytest.mark.skipif(not DEVICE_FULL.exists(), reason="no /dev/full here")
def test_compress_itself_ends_so() -> None:
    with DEVICE_FULL.open("w") as full:
        source = "import sys; from pipeline.cli.main import main; sys.argv = ['compress', '--help']; main()"
        done = subprocess.run([sys.executable, "-c", source], stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert (done.returncode, done.stderr) == (53, "compress: standard output cannot be written (No space left on device)\n")


def test_with_standard_output_closed_a_command_does_its_work_and_no_file_gets_its_number(tmp_path: Path) -> None:
    body = f"    with open({str(tmp_path / 'journal')!r}, 'w') as file:\n        click.echo('hello')\n        os.write(1, b'noise')\n        file.write('kept')"

    found = ended(program(body, preexec_fn=lambda: os.close(1)))

    assert found == (0, "")
    assert (tmp_path / "journal").read_text() == "kept"


def test_what_cannot_be_written_on_standard_error_does_not_end_a_command() -> None:
    source = PROGRAM.format(body="    click.echo('note', err=True)\n    click.echo('result')")
    with DEVICE_FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=full, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "result\n")


def test_a_character_that_the_terminal_s_encoding_lacks_is_printed_as_an_escape() -> None:
    process = program(
        "    print_line('40 C, \\u6a21\\ud800')", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    printed, errors = process.communicate(timeout=60)

    assert (printed, errors) == ("40 C, \\u6a21\\ud800\n", "")


TIDIES_UP_FOR_EVER = """
    try:
        click.echo("ready"); sys.stdout.flush()
        time.sleep(60)
    finally:
        try:
            click.echo("tidying"); sys.stdout.flush()
            time.sleep(60)
        finally:
            click.echo("still tidying"); sys.stdout.flush()
            time.sleep(60)
"""


@pytest.mark.parametrize(
    ("body", "presses"),
    [
        ("    click.echo('ready'); sys.stdout.flush()\n    time.sleep(60)", 1),
        (TIDIES_UP_FOR_EVER, 3),
    ],
    ids=["once", "three times"],
)
def test_ctrl_c_ends_a_command_with_130_and_no_traceback(body: str, presses: int) -> None:
    process = program(body, stdout=subprocess.PIPE)
    assert process.stdout
    for _ in range(presses):
        process.stdout.readline()  # it has come to its next sleep
        process.send_signal(signal.SIGINT)
    code, errors = ended(process)

    assert code == 130
    assert "Traceback" not in errors


HOSTILE = "\x1b]0;title\x07\x1b[2Jname\u202e"


def as_text(text: str) -> object:
    return text


def as_styled_text(text: str) -> object:
    return Text(text, style="bold red")


def as_cell(text: str) -> object:
    table = Table()
    table.add_column(text)
    table.add_row(text)
    return table


@pytest.mark.parametrize("shape", [as_text, as_styled_text, as_cell])
def test_hostile_text_reaches_a_terminal_as_escapes_however_it_is_printed(
    shape: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    console = make_console()
    console.print(shape(HOSTILE), soft_wrap=True)
    printed = capsys.readouterr().out

    assert "\\x1b[2Jname\\u202e" in printed.replace("\n", "")
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", printed)
