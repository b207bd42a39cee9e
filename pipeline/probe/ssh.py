"""SshProbe: measurements on a device, through the system's OpenSSH."""

import functools
import secrets

from pipeline.errors import ProbeError
from pipeline.probe.base import Reference
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.diagnosis import diagnosis
from pipeline.probe.link import Link, ssh_link
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.profile import Profile

__all__ = ["SshProbe"]


class SshProbe(WorkerProbe):
    """Runs `worker.py` on the profile's device over one connection, which is made again when it breaks; see `Probe`."""

    def __init__(self, profile: Profile, reference: Reference | None = None, notify: Notify = lambda text: None) -> None:
        device = profile.device
        if device.host is None:
            raise ProbeError(f"{device.name}: device.host is not set, so there is nothing to connect to")
        client = secrets.token_hex(8)

        def start() -> Link:
            return ssh_link(device, client)

        diagnose = functools.partial(diagnosis, device=device)
        super().__init__(profile, reference, Connection(device.host, start, diagnose, profile.probe.reconnect_s, notify), notify)

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """None here: the device has its own."""
        return ()
