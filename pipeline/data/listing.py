"""Listing: which files of a folder are images, and which are skipped."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.decode import image_suffixes

__all__ = ["Skipped", "class_folders", "image_files", "is_flat", "loose_images", "names_below", "skipped_files"]

SYSTEM_FOLDERS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
"""Files that operating systems, file servers and Python leave in folders, in lower case. Names with a leading dot count too."""

Skipped = Counter[str]
"""Kind of skipped files, in words -> how many files."""

Identity = tuple[int, int]


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, without hidden and system folders. Links to folders count."""
    return sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_system_file(entry.name, SYSTEM_FOLDERS)
    )


def image_files(folder: Path, skipped: Skipped) -> list[Path]:
    """Return every image below `folder`, sorted. `skipped` counts all other files.

    Links to files and folders are followed wherever they lead, but not to a folder above, and no folder is read twice.
    """
    above = {_identity(parent) for parent in (folder, *folder.parents, *folder.resolve().parents)}
    return sorted(_walk(folder, above, set(), skipped), key=lambda path: path.parts)


def names_below(paths: Sequence[Path], root: Path) -> Iterator[bytes]:
    """The names of `paths`, which are below `root`, in the encoding of the file system. A name may not be UTF-8.

    They are cut and not computed, because there may be hundreds of thousands.
    """
    start = len(str(paths[0])) - len(str(paths[0].relative_to(root))) if paths else 0
    return (os.fsencode(str(path)[start:]) for path in paths)


def is_flat(folder: Path) -> bool:
    """Whether `folder` holds images directly and no folders for classes."""
    return folder.is_dir() and not class_folders(folder) and loose_images(folder) > 0


def loose_images(folder: Path) -> int:
    """Return how many images lie directly in `folder`."""
    return sum(
        not entry.is_dir()
        and not _is_system_file(entry.name, SYSTEM_FILES)
        and Path(entry.name).suffix.lower() in image_suffixes()
        for entry in os.scandir(folder)
    )


def skipped_files(folder: Path) -> Skipped:
    """Count files of `folder` that are not part of the data: images beside the class folders, and files in system folders."""
    found = Skipped()
    if loose := loose_images(folder):
        found["images in no class folder"] += loose
    for entry in os.scandir(folder):
        if entry.is_dir() and (entry.name.lower() in SYSTEM_FOLDERS or entry.name == ".ipynb_checkpoints"):
            found += _files_in(folder / entry.name)
    return found


def _files_in(folder: Path) -> Skipped:
    return Skipped({f"in {folder.name[:40]}/": sum(len(files) for _, _, files in os.walk(folder))})


def _walk(folder: Path, above: set[Identity], seen: set[Identity], skipped: Skipped) -> Iterator[Path]:
    for entry in os.scandir(folder):
        path = folder / entry.name
        if entry.is_dir():
            identity = _identity(path)
            if _is_system_file(entry.name, SYSTEM_FOLDERS):
                skipped.update(_files_in(path))
            elif identity in above:
                skipped["links to a parent folder"] += 1
            elif identity in seen:
                skipped["links to a folder that was already read"] += 1
            else:
                seen.add(identity)
                yield from _walk(path, {*above, identity}, seen, skipped)
        elif _is_system_file(entry.name, SYSTEM_FILES):
            skipped["hidden" if entry.name.startswith(".") else entry.name] += 1
        elif Path(entry.name).suffix.lower() not in image_suffixes():
            skipped[Path(entry.name).suffix.lower()[:20] or "files without a suffix"] += 1
        elif entry.is_symlink() and not path.exists():
            skipped["broken links"] += 1
        else:
            yield path


def _is_system_file(name: str, known: set[str]) -> bool:
    return name.startswith(".") or name.lower() in known


def _identity(folder: Path) -> Identity:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino
