"""SSH keys: finds a key that ssh cannot use because it has a passphrase and no agent holds it."""

import subprocess
from pathlib import Path

from pipeline.core.profile import Device
from pipeline.remote.ssh_arguments import ssh_arguments

__all__ = ["locked_key"]

_LIMIT_S = 10


def locked_key(device: Device) -> Path | None:
    """Return a private key for `device` that ssh cannot offer, because it has a passphrase and no agent holds any key.

    The result is None where there is no such key, or where ssh's tools cannot tell.
    """
    if _run("ssh-add", "-l").returncode == 0:
        return None
    asked = _run(*ssh_arguments(device), "-G", "--", device.host or "")
    for line in asked.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        path = Path(value).expanduser()
        if keyword == "identityfile" and path.is_file():
            # with an empty passphrase, ssh-keygen does not ask for one
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
