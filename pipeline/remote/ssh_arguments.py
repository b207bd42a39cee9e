"""How ssh is started: the arguments before the command, the same for every conversation with a device."""

import shlex
from pathlib import Path

from pipeline.core.profile import Device

__all__ = ["by_hand", "ssh_arguments"]

_OPTIONS = (
    # OpenSSH before 8.7 does not have some of the options below
    "IgnoreUnknown=SessionType,StdinNull,ForkAfterAuthentication",
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    # whatever of these the user's configuration sets for his own sessions would break a conversation with a program
    "RemoteCommand=none",
    "SessionType=default",
    "StdinNull=no",
    "ForkAfterAuthentication=no",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
)


def ssh_arguments(device: Device) -> list[str]:
    """`ssh` with its options; `--`, the host and the command follow.

    The user's configuration, keys, agent and jump hosts apply. Nobody is asked for a password, and a host key that is not
    known is refused, whatever the configuration says.
    """
    # -T: no terminal; -x, -a: neither X11 nor the agent is forwarded; -e none: no escape character
    arguments = ["ssh", "-T", "-x", "-a", "-e", "none", *_configuration(device)]
    for option in _OPTIONS:
        arguments += ["-o", option]
    return arguments


def by_hand(device: Device) -> str:
    """What a user types to connect to `device` himself, as text for a message."""
    return shlex.join(["ssh", *_configuration(device), device.host or ""])


def _configuration(device: Device) -> list[str]:
    return ["-F", str(Path(device.ssh_config).expanduser())] if device.ssh_config else []
