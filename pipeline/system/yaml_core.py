"""The YAML 1.2 core schema for PyYAML, which implements YAML 1.1. In 1.2, `010` is ten and not eight; `1:30` and `yes` are text.

Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

import re
from typing import Any

import yaml

__all__ = ["CoreLoader", "PlainFloat", "dump_yaml"]

_TAG = "tag:yaml.org,2002:"
_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
)
_PATTERNS = {name: re.compile(f"(?:{pattern})\\Z") for name, pattern, _ in _SCHEMA}


class PlainFloat(float):
    """A float that keeps its original text, because `12e45678` may have been meant as text."""

    text: str


class CoreLoader(yaml.SafeLoader):
    """Creates only null, bool, int, float, str, lists and mappings; other tags are refused."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own convention
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*(f"{_TAG}{name}" for name in ("str", "seq", "map")), None)
    }

    def _scalar(self, node: yaml.ScalarNode) -> object:
        """Return the value of a scalar by its tag. Raises ConstructorError where its text does not have that type."""
        name, text = node.tag.removeprefix(_TAG), str(node.value)
        if not _PATTERNS[name].match(text):
            raise yaml.constructor.ConstructorError(None, None, f"expected a value of type {name}", node.start_mark)
        if name == "null":
            return None
        if name == "bool":
            return text.lower() == "true"
        if name == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        value = PlainFloat(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        value.text = text
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes any text that YAML 1.1 or 1.2 would read as another type."""


for _name, _pattern, _first in _SCHEMA:
    for _class in (CoreLoader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", _PATTERNS[_name], _first)
    CoreLoader.add_constructor(f"{_TAG}{_name}", CoreLoader._scalar)


def dump_yaml(value: object) -> str:
    """Return `value` as text that YAML 1.1 and 1.2 readers read equally. Keys stay in their order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False))
