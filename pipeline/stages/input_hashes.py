"""Input hashes: hashes of the files that a job is made of. They show whether the files are still the same."""

import functools
import hashlib
import math
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from pipeline.core.run import Run
from pipeline.data.listing import Skipped, image_files, names_below
from pipeline.system.array_file import ARRAY_SUFFIXES
from pipeline.system.bundled import shipped_weights
from pipeline.system.foreign_file import WEIGHTS_LIMIT_BYTES, open_foreign
from pipeline.system.user_files import is_users
from pipeline.training.user_code import is_code, package_root

__all__ = ["bind_input_hashes", "origins"]

MANY_IMAGES, SAMPLED_IMAGES = 20_000, 2_000
"""Of more images than the first number, only so many are read for the hash, evenly spread; the names and sizes of all count."""
EDGE_BYTES = 2**19
"""Of an image larger than twice this, only its beginning, end and size are hashed. This avoids reading a data set twice."""
CODE = "code "


def bind_input_hashes(run: Run, model: str, weights: Path | None, data: str | None, unlabelled: Path | None = None) -> None:
    """Bind `run` to the files that the job is loaded from. Raises OtherJob, with the differences, if it is bound to other files.

    Without `weights`, the weights file that ships with a named model is one of them.

    Call it after loading, because only then is it known which code is imported. Call it before loading as well, to check a run
    that is already bound.
    """
    known = run.facts("sources")
    if weights is None and (known is None or "weights" in known):  # older runs did not hash weights that ship with a network
        weights = shipped_weights(model)
    if known is None:
        run.bind("sources", origins(model, weights, data, code_files(model, data)) | _unlabelled(unlabelled))
    else:
        names = [name.removeprefix(CODE) for name in known if name.startswith(CODE)]
        root = code_root(model, data)
        code = [root / name for name in names]
        found = origins(model, weights, data, code) | _unlabelled(unlabelled)
        if found != known:  # older runs hashed the contents of all images
            found = origins(model, weights, data, code, math.inf) | _unlabelled(unlabelled, math.inf)
        run.bind("sources", found)


def origins(
    model: str, weights: Path | None, data: str | None, code: list[Path], most_images: float = MANY_IMAGES
) -> dict[str, str]:
    """Maps the name of each file to its hash. A missing file has the hash 'missing'.

    Of a folder with more than `most_images`, only some images are read.
    """
    found = {CODE + os.path.relpath(path, code_root(model, data)): _file_digest(path) for path in code}
    if model.lower().endswith(".onnx"):
        found["model"] = _file_digest(Path(model))
    if weights is not None:
        found["weights"] = _file_digest(weights)
    if data is not None and data.lower().endswith(ARRAY_SUFFIXES):
        found["data"] = _file_digest(Path(data))
        if (declared := Path(data).parent / "preprocessing.yaml").exists():
            found["preprocessing"] = _file_digest(declared)
    elif data is not None and Path(data).is_dir():
        try:
            found["data"] = _folder_digest(Path(data), most_images)
        except OSError:  # an unreadable folder inside: loading reports which one
            found["data"] = "missing"
        if (declared := Path(data, "preprocessing.yaml")).exists():
            found["preprocessing"] = _file_digest(declared)
    return found


def _unlabelled(folder: Path | None, most_images: float = MANY_IMAGES) -> dict[str, str]:
    """The hash of a folder of images without labels. Empty if there is none."""
    if folder is None:
        return {}
    found = origins("", None, str(folder), [], most_images)
    return {f"unlabelled {name}": digest for name, digest in found.items()}


def code_root(model: str, data: str | None) -> Path:
    """The folder that the names of code files are relative to. It holds the user's file or top-level package."""
    for spec in (model, data or ""):
        place = spec.rpartition(":")[0]
        if place.endswith(".py"):
            return package_root(Path(place).resolve())
        if _is_code(spec):
            found = PathFinder.find_spec(place.partition(".")[0], [str(Path.cwd()), *sys.path])
            if found and found.origin:
                return Path(found.origin).parent.parent if found.submodule_search_locations else Path(found.origin).parent
    return Path.cwd()


def code_files(model: str, data: str | None) -> list[Path]:
    """The user's Python files that have been imported. The list is empty if neither the network nor the data come from code."""
    root, files = code_root(model, data), set()
    specs = [spec.rpartition(":")[0] for spec in (model, data or "") if _is_code(spec)]
    if not specs:
        return []
    files |= {Path(place).resolve() for place in specs if place.endswith(".py")}
    resolved = functools.cache(Path.resolve)  # thousands of modules lie in a few hundred folders
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file)
        path = path.resolve() if path.is_symlink() else resolved(path.parent) / path.name
        if _is_users(path, root, specs):
            files.add(path)
    return sorted(files)


def _is_code(spec: str) -> bool:
    return is_code(spec) and not spec.startswith("torchvision:")


def _is_users(path: Path, root: Path, specs: list[str]) -> bool:
    if not path.is_relative_to(root):
        return False
    below = path.relative_to(root)
    if any(below.parts[0] == place.partition(".")[0] for place in specs):
        return True  # the package itself, wherever it is installed
    return is_users(path) and "site-packages" not in below.parts


def _file_digest(path: Path) -> str:
    try:
        with open_foreign(path, WEIGHTS_LIMIT_BYTES) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return "missing"


def _folder_digest(root: Path, most: float = MANY_IMAGES, sampled: int = SAMPLED_IMAGES) -> str:
    """Hash of the names and contents of all images. With more than `most`, of their names and sizes and of some contents."""
    digest, paths = hashlib.sha256(), image_files(root, Skipped())
    step = 1 if len(paths) <= most else -(-len(paths) // sampled)
    for number, (path, name) in enumerate(zip(paths, names_below(paths, root), strict=True)):
        digest.update(name + b"\0")
        try:
            if number % step:
                digest.update(f"{path.stat().st_size}\0".encode())
                continue
            with open_foreign(path, WEIGHTS_LIMIT_BYTES) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size}\0".encode() + file.read(EDGE_BYTES))
                file.seek(max(size - EDGE_BYTES, min(size, EDGE_BYTES)))
                digest.update(file.read(EDGE_BYTES))
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()[:16]
