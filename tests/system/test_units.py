"""Quantities, as people write them and as we write them back."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.system.units import format_bytes, format_count, format_duration, parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        # time, in ms
        ("40 ms", "ms", 40.0),
        ("40ms", "ms", 40.0),
        (" 0.04 s ", "ms", 40.0),
        ("250 us", "ms", 0.25),
        ("250 µs", "ms", 0.25),
        ("4e1 MS", "ms", 40.0),
        # time, in s
        ("10min", "s", 600.0),
        ("30s", "s", 30.0),
        ("1.5 h", "s", 5400.0),
        ("500ms", "s", 0.5),
        (" 2 MIN", "s", 120.0),
        # rates
        ("10Hz", "hz", 10.0),
        (" 2.5 hz", "hz", 2.5),
        ("30", "hz", 30.0),
        # sizes: kB counts by 1000, KiB by 1024
        ("80 MiB", "bytes", 80 * 2**20),
        ("80 MB", "bytes", 80e6),
        ("1 kib", "bytes", 1024.0),
        (".5 GiB", "bytes", 2**29),
        ("12 B", "bytes", 12.0),
        # counts: plain, or with a factor
        ("1.5M", "count", 1.5e6),
        ("2 G", "count", 2e9),
        ("7k", "count", 7e3),
        (7, "count", 7.0),
        ("1e5", "count", 1e5),
        # points: a number is enough
        (1, "points", 1.0),
        (0.5, "points", 0.5),
        ("2. points", "points", 2.0),
    ],
)
def test_a_quantity_is_read_in_its_unit(text: str | float, unit: str, expected: float) -> None:
    assert parse_quantity(text, unit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        # a number without its unit, and a unit of something else
        ("40", "ms", "expected a number in us or µs or ms or s (got '40'); write for example 40 ms"),
        (40, "ms", "expected a number in us or µs or ms or s (got 40); write for example 40 ms"),
        ("40 MiB", "ms", "expected a number in us or µs or ms or s (got '40 MiB'); write for example 40 ms"),
        ("3 ms", "count", "expected a number in k or m or g (got '3 ms'); write for example 1.5M"),
        ("2 %", "points", "expected a number in points or point (got '2 %'); write for example 1.0"),
        (
            "8 bits",
            "bytes",
            "expected a number in b or kb or mb or gb or kib or mib or gib (got '8 bits'); write for example 80 MiB",
        ),
        # no number that a limit could be
        ("-1", "points", "expected a number in points or point (got '-1'); write for example 1.0"),
        ("", "points", "expected a number in points or point (got ''); write for example 1.0"),
        ("nan", "points", "expected a number in points or point (got 'nan'); write for example 1.0"),
        (float("inf"), "count", "expected a number in k or m or g (got inf); write for example 1.5M"),
        ("1,5 ms", "ms", "expected a number in us or µs or ms or s (got '1,5 ms'); write for example 40 ms"),
        (True, "count", "expected a number in k or m or g (got True); write for example 1.5M"),
        ("1e99", "count", "'1e99' is out of range; write for example 1.5M"),
        ("9" * 400, "count", f"'{'9' * 400}' is out of range; write for example 1.5M"),
    ],
)
def test_what_is_no_quantity_is_refused_with_what_to_write(text: str | float, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_quantity(text, unit)


@given(st.text(max_size=12), st.sampled_from(["ms", "bytes", "count", "points"]))
def test_any_text_is_a_number_above_zero_or_refused(text: str, unit: str) -> None:
    value, refusal = 0.0, "write for example"
    try:
        value = parse_quantity(text, unit)
    except ValueError as refused:
        refusal = str(refused)
    assert "write for example" in refusal
    assert 0 <= value < 1e18


def test_a_size_is_a_whole_number_of_bytes() -> None:
    assert parse_bytes("1.5 KiB") == 1536
    assert isinstance(parse_bytes("1.5 KiB"), int)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (format_bytes(12_345_678), "11.8 MiB"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1024), "1.0 KiB"),
        (format_bytes(3 * 2**30), "3.0 GiB"),
        (format_count(12_345_678), "12.35M"),
        (format_count(999), "999"),
        (format_count(1000), "1.00k"),
        (format_count(2.5e9), "2.50G"),
        (format_duration(4.2), "4 s"),
        (format_duration(59.6), "1:00"),
        (format_duration(65), "1:05"),
        (format_duration(3725), "1:02:05"),
        (format_duration(36_000), "10:00:00"),
    ],
)
def test_quantities_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


@given(st.integers(0, 2**50))
def test_a_size_that_was_written_is_read_back_to_its_last_digit(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=0.05)
