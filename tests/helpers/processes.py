"""The output of a program in another process, which orders Python's sets differently and uses other addresses."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["said_by_another_process"]


def said_by_another_process(program: str) -> list[str]:
    """The words that it prints. Its strings have other hashes than this process's. `program` may import from this folder."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests')\n{program}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
