"""Child process: runs a program that may crash or hang, and leaves none of its processes behind."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["run_child"]


def run_child(command: Sequence[str], time_limit_s: float, environment: Mapping[str, str] | None = None) -> str | None:
    """Run the command and return why it failed; None when it succeeded. Its process group is killed at the time limit.

    `environment` overrides variables of this process's environment. The output of the command is discarded.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    except OSError as problem:
        return f"it does not start ({problem.strerror})"
    try:
        status = child.wait(time_limit_s)
    except subprocess.TimeoutExpired:
        return f"no answer after {time_limit_s:.0f} s"
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return None if status == 0 else f"it exited with {status}"
