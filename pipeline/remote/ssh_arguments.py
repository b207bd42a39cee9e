"""Arguments of ssh before the command. They are the same for every connection to a device."""

import shlex
from pathlib import Path

from pipeline.core.profile import Device

__all__ = ["manual_command", "ssh_arguments"]

_OPTIONS = (
    # OpenSSH before 8.7 does not have some of the options below
    "IgnoreUnknown=SessionType,StdinNull,ForkAfterAuthentication",
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    # a user's configuration may set these for interactive sessions, and they would break the connection to a program
    "RemoteCommand=none",
    "SessionType=default",
    "StdinNull=no",
    "ForkAfterAuthentication=no",
    "PermitLocalCommand=no",
    "ClearAllForwardings=yes",
)


def ssh_arguments(device: Device) -> list[str]:
    """Return `ssh` with its options; the caller adds `--`, the host and the command.

    The user's configuration, keys, agent and jump hosts apply. ssh never asks for a password, and it refuses an unknown host
    key, whatever the configuration says.
    """
    # -T: no terminal; -x, -a: neither X11 nor the agent is forwarded; -e none: no escape character
    arguments = ["ssh", "-T", "-x", "-a", "-e", "none", *_configuration(device)]
    for option in _OPTIONS:
        arguments += ["-o", option]
    return arguments


def manual_command(device: Device) -> str:
    """Return the command that a user types to connect to `device`, as text for a message."""
    return shlex.join(["ssh", *_configuration(device), device.host or ""])


def _configuration(device: Device) -> list[str]:
    return ["-F", str(Path(device.ssh_config).expanduser())] if device.ssh_config else []
