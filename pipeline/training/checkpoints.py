"""Checkpoints: read the state dicts of a weights file without running any code in the file.

A checkpoint of a training run contains more than weights: settings, dates, paths and the state of the optimizer. These are
pickled Python objects. Each class on a list of harmless classes is replaced by a stand-in, which stores nothing and calls
nothing. The real class is never constructed. A file with any other class is refused, with two lines of Python to convert it.
"""

import os
import re
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from pipeline.errors import UnsafeWeights, WeightsError, one_line
from pipeline.system.foreign_file import WEIGHTS_LIMIT_BYTES, open_foreign
from pipeline.system.safetensors_file import read_tensors

__all__ = ["State", "is_average", "read_checkpoint"]

State = dict[str, Tensor]
"""Tensors by name, as returned by `module.state_dict()`."""

MAX_DEPTH = 6
MAX_ENTRIES = 100_000
TORCHSCRIPT_ENTRIES = ("constants.pkl", "code/")
"""Entries of an archive by `torch.jit.save`, below its single folder."""


class _Inert:
    """Stand-in for an object of a harmless class. It stores only whether the object was a network."""

    is_module = False

    def __new__(cls, *_arguments: object, **_keywords: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.is_module = isinstance(state, Mapping) and "_modules" in state


class _PlainDict:
    """Stand-in for a dict class. It makes an OrderedDict, because torch fills only the dict classes that it knows."""

    def __new__(cls, *_arguments: object) -> Any:
        return OrderedDict()


class _PlainList:
    """Stand-in for a list class. It makes a list."""

    def __new__(cls, *_arguments: object) -> Any:
        return []


_DICTS = (
    "builtins.dict",
    "collections.defaultdict",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "mmengine.config.config.ConfigDict",
    "ml_collections.config_dict.config_dict.ConfigDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_LISTS = ("builtins.list", "collections.deque")
_OTHERS = (
    *(f"builtins.{name}" for name in ("bool", "bytes", "float", "frozenset", "int", "object", "range", "slice", "str", "tuple")),
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "decimal.Decimal",
    "fractions.Fraction",
    "uuid.UUID",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
    ),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{name}" for name in ("bool_", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
    *(
        f"numpy.dtypes.{name}DType"
        for name in (
            "Bool",
            "Float16",
            "Float32",
            "Float64",
            "Int8",
            "Int16",
            "Int32",
            "Int64",
            "Object",
            "Str",
            "UInt8",
            "UInt32",
        )
    ),
    "torch.torch_version.TorchVersion",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(
        f"omegaconf.nodes.{name}Node"
        for name in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String", "Union")
    ),
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
STAND_INS: list[Any] = [
    *((_PlainDict, name) for name in _DICTS),
    *((_PlainList, name) for name in _LISTS),
    *((_Inert, name) for name in _OTHERS),
]


def read_checkpoint(path: Path) -> dict[str, State]:
    """Return every state dict in the file at `path`, by the keys that lead to it ("" for the file itself), in file order.

        {"": {...}}                                             # torch.save(model.state_dict(), path), or safetensors
        {"model": {...}, "model_ema": {...}, "scaler": {...}}   # a checkpoint of a training run

    A dict counts as a state dict if at least one of its values is a tensor. It may belong to something other than a network.
    Raises UnsafeWeights for a file that could run code when read, and WeightsError for one that cannot be read.
    """
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder; give the weights file")
    if not path.exists():
        raise WeightsError(f"{path}: no such file; give --weights a .safetensors file or a saved state dict")
    if path.suffix == ".pt2":
        raise UnsafeWeights(
            f"{path}: exported programs (.pt2) can run code when they are read; save the state dict: "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        )
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        return {"": _read_safetensors(path)}
    loaded = _read_pickled(path)
    states = dict(_states(loaded))
    if not states:
        kind = "a Python object" if isinstance(loaded, _Inert) else type(loaded).__name__
        raise WeightsError(f"{path}: contains {kind}, not a state dict; save model.state_dict()")
    return states


def is_average(name: str) -> bool:
    """Return whether `name` marks an average over training steps (EMA), as 'model_ema' and 'state_dict_ema' do."""
    return re.search(r"(?<![a-z])ema(?![a-z])", name.lower()) is not None


def _read_safetensors(path: Path) -> State:
    try:
        return read_tensors(path)
    except (safetensors.SafetensorError, OSError, ValueError, MemoryError) as problem:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({one_line(problem, 120)}); the file may be incomplete; save it again"
        ) from None


def _read_pickled(path: Path) -> Any:
    starts_like_a_pickle = False
    try:
        with (
            open_foreign(path, WEIGHTS_LIMIT_BYTES) as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(STAND_INS),
        ):
            _refuse_other_archives(file, path)
            starts_like_a_pickle = file.read(1) == b"\x80"
            file.seek(0)
            warnings.simplefilter("ignore", UserWarning)  # torch warns about other pickle protocols before it raises an error
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnsafeWeights:
        raise
    except Exception as problem:
        text = str(problem)
        if "weights_only" in text and ("Unsupported operand" not in text or starts_like_a_pickle):
            raise UnsafeWeights(_refusal(path, text)) from None
        reason = "neither an archive nor a pickle" if "weights_only" in text else one_line(problem, 120)
        raise WeightsError(
            f"{path}: not a readable checkpoint ({reason}); the file may be incomplete; save the state dict again"
        ) from None


def _states(loaded: Any) -> Iterator[tuple[str, State]]:
    """Find state dicts breadth-first, so outer ones come first. Each object is visited once, even if it contains itself."""
    queue, seen = deque([("", loaded, 0)]), set[int]()
    while queue and len(seen) < MAX_ENTRIES:
        where, value, depth = queue.popleft()
        if id(value) in seen or depth > MAX_DEPTH or not isinstance(value, Mapping | list | tuple):
            continue
        seen.add(id(value))
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        tensors = {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, Tensor)}
        if tensors:
            yield where, tensors
        queue += [
            (f"{where}.{key}".lstrip("."), inner, depth + 1)
            for key, inner in items
            if isinstance(inner, Mapping | list | tuple) and isinstance(key, str | int)
        ]


def _refuse_other_archives(file: BinaryIO, path: Path) -> None:
    """Refuse TorchScript programs, and compressed archives, because a few kilobytes of those could fill the memory."""
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError), zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.filename.partition("/")[2].startswith(TORCHSCRIPT_ENTRIES) for entry in entries):
            raise UnsafeWeights(
                f"{path}: a TorchScript program, which can run code when it is read; "
                + _conversion(path, f"torch.jit.load({str(path)!r})", "loaded.state_dict()")
            )
        if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise UnsafeWeights(f"{path}: a compressed archive, which torch never writes; save the state dict again")
    file.seek(0)


def _refusal(path: Path, complaint: str) -> str:
    found = re.search(r"GLOBAL ([\w.]{1,100})", complaint)
    what = f"a Python object of {found[1]}" if found and found[1] != "was" else "a pickled object or program"
    load = f"torch.load({str(path)!r}, weights_only=False)"
    return f"{path}: contains {what}, which can run code when it is read; " + _conversion(path, load, _saved(path))


def _conversion(path: Path, load: str, saved: str) -> str:
    name = str(path.with_name(f"{path.stem}-state.pt"))
    return (
        "if you trust the file, convert it once with two lines of Python on the machine where it was made: "
        f"`import torch; loaded = {load}` and `torch.save({saved}, {name!r})`"
    )


def _saved(path: Path) -> str:
    """The Python expression for the state dict of the loaded file. All classes are stand-ins, and tensors get no memory."""
    loaded = None
    with suppress(Exception), warnings.catch_warnings(), open_foreign(path, WEIGHTS_LIMIT_BYTES) as file:
        warnings.simplefilter("ignore")
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        file.seek(0)
        stand_ins: list[Any] = [*STAND_INS, *((_Inert, name) for name in names if name not in {*_DICTS, *_LISTS, *_OTHERS})]
        with torch.serialization.safe_globals(stand_ins):
            loaded = torch.load(file, map_location="meta", weights_only=True)
    found = {}
    if isinstance(loaded, Mapping):
        states = {name for name, state in _states(loaded) if name and len(state) > 1 and "optim" not in name}
        found = {
            key: f"loaded[{key!r}]" + (".state_dict()" if isinstance(value, _Inert) else "")
            for key, value in loaded.items()
            if isinstance(key, str) and (key in states or (isinstance(value, _Inert) and value.is_module))
        }
    return next(iter(sorted(found.items(), key=lambda item: not is_average(item[0]))), ("", "loaded.state_dict()"))[1]


def _looks_like_safetensors(path: Path) -> bool:
    """Whether the content is safetensors. Such files are also named .pt and .bin."""
    with suppress(OSError), open_foreign(path, WEIGHTS_LIMIT_BYTES) as file:
        head = file.read(9)
        return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < os.fstat(file.fileno()).st_size
    return False
