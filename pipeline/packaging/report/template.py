"""Template: makes a page from a template and values. All pages have the style and the security policy of base.html.

A page has no scripts, and needs no other file. Its policy forbids the browser to run or load anything.
"""

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.foreign_text import escape_text, shorten

__all__ = ["render"]

OWN = Path(__file__).parent
TEXT_LIMIT = 10_000
"""Longest text that is shown, in characters."""


def render(name: str, folder: Path | None = None, /, **values: Any) -> bytes:
    """Return the page that the template `name` makes from `values`, in UTF-8. `folder`: where it lies, if it is not one of the
    templates of this package. Text in `values` is escaped.
    """
    return _environment(folder or OWN).get_template(name).render(**values).encode("utf-8", "replace")


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, OWN]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_readable,
    )


def _readable(value: object) -> object:
    """`value` escaped, so that a name cannot change the direction of the surrounding text, and shortened."""
    return value if isinstance(value, Markup) else shorten(escape_text(str(value), keep="\n"), TEXT_LIMIT)
