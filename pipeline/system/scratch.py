"""Scratch folders: temporary folders that the next run removes if a killed process left them."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.system.foreign_file import open_foreign

__all__ = ["scratch_folder"]

PREFIX = "compress-scratch-"
HELD = "held"
"""A file in each folder, which is locked as long as the folder is in use."""
YOUNG_S = 60.0
"""A younger folder may not be locked yet."""


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Create a temporary folder, and remove it at the end. Folders that killed processes of this user left are removed too."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    try:
        with (folder / HELD).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(temporary: Path) -> None:
    for left in temporary.glob(f"{PREFIX}*"):
        # the folder may be gone meanwhile, in use, or not made by this program
        with contextlib.suppress(OSError):
            facts = left.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or time.time() - facts.st_mtime < YOUNG_S:
                continue
            with open_foreign(left / HELD, limit_bytes=0, own=True) as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
