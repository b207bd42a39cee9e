"""Model arguments: parse the arguments of a model's factory from the command line, such as `--model-arg width=0.5`."""

import math
import re
from collections.abc import Iterable

import yaml

__all__ = ["Argument", "read_arguments"]

Argument = str | int | float | bool | None


def read_arguments(texts: Iterable[str]) -> dict[str, Argument]:
    """Return arguments by name. Each text is `name=value`, and the value is a YAML 1.2 scalar.

        width=0.5  depth=20  lr=1e-3  pretrained=false  head=null  name=abc  tag='0.5'   # the last two are strings

    Raises ValueError, which names the wrong text and the problem.
    """
    found: dict[str, Argument] = {}
    for text in texts:
        name, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not name.isidentifier():
            raise ValueError(f"{text!r}: expected NAME=VALUE, for example width=0.5")
        if name in found:
            raise ValueError(f"{name} is given twice; keep one")
        found[name] = _scalar(name, value)
    return found


def _scalar(name: str, text: str) -> Argument:
    """Parse by the core schema of YAML 1.2 (section 10.3.2). PyYAML follows YAML 1.1, where 1e-3 is text and 010 is eight."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    except yaml.YAMLError:
        raise ValueError(f"{name}={text}: not a valid YAML value; put text in quotes") from None
    if node is None:
        return None
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{name}={text}: not a single value; give one number, text, true, false or null")
    value = str(node.value)
    if node.style or not (node.tag.startswith("tag:yaml.org,2002:")):
        return value
    if re.fullmatch(r"null|Null|NULL|~|", value):
        return None
    if re.fullmatch(r"true|True|TRUE|false|False|FALSE", value):
        return value.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,300}", value):
        return int(value)
    if re.fullmatch(r"0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}", value):
        return int(value, 0)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", value):
        if not math.isfinite(float(value)):
            raise ValueError(f"{name}={text}: too large a number")
        return float(value)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", value):
        raise ValueError(f"{name}={text}: not a finite number")
    return value
