"""Load splits: the data of a job, with labels or without."""

from pathlib import Path

from pipeline.core.progress import Progress, no_progress
from pipeline.data.arrays import WantedInput, is_array_file, load_arrays
from pipeline.data.images import Splits
from pipeline.data.listing import is_flat
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.unlabelled import load_unlabelled
from pipeline.errors import DataError
from pipeline.foreign_text import clean_text
from pipeline.graph.given.door import Door
from pipeline.graph.given.read import GivenNetwork
from pipeline.stages.job import Job
from pipeline.training.load import load_data

__all__ = ["load_splits"]


def load_splits(job: Job, declared: Preprocessing | None, given: GivenNetwork | None, progress: Progress = no_progress) -> Splits:
    """Load the data of `job`. `given` is the network, if it comes from an ONNX file, and `declared` its preprocessing.

    A file of arrays and a folder without class folders have no labels, and the classes are not known yet. Raises DataError and
    its subclasses.
    """
    if is_array_file(job.data):
        if job.unlabelled is not None:
            raise DataError(f"{job.unlabelled}: images cannot be added to arrays; add them to {clean_text(job.data)}")
        return load_arrays(Path(job.data), [_wanted(door) for door in given.facts.doors] if given else (), declared, job.seed)
    if given and len(given.facts.doors) > 1:
        names = ", ".join(door.name for door in given.facts.doors)
        raise DataError(
            clean_text(
                f"{job.model}: it has {len(given.facts.doors)} inputs ({names}), and {job.data} gives images for one; give "
                "--data FILE.npz with one array for each"
            )
        )
    folder = job.unlabelled if job.data == "none" else Path(job.data) if is_flat(Path(job.data)) else None
    if folder is None:
        return load_data(job.data, declared, job.seed, progress)
    splits = load_unlabelled(folder, declared, job.seed)
    if splits.train.preprocessing.mean is None:
        raise DataError(
            f"{folder}: the normalisation of pixels is not declared, and it cannot be tried without labels; declare mean "
            f"and std in preprocessing.yaml in the folder, or a PREPROCESSING beside the factory{_known_elsewhere(job.model)}"
        )
    return splits


def _known_elsewhere(model: object) -> str:
    """Which other way of naming the network declares its normalisation, in words."""
    module, _, name = str(model).partition(":")
    return f"; --model torchvision:{clean_text(name)} declares its own" if module == "torchvision.models" else ""


def _wanted(door: Door) -> WantedInput:
    raw = door.type == "float32" and door.own_type != "float32" and not door.own_type.startswith("float")
    return WantedInput(door.name, door.shape, door.type, door.channels_last, raw)
