"""Parses and formats quantities with units, as people write them: `40 ms`, `80 MiB`, `10Hz`."""

import re

__all__ = ["format_bytes", "format_count", "format_duration", "parse_bytes", "parse_quantity"]

_FACTORS: dict[str, dict[str, float]] = {
    "ms": {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3},
    "s": {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "hz": {"": 1.0, "hz": 1.0},
    "bytes": {
        "b": 1.0,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "kib": 2.0**10,
        "mib": 2.0**20,
        "gib": 2.0**30,
    },
    "count": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "points": {"": 1.0, "points": 1.0, "point": 1.0},
}
_EXAMPLES = {"ms": "40 ms", "s": "10min", "hz": "10Hz", "bytes": "80 MiB", "count": "1.5M", "points": "1.0"}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2}))?\s*([A-Za-zµ]*)\s*")


def parse_quantity(text: str | float, unit: str) -> float:
    """Parse `text` and return its value in `unit`, one of `ms`, `s`, `hz`, `bytes`, `count`, `points`.

    parse_quantity("40 ms", "ms")        # 40.0
    parse_quantity("0.04 s", "ms")       # 40.0
    parse_quantity("80 MiB", "bytes")    # 83886080.0
    parse_quantity(1.0, "points")        # 1.0

    Raises ValueError, with an example, when the number or its unit is invalid or out of range.
    """
    match = _QUANTITY.fullmatch(str(text))
    factors = _FACTORS[unit]
    if match is None or match.group(3).lower() not in factors:
        names = " or ".join(name for name in factors if name)
        raise ValueError(f"expected a number in {names or 'plain digits'} (got {text!r}); write for example {_EXAMPLES[unit]}")
    number = float(match.group(1)) * 10.0 ** int(match.group(2) or 0)
    value = number * factors[match.group(3).lower()]
    if not 0.0 <= value < 1e18:
        raise ValueError(f"{text!r} is out of range; write for example {_EXAMPLES[unit]}")
    return value


def parse_bytes(text: str | float) -> int:
    """Parse a size and return it in bytes; see `parse_quantity`."""
    return round(parse_quantity(text, "bytes"))


def format_bytes(count: float) -> str:
    """Format a size in bytes: 12_345_678 -> '11.8 MiB'."""
    for name, factor in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if count >= factor:
            return f"{count / factor:.1f} {name}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """Format a count: 12_345_678 -> '12.35M'."""
    for name, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f}{name}"
    return f"{count:.0f}"


def format_duration(seconds: float) -> str:
    """Format a duration: 3725 -> '1:02:05', 65 -> '1:05', 4.2 -> '4 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
