"""User code: import a function from the user's own file or package, as Python itself would.

    nets.py:make_net                 a file; modules in its folder can be imported
    pkg/net.py:make_net              a file in a package; imported as pkg.net, so that `from .layers import Block` works
    pkg.net:make_net                 a module in the current folder, or an installed one
    nets.py:Net.small                a class method, or any other attribute with dots in its name

The folders stay importable while the process runs, because the user's code may import other modules when it is called.
"""

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import CompressError, one_line
from pipeline.system.user_files import is_installed, is_program

__all__ = ["UserCode", "describe_error", "import_file", "is_code", "load_code", "package_root", "refuse_arguments"]


@dataclass(frozen=True)
class UserCode:
    """The object that a spec refers to."""

    found: Any
    """A callable: a function, a class or a network."""
    module: ModuleType
    """The module that contains it."""
    where: str
    """The file or module in the user's spelling."""


def is_code(spec: str) -> bool:
    """Return whether `spec` has the form file.py:name or package.module:name."""
    place, separator, name = spec.rpartition(":")
    dotted = all(part.isidentifier() for part in place.split("."))
    return bool(separator) and (place.endswith(".py") or (dotted and all(part.isidentifier() for part in name.split("."))))


def load_code(spec: str, flag: str, error: type[CompressError]) -> UserCode:
    """Return the object that `spec` refers to. This runs the module's code. Error messages advise to use the option `flag`.

    Raises `error` if the module cannot be imported or has no callable of this name.
    """
    place, _, name = spec.rpartition(":")
    module = import_file(Path(place), error) if place.endswith(".py") else _import_module(place, flag, error)
    holder: Any = None
    found: Any = module
    for part in name.split("."):
        holder, found = found, getattr(found, part, None)
    if not callable(found):
        raise error(
            f"{place}: no function '{name}' in this file or module; give {flag} file.py:factory or package.module:factory"
        )
    if inspect.isclass(holder) and inspect.isfunction(inspect.getattr_static(holder, name.rpartition(".")[2])):
        raise error(f"{place}: '{name}' is a method that needs an instance; make it a @staticmethod or @classmethod")
    return UserCode(found, module, place)


def refuse_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], spec: str, error: type[CompressError]) -> None:
    """Raise `error` if `function` does not take these arguments. The message lists the arguments that it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function written in C has no signature, and fails when called
        return
    try:
        signature.bind_partial(**arguments)
    except TypeError as problem:
        known = ", ".join(signature.parameters) or "none"
        raise error(f"{spec}: {one_line(problem)}; it accepts {known}") from None


def describe_error(problem: BaseException, module: ModuleType | None = None) -> str:
    """Return an exception of the user's code as one line, with the file and line that raised it."""
    text = problem.msg if isinstance(problem, SyntaxError) and problem.msg else one_line(problem)
    advice = ""
    if isinstance(problem, ModuleNotFoundError):
        advice = f"; install it into {sys.prefix}, or add its folder to PYTHONPATH"
    where = _where(problem, module)
    return f"{type(problem).__name__}: {text}{f' (at {where})' if where else ''}{advice}"


def import_file(path: Path, error: type[CompressError]) -> ModuleType:
    """Import a Python file and return the module, always the same one. A file in a package is imported as part of it.

    Raises `error` if there is no such file or if it cannot be imported.
    """
    if not path.is_file():
        raise error(f"{path}: no such file; give file.py:factory")
    file = path.resolve()
    depth = _package_depth(file)
    root = file.parents[depth]
    for folder in dict.fromkeys((file.parent, root)):  # the root comes first on the path
        _make_importable(folder)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, because the user did not name it
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
                f"no module '{name}' in {Path.cwd()} or among the installed packages; give {flag} package.module:factory or "
                "file.py:factory"
            ) from None
        raise error(f"{name}: cannot be imported: {describe_error(problem)}") from None
    except (Exception, SystemExit) as problem:
        raise error(f"{name}: cannot be imported: {describe_error(problem)}") from None


def _import_packaged(file: Path, name: str, path: Path, error: type[CompressError]) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as problem:
        found = sys.modules.get(name.partition(".")[0])
        if isinstance(problem, ModuleNotFoundError) and problem.name and f"{name}.".startswith(f"{problem.name}.") and found:
            raise error(_clash(path, name, found)) from None
        raise error(f"{path}: cannot be imported as {name}: {describe_error(problem)}") from None
    if Path(module.__file__ or "").resolve() != file:
        raise error(_clash(path, name, module))
    return module


def _clash(path: Path, name: str, found: ModuleType) -> str:
    other = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), "elsewhere")
    return f"{path}: its package '{name.partition('.')[0]}' has the same name as another one, {other}; rename the folder"


def _import_lone(file: Path, path: Path, error: type[CompressError]) -> ModuleType:
    """Import a file under its own name if that is free, so that other modules and worker processes find it."""
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
        raise error(f"{path}: cannot be imported: {describe_error(problem)}") from None
    return module


def _origin(name: str) -> str | None:
    """The file that `import name` would run, or None."""
    if name in sys.stdlib_module_names:
        return "the standard library"
    with suppress(ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec(name)
        return found.origin if found else None
    return None


def _make_importable(folder: Path) -> None:
    importlib.invalidate_caches()  # files that were just written must be found too
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def package_root(file: Path) -> Path:
    """Return the folder from which `file`, a resolved path, is imported: its own, or the one that contains its package."""
    return file.parents[_package_depth(file)]


def _package_depth(file: Path) -> int:
    """Number of folders above `file` that belong to its package: those with an __init__.py. If its relative imports reach
    further up, it counts the folders below the current one, as with `python -m`, or as many as the imports need.
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
    """Highest level of a relative import: 1 for `from .layers import N`, 2 for `from ..common import N`, 0 for none."""
    with suppress(SyntaxError, ValueError, OSError, RecursionError):
        nodes = ast.walk(ast.parse(file.read_bytes()))
        return max((node.level for node in nodes if isinstance(node, ast.ImportFrom)), default=0)
    return 0


def _where(problem: BaseException, module: ModuleType | None) -> str:
    """file:line of the innermost line of the user's code in the traceback. If there is none, a library's line."""
    if isinstance(problem, SyntaxError) and problem.filename and problem.lineno:
        return f"{problem.filename}:{problem.lineno}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(problem.__traceback__)]
    foreign = [(file, line) for file, line in frames if not is_program(file)]
    own = [place for place in foreign if not is_installed(place[0])]
    of_module = [place for place in foreign if module is not None and place[0] == getattr(module, "__file__", None)]
    places = own or of_module or foreign
    return f"{places[-1][0]}:{places[-1][1]}" if places else ""
