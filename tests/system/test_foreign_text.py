"""Text from outside: whatever it holds, what is kept of it can be shown on a terminal, encoded and stored."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.errors import one_line
from pipeline.foreign_text import LIMIT, ForeignText, clean_lines, clean_path, clean_text, clean_values, shorten

ANY_TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=60)
"""Every code point, surrogates and control characters included."""


def is_harmless(text: str) -> bool:
    return text.isprintable() and text.encode("utf-8").decode("utf-8") == text


@given(text=ANY_TEXT, limit=st.integers(10, 80))
def test_cleaned_text_is_printable_encodable_and_within_the_limit(text: str, limit: int) -> None:
    cleaned = clean_text(text, limit)

    assert is_harmless(cleaned)
    assert len(cleaned) <= limit


@given(text=ANY_TEXT)
def test_cleaning_what_is_clean_changes_nothing(text: str) -> None:
    cleaned = clean_text(text)

    assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, café, 模型, ®", "plain, café, 模型, ®"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("invoice\u202egnp.exe", r"invoice\u202egnp.exe"),
        ("two\r\nlines\tand a\u00a0tab", "two lines and a tab"),
        ("half \ud800 of a pair", r"half \ud800 of a pair"),
        ("\udce9t\udce9.png", r"\xe9t\xe9.png"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_characters_that_steer_a_terminal_or_an_eye_become_escapes(text: str, shown: str) -> None:
    assert clean_text(text) == shown


@given(text=st.text("ab ", max_size=200), limit=st.integers(8, 60))
def test_a_long_text_keeps_its_beginning_and_its_end(text: str, limit: int) -> None:
    short = shorten(text, limit)
    head, gap, tail = short.partition(" ... ")

    assert len(short) == min(len(text), limit)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert bool(gap) == (len(text) > limit)


def test_the_reason_at_the_end_of_a_long_message_of_onnxruntime_is_kept() -> None:
    signature = "onnxruntime::Model::Model(" + ", ".join(["const onnxruntime::PathString&"] * 20) + ")"

    said = one_line(RuntimeError(f"Load model failed: {signature} Unsupported model IR version: 12, max supported IR version: 9"))

    assert said.startswith("Load model failed")
    assert said.endswith("Unsupported model IR version: 12, max supported IR version: 9")


def test_a_text_of_many_megabytes_is_cut_to_the_limit() -> None:
    assert len(clean_text("\x1b" * 20_000_000)) <= LIMIT


def test_of_very_many_lines_the_first_and_the_last_are_kept() -> None:
    lines = clean_lines("\n\n".join(map(str, range(5000))))

    assert len(lines) <= 1000
    assert (lines[0], lines[-1]) == ("0", "4999")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_every_text_in_an_answer_is_cleaned_wherever_it_stands(value: object) -> None:
    assert is_harmless(json.dumps(clean_values(value), ensure_ascii=False))


@given(text=ANY_TEXT)
def test_a_field_of_a_model_for_foreign_text_takes_any_text_and_keeps_it_cleaned(text: str) -> None:
    assert TypeAdapter(ForeignText).validate_python(text, strict=True) == clean_text(text)


@given(name=st.binary(min_size=1, max_size=20))
def test_a_file_name_of_any_bytes_can_be_shown(name: bytes) -> None:
    assert is_harmless(clean_path(name.decode("utf-8", "surrogateescape")))
