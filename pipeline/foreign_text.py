"""Foreign text: text from outside is cleaned and shortened where it is read, before any part of it is stored or shown.

Outside is everything that this program did not write: answers of a device, error messages of libraries, names in an ONNX
file or a profile, and file names. Such text can hold escape sequences that control a terminal, characters that reverse the
reading direction, halves of surrogate pairs that cannot be encoded, or megabytes of any content.
"""

from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

__all__ = ["ForeignText", "clean_lines", "clean_path", "clean_text", "clean_values", "escape_text", "shorten"]

LIMIT = 1000
"""Longest text that is kept, in characters."""
_GAP = " ... "
_WORST_GROWTH = 10
"""One character becomes at most this many characters: `\\U0010ffff`."""


def shorten(text: str, limit: int = LIMIT) -> str:
    """Shorten `text` to at most `limit` characters. The middle is removed, because the reason of an error is often at its end.

    >>> shorten("load failed: a very long signature: unsupported version 12", 40)
    'load failed: a ver ... pported version 12'
    """
    if len(text) <= limit:
        return text
    room = max(0, limit - len(_GAP))
    tail = room // 2
    return text[: room - tail] + _GAP[: limit - room] + text[len(text) - tail :]


def clean_text(text: str, limit: int = LIMIT) -> str:
    r"""Return `text` as one line of printable characters, at most `limit` long. Clean text does not change.

    White space of any kind becomes one space. Every other character that `str.isprintable` rejects (control characters,
    escapes, direction overrides, surrogates, unassigned characters) becomes its Python escape. A surrogate that stands for
    a byte of a file name becomes the escape of that byte.

    >>> clean_text("a\x1b[2Jb\nc \u202e")
    'a\\x1b[2Jb c \\u202e'
    """
    # the text is shortened first, because escaping every character of many megabytes would be slow
    line = " ".join(shorten(text, max(_WORST_GROWTH * limit, 2 * len(_GAP))).split())
    return shorten(escape_text(line), limit)


def escape_text(text: str, keep: str = "") -> str:
    r"""Return `text` at full length, with an escape for every character that `str.isprintable` rejects, except those in `keep`.

    >>> escape_text("two  spaces\n\x1b", keep="\n")
    'two  spaces\n\\x1b'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _escaped(letter) for letter in text)


def clean_lines(text: str, limit: int = LIMIT) -> list[str]:
    """Return the non-empty lines of `text`, cleaned by `clean_text`; of more than 1,000 lines only the first and last 500."""
    lines = text.splitlines()
    if len(lines) > 1000:
        lines = lines[:500] + lines[-500:]
    return [line for line in (clean_text(line, limit) for line in lines) if line]


def clean_path(path: PurePath | str) -> str:
    r"""Return a path to show or to store, with bytes that are not UTF-8 as `\xff`. Open the file with the original path."""
    return shorten(escape_text(str(path)), 4096)


def clean_values(value: Any, limit: int = LIMIT) -> Any:
    """Return a JSON value with every text in it cleaned, including keys. Raises RecursionError when it is nested too deeply."""
    if isinstance(value, str):
        return clean_text(value, limit)
    if isinstance(value, dict):
        return {clean_text(key, limit): clean_values(inner, limit) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(inner, limit) for inner in value]
    return value


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # Python stores a byte of a file name that is not UTF-8 in this way (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return ascii(letter)[1:-1]


def _cleaned(value: object) -> object:
    return clean_text(value) if isinstance(value, str) else value


# cleaned before validation, because pydantic refuses a text with half of a surrogate pair
ForeignText = Annotated[str, BeforeValidator(_cleaned), Field(max_length=LIMIT)]
"""Type of a pydantic model's field for foreign text; see `clean_text`."""
