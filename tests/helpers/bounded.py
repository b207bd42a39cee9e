"""Programs that run with an end to their memory."""

import resource
import subprocess
import sys

__all__ = ["bounded"]


def bounded(program: str, *arguments: object, megabytes: int) -> str:
    """What a program prints that runs in a process of its own, with an end to its address space."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))

    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=bound, check=True).stdout
