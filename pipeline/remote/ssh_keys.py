"""Why a device may have refused every key: a key with a passphrase is of no use where no agent holds it."""

import subprocess
from pathlib import Path

from pipeline.core.profile import Device
from pipeline.remote.ssh_arguments import ssh_arguments

__all__ = ["locked_key"]

_LIMIT_S = 10


def locked_key(device: Device) -> Path | None:
    """A private key that ssh would offer to `device` if it could: it has a passphrase, and no agent holds any key.

    None where there is no such key, or ssh's tools cannot tell.
    """
    if _run("ssh-add", "-l").returncode == 0:
        return None
    asked = _run(*ssh_arguments(device), "-G", "--", device.host or "")
    for line in asked.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        path = Path(value).expanduser()
        if keyword == "identityfile" and path.is_file():
            # an empty passphrase, so that nobody is asked for one
            opened = _run("ssh-keygen", "-y", "-P", "", "-f", str(path))
            if opened.returncode and "passphrase" in opened.stderr:
                return path
    return None


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return subprocess.CompletedProcess(arguments, 127, "", "")
