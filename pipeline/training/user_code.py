"""User code: a function in the user's own file or package, imported as Python itself would import it.

    nets.py:make_net                 a file; its folder can be imported from
    pkg/net.py:make_net              a file inside a package: imported as pkg.net, so that `from .layers import Block` works
    pkg.net:make_net                 a module, from the current folder or from what is installed
    nets.py:Net.small                a class's own method, or anything else that dots lead to

The folders stay importable for as long as the process runs, because the user's code may import its neighbours when it is called.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import CompressError, one_line

__all__ = ["UserCode", "import_file", "is_code", "load_code", "package_root", "refuse_arguments", "told"]


@dataclass(frozen=True)
class UserCode:
    """What a spec leads to."""

    found: Any
    """Callable: a function, a class, or a network itself."""
    module: ModuleType
    """The module that holds it."""
    where: str
    """The file or module as the user wrote it."""


def is_code(spec: str) -> bool:
    """Whether `spec` is file.py:name or package.module:name."""
    place, separator, name = spec.rpartition(":")
    dotted = all(part.isidentifier() for part in place.split("."))
    return bool(separator) and (place.endswith(".py") or (dotted and all(part.isidentifier() for part in name.split("."))))


def load_code(spec: str, flag: str, error: type[CompressError]) -> UserCode:
    """What `spec` leads to; this runs the module's code. `flag` is the option that the advice names.

    Raises `error` where the module cannot be imported, or has nothing callable of this name.
    """
    place, _, name = spec.rpartition(":")
    module = import_file(Path(place), error) if place.endswith(".py") else _import_module(place, flag, error)
    holder: Any = None
    found: Any = module
    for part in name.split("."):
        holder, found = found, getattr(found, part, None)
    if not callable(found):
        raise error(f"{place}: no function '{name}' in it; give {flag} file.py:factory or package.module:factory")
    if inspect.isclass(holder) and inspect.isfunction(inspect.getattr_static(holder, name.rpartition(".")[2])):
        raise error(f"{place}: '{name}' is a method of an instance, and there is none; make it a @staticmethod or @classmethod")
    return UserCode(found, module, place)


def refuse_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], spec: str, error: type[CompressError]) -> None:
    """Raises `error` where `function` takes no such arguments, naming those that it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it tells when it is called
        return
    try:
        signature.bind_partial(**arguments)
    except TypeError as problem:
        known = ", ".join(signature.parameters) or "none"
        raise error(f"{spec}: {one_line(problem)}; the arguments that it takes: {known}") from None


def told(problem: BaseException, module: ModuleType | None = None) -> str:
    """An exception of the user's code in one line, with the file and line of his that raised it."""
    text = problem.msg if isinstance(problem, SyntaxError) and problem.msg else one_line(problem)
    advice = ""
    if isinstance(problem, ModuleNotFoundError):
        advice = f"; install it into {sys.prefix}, or put its folder on PYTHONPATH"
    where = _where(problem, module)
    return f"{type(problem).__name__}: {text}{f' (at {where})' if where else ''}{advice}"


def import_file(path: Path, error: type[CompressError]) -> ModuleType:
    """Run a Python file and return it as a module, the same one each time; a file inside a package as a module of that.

    Raises `error`.
    """
    if not path.is_file():
        raise error(f"{path}: no such file; give file.py:factory")
    file = path.resolve()
    depth = _package_depth(file)
    root = file.parents[depth]
    for folder in dict.fromkeys((file.parent, root)):  # the root ends up first
        _make_importable(folder)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: it was not asked for
    if depth:
        parts = file.relative_to(root).with_suffix("").parts
        return _import_packaged(file, ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, error)
    return _import_lone(file, path, error)


def _import_module(name: str, flag: str, error: type[CompressError]) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name and f"{name}.".startswith(f"{problem.name}."):
            raise error(
                f"no module '{name}' in {Path.cwd()} or among what is installed; give {flag} package.module:factory or "
                "file.py:factory"
            ) from None
        raise error(f"{name}: cannot be imported: {told(problem)}") from None
    except (Exception, SystemExit) as problem:
        raise error(f"{name}: cannot be imported: {told(problem)}") from None


def _import_packaged(file: Path, name: str, path: Path, error: type[CompressError]) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as problem:
        found = sys.modules.get(name.partition(".")[0])
        if isinstance(problem, ModuleNotFoundError) and problem.name and f"{name}.".startswith(f"{problem.name}.") and found:
            raise error(_clash(path, name, found)) from None
        raise error(f"{path}: cannot be imported as {name}: {told(problem)}") from None
    if Path(module.__file__ or "").resolve() != file:
        raise error(_clash(path, name, module))
    return module


def _clash(path: Path, name: str, found: ModuleType) -> str:
    there = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), "elsewhere")
    return f"{path}: its package '{name.partition('.')[0]}' has the name of another one, {there}; rename the folder"


def _import_lone(file: Path, path: Path, error: type[CompressError]) -> ModuleType:
    """Under its own name where that is free, so that its neighbours and worker processes find the same module."""
    private = f"_compress_user_{file.stem}_{abs(hash(file))}"
    for name in (file.stem, private):
        known = sys.modules.get(name)
        if known is not None and getattr(known, "__file__", None) == str(file):
            return known
    free = file.stem.isidentifier() and file.stem not in sys.modules and _origin(file.stem) in (None, str(file))
    name = file.stem if free else private
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise error(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as problem:
        del sys.modules[name]
        raise error(f"{path}: cannot be imported: {told(problem)}") from None
    return module


def _origin(name: str) -> str | None:
    """The file that `import name` would run."""
    if name in sys.stdlib_module_names:
        return "the standard library"
    with suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(name)
        return found.origin if found else None
    return None


def _make_importable(folder: Path) -> None:
    importlib.invalidate_caches()  # what was written a moment ago counts too
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def package_root(file: Path) -> Path:
    """The folder that `file`, a resolved path, is imported from: its own, or the one that holds its package."""
    return file.parents[_package_depth(file)]


def _package_depth(file: Path) -> int:
    """How many folders above `file` belong to its package: those with an __init__.py; where its relative imports reach further,
    those below the current folder, as for `python -m`, or as many as they need.
    """
    depth = 0
    while (file.parents[depth] / "__init__.py").is_file() and depth + 2 < len(file.parents):
        depth += 1
    reach = _relative_reach(file)
    if reach > depth:
        below = len(file.relative_to(Path.cwd()).parts) - 1 if file.is_relative_to(Path.cwd()) else 0
        depth = below if below >= reach else min(reach, len(file.parents) - 1)
    return depth


def _relative_reach(file: Path) -> int:
    """1 for `from .layers import N`, 2 for `from ..common import N`, 0 where there is none."""
    with suppress(SyntaxError, ValueError, OSError, RecursionError):
        nodes = ast.walk(ast.parse(file.read_bytes()))
        return max((node.level for node in nodes if isinstance(node, ast.ImportFrom)), default=0)
    return 0


def _where(problem: BaseException, module: ModuleType | None) -> str:
    """file:line of the last line of the user's that the exception passed; a library's only where there is none."""
    if isinstance(problem, SyntaxError) and problem.filename and problem.lineno:
        return f"{problem.filename}:{problem.lineno}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(problem.__traceback__)]
    foreign = [(file, line) for file, line in frames if not file.startswith("<") and not _is_below(file, _HERE)]
    own = [place for place in foreign if not any(_is_below(place[0], folder) for folder in _libraries())]
    of_module = [place for place in foreign if module is not None and place[0] == getattr(module, "__file__", None)]
    places = own or of_module or foreign
    return f"{places[-1][0]}:{places[-1][1]}" if places else ""


_HERE = Path(__file__).resolve().parent


@functools.cache
def _libraries() -> tuple[Path, ...]:
    """Where the standard library and installed packages lie."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(kind)).resolve() for kind in kinds})


def _is_below(file: str, folder: Path) -> bool:
    return Path(file).is_relative_to(folder)
