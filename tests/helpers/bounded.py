"""Programs that run with limited memory."""

import resource
import subprocess
import sys

__all__ = ["bounded"]


def bounded(program: str, *arguments: object, megabytes: int) -> str:
    """The output of a program in a process of its own with a limited address space."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))

    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=bound, check=True).stdout
