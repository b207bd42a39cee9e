"""The output of one program in two processes, which order Python's sets differently and use other addresses."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["said_by_two_processes"]


def said_by_two_processes(program: str) -> list[list[str]]:
    """The words that each process prints. `program` may import from this folder."""
    return [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests')\n{program}"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
