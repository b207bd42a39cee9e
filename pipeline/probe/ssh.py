"""SshProbe: measurements on a device, through the system's OpenSSH."""

import functools
import secrets

from pipeline.errors import DeviceSoftware, DeviceUnreachable, HostKeyRefused, ProbeError
from pipeline.probe.base import Reference
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.link import Link, LinkLost, ssh_link
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.profile import Device, Profile

__all__ = ["SshProbe"]

SSH_FAILED = 255
"""OpenSSH's own exit status; any other is the remote command's."""
NO_COMMAND = (126, 127)


class SshProbe(WorkerProbe):
    """Runs `worker.py` on the profile's device over one connection, which is made again when it breaks; see `Probe`."""

    def __init__(self, profile: Profile, reference: Reference | None = None, notify: Notify = lambda text: None) -> None:
        device = profile.device
        if device.host is None:
            raise ProbeError(f"{device.name}: device.host is not set, so there is nothing to connect to")
        client = secrets.token_hex(8)

        def start() -> Link:
            return ssh_link(device, client)

        diagnose = functools.partial(_diagnosis, device=device)
        super().__init__(profile, reference, Connection(device.host, start, diagnose, profile.probe.reconnect_s, notify), notify)

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """None here: the device has its own."""
        return ()


def _diagnosis(loss: LinkLost, device: Device) -> ProbeError:
    """What a lost link means, from what ssh said."""
    said, host = str(loss), device.host
    if "IDENTIFICATION HAS CHANGED" in said or ("host key for" in said.lower() and "has changed" in said):
        return HostKeyRefused(
            f"{host}: its host key is not the one that is known ({said}); if the device was set up anew, forget the old key "
            "(ssh-keygen -R and its name) and connect once by hand; if not, somebody may stand in between"
        )
    if "Host key verification failed" in said or "host key is known" in said:
        return HostKeyRefused(
            f"{host}: its host key is not known here; connect once by hand (ssh {host}), compare the fingerprint it shows with "
            "the device's own, and accept it"
        )
    if "Permission denied" in said:
        return DeviceUnreachable(
            f"{host}: it lets nobody in with the keys there are ({said}); install one with: ssh-copy-id {host} (passwords are "
            "never asked for)"
        )
    if loss.status in NO_COMMAND:
        return DeviceSoftware(f"{host}: no interpreter '{device.python}' there ({said}); set device.python")
    if loss.status == SSH_FAILED:
        return DeviceUnreachable(f"{host}: cannot be reached ({said}); is it on, and does 'ssh {host} true' work?")
    return DeviceUnreachable(f"{host}: the connection was lost ({said}); does 'ssh {host} {device.python} --version' work?")
