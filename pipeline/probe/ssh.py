"""SshProbe: measure on a device, through the system's OpenSSH."""

import functools
import secrets

from pipeline.core.profile import Profile
from pipeline.errors import ProbeError
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.interface import Reference
from pipeline.probe.worker_probe import WORKER, WorkerProbe
from pipeline.remote.diagnosis import diagnosis
from pipeline.remote.link import Link, ssh_link

__all__ = ["SshProbe"]


class SshProbe(WorkerProbe):
    """Runs `worker.py` on the profile's device over one connection, which is reopened when it breaks; see `Probe`."""

    def __init__(self, profile: Profile, reference: Reference | None = None, notify: Notify = lambda text: None) -> None:
        device = profile.device
        if device.host is None:
            raise ProbeError(f"{device.name}: device.host is not set, so there is no device to connect to; set it")
        client = secrets.token_hex(8)

        def start() -> Link:
            return ssh_link(device, client, WORKER)

        diagnose = functools.partial(diagnosis, device=device)
        super().__init__(profile, reference, Connection(device.host, start, diagnose, profile.probe.reconnect_s, notify), notify)

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Empty, because runs are timed on the cores of the device."""
        return ()
