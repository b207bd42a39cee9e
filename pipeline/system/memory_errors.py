"""Memory errors: a command that runs out of memory ends with one line that says so, whichever library failed."""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable

from pipeline.errors import OutOfMemory

__all__ = ["SIGNS", "out_of_memory", "watch_limited"]

SIGNS = (
    "failed to map segment",  # the loader of shared libraries
    "annot allocate memory",  # the system, in any case of its first letter
    "can't allocate memory",  # torch
    "could not create a primitive",  # oneDNN
    "bad_alloc",  # C++
    "bad allocation",  # onnxruntime
    "Failed to allocate memory",
    "can't start new thread",
)
"""Parts of messages with which the system and libraries say that memory is missing."""
ENDINGS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
"""Signals with which a library ends the process when it gets no memory."""


def out_of_memory(problem: BaseException) -> OutOfMemory | None:
    """Return `problem` as an OutOfMemory error where a lack of memory caused it; None for any other error."""
    described = isinstance(problem, OSError | ImportError | RuntimeError) and any(sign in str(problem) for sign in SIGNS)
    if not (described or isinstance(problem, MemoryError) or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM)):
        return None
    return _shortage()


def _shortage() -> OutOfMemory:
    limit_bytes = _limit_bytes()
    if limit_bytes is None:
        return OutOfMemory("there is not enough memory; close other programs, or give fewer or smaller images")
    return OutOfMemory(
        f"there is not enough memory: this process may use {limit_bytes // 2**20} MiB of address space; raise the limit (ulimit "
        "-v)"
    )


def watch_limited(run: Callable[[], int]) -> int:
    """Return the exit code of `run`. Where the address space is limited, `run` is called in a child process, because some
    libraries end their process when they get no memory.
    """
    if _limit_bytes() is None:
        return run()
    child = os.fork()
    if not child:
        return run()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code
    if -code in ENDINGS:
        sys.stderr.write(f"compress: {_shortage()}\n")
        return OutOfMemory.exit_code
    return 128 - code


def _limit_bytes() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
