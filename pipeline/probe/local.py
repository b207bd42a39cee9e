"""LocalProbe: measure on this machine, with the worker as a child process."""

from pipeline.core.profile import Profile
from pipeline.errors import ProbeError
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.interface import Reference
from pipeline.probe.worker_probe import WORKER, WorkerProbe
from pipeline.remote.link import LinkLost, local_link

__all__ = ["LocalProbe"]


class LocalProbe(WorkerProbe):
    """Runs `worker.py` on this machine, with the profile's threads and settings; see `Probe`.

    If this machine has fewer cores than the profile has threads, all its cores are used, and the fingerprint says so.
    """

    def __init__(self, profile: Profile, reference: Reference | None = None, notify: Notify = lambda text: None) -> None:
        connection = Connection("this machine", lambda: local_link(WORKER), _diagnosis, profile.probe.reconnect_s, notify)
        super().__init__(profile, reference, connection, notify)


def _diagnosis(loss: LinkLost) -> ProbeError:
    status = "" if loss.status is None else f", status {loss.status}"
    return ProbeError(f"the probe's process on this machine ended ({loss}{status}); run the same command again")
