"""Reads a YAML 1.2 file into a strict pydantic model. Every error message names file and line."""

import difflib
import errno
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import CompressError, one_line
from pipeline.foreign_text import clean_text
from pipeline.system.foreign_file import read_foreign
from pipeline.system.yaml_core import CoreLoader

__all__ = ["load_yaml"]

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]


def load_yaml(path: Path, model: type[Model], error: type[CompressError]) -> Model:
    """Read `path` as a `model`.

    Raises `error` when the file is missing, too large, not YAML, has anchors (a few lines of them can fill any memory), a
    duplicate or unknown key, a wrong type or a value out of range.
    """
    text = _read(path, error)
    try:
        _refuse_anchors_and_depths(text, path, error)
        loader = CoreLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise error(f"{path}: the file is empty; copy one from hw_profiles/ and edit it")
        lines: dict[KeyPath, int] = {}
        _walk(root, (), lines, path, error)
        data = loader.construct_document(root)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise error(f"{where}: not valid YAML: {getattr(problem, 'problem', None) or one_line(problem)}") from None
    except (ValueError, LookupError, AttributeError) as problem:  # PyYAML does not catch them: `2024-99-99`, `!!bool maybe`
        raise error(f"{path}: a value has the wrong type ({one_line(problem)}); put it in quotes") from None
    if not isinstance(data, dict):
        raise error(f"{path}:1: expected keys and values (got {type(data).__name__}); copy a file from hw_profiles/")
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        raise error(_explain(problem, path, lines, model)) from None


def _read(path: Path, error: type[CompressError]) -> str:
    try:
        return read_foreign(path, MAX_BYTES).decode("utf-8")
    except OSError as problem:
        if problem.errno == errno.EFBIG:
            raise error(f"{path}: {problem.strerror}; check that this is the right file") from None
        raise error(f"{path}: cannot be read ({problem.strerror})") from None
    except UnicodeDecodeError:
        raise error(f"{path}: not UTF-8 text") from None


def _refuse_anchors_and_depths(text: str, path: Path, error: type[CompressError]) -> None:
    """Refuse anchors and deep nesting before the nodes are visited, because an anchor that contains itself never ends."""
    depth = 0
    for event in yaml.parse(text, Loader=CoreLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise error(f"{path}:{_line(event)}: nested too deep")
        if isinstance(event, yaml.AliasEvent):
            raise error(f"{path}:{_line(event)}: anchors and aliases are not supported; write the value itself")


def _walk(node: yaml.Node, at: KeyPath, lines: dict[KeyPath, int], path: Path, error: type[CompressError]) -> None:
    """Store the line of every key, and refuse duplicate keys, which YAML itself accepts."""
    if len(lines) > 10_000:
        raise error(f"{path}: too many entries")
    lines[at] = _line(node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*at, str(key.value))
            if child in lines:
                raise error(f"{path}:{_line(key)}: '{_short(str(key.value))}' occurs twice; keep one")
            _walk(value, child, lines, path, error)
            lines[child] = _line(key)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*at, index), lines, path, error)


def _line(place: yaml.Node | yaml.Event) -> int:
    return place.start_mark.line + 1 if place.start_mark else 1


def _explain(problem: ValidationError, path: Path, lines: dict[KeyPath, int], model: type[BaseModel]) -> str:
    """Return the first error as one line: file, line, key, what was expected, what was found, what to write."""
    first = problem.errors()[0]
    at: KeyPath = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    while at not in lines and at:
        at = at[:-1]
    key = _short(".".join(str(part) for part in first["loc"] if part in at) or ".".join(str(part) for part in first["loc"]))
    where = f"{path}:{lines.get(at, 1)}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'. {_suggest(at, model)}"
    if first["type"] == "missing":
        missing = ".".join(str(part) for part in first["loc"])
        return f"{where}: '{missing}' is missing. {_example(first['loc'], model)}".rstrip()
    message = _short(first["msg"].removeprefix("Value error, "), 300)
    got = "" if "(got " in message or isinstance(first["input"], dict) else f" (got {_shown(first['input'])})"
    return f"{where}: {key}: {message[:1].lower()}{message[1:]}{got}. {_example(at, model)}".rstrip()


def _shown(value: object) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # Python prints no number with more than 4300 digits
        return "a number with too many digits"


def _short(text: str, limit: int = 100) -> str:
    return clean_text(text, limit)


def _suggest(at: KeyPath, model: type[BaseModel]) -> str:
    holder = _model_at(at[:-1], model)
    known = sorted(holder.model_fields) if holder else []
    close = difflib.get_close_matches(str(at[-1]), known, n=1)
    return f"Did you mean '{close[0]}'?" if close else f"Known keys: {', '.join(known)}."


def _example(at: tuple[Any, ...], model: type[BaseModel]) -> str:
    holder = _model_at(at[:-1], model)
    field = holder.model_fields.get(str(at[-1])) if holder and at else None
    return f"Write for example '{at[-1]}: {field.examples[0]}'." if field and field.examples else ""


def _model_at(at: tuple[Any, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    for part in at:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model
