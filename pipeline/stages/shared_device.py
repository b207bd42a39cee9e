"""Shared device: the machine that a run measures on. A run connects to it once and uses that connection for everything."""

import contextlib
from collections.abc import Iterator

from pipeline.core.measurement import Failure
from pipeline.core.node_times import NodeTime
from pipeline.core.profile import Profile
from pipeline.errors import ProbeError
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.probe.cached import CachedProbe, cache_folder
from pipeline.probe.connection import Notify
from pipeline.probe.interface import Probe, Reference
from pipeline.probe.local import LocalProbe
from pipeline.probe.ssh import SshProbe
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.stages.board_pool import connect_boards, pool_probe
from pipeline.stages.probe_adapter import graph_of, reference_of

__all__ = ["SharedDevice", "connect", "share_device"]


class SharedDevice:
    """The profile's device, or this machine if the profile names no host.

    The first method that needs the device connects to it. All later ones use the same connection, which is reopened if it breaks,
    until one of their probes closes it.
    """

    def __init__(self, profile: Profile, notify: Notify) -> None:
        self.profile = profile
        self._notify = notify
        self._connected: WorkerProbe | None = None
        self._boards: dict[str, WorkerProbe] = {}

    def onnxruntime(self) -> str:
        """The version of onnxruntime on the device. Raises ProbeError and its subclasses."""
        return self._connect().fingerprint.onnxruntime

    def probe(self, builder: PrunedModelBuilder) -> Probe:
        """A probe whose reference is the dense network of `builder`. With several boards, it measures on all of them.

        Raises ProbeError and its subclasses.
        """
        reference = reference_of(builder)
        if self.profile.device.hosts:
            self._connect()
            return pool_probe(self.profile, self._boards, reference, self._notify)
        return CachedProbe(self._connect().with_reference(reference), reference, cache_folder())

    def node_times(self, pruned: PrunedModel, builder: PrunedModelBuilder) -> tuple[NodeTime, ...]:
        """The time of each node of `pruned` on the device, with the inputs of `builder`. Raises ProbeError or a subclass."""
        found = self._connect().with_reference(reference_of(builder)).node_times(graph_of(pruned))
        if isinstance(found, Failure):
            raise ProbeError(f"the layers could not be timed: {found.kind}: {found.detail}")
        return found

    def close(self) -> None:
        """Close the connection, if there is one. All probes that share it end."""
        for board in self._boards.values():
            board.close()
        self._boards = {}
        if self._connected:
            self._connected.close()
            self._connected = None

    def _connect(self) -> WorkerProbe:
        if self.profile.device.hosts:
            up = [board for board in self._boards.values() if not board.closed]
            if not up:
                self._boards = connect_boards(self.profile, self._notify)
            return up[0] if up else next(iter(self._boards.values()))
        if self._connected is None or self._connected.closed:
            self._connected = connect(self.profile, None, self._notify)
        return self._connected


@contextlib.contextmanager
def share_device(profile: Profile, notify: Notify) -> Iterator[SharedDevice]:
    """The device of `profile` for the block. It is connected to when it is first needed, and closed at the end."""
    with contextlib.closing(SharedDevice(profile, notify)) as device:
        yield device


def connect(profile: Profile, reference: Reference | None, notify: Notify = lambda text: None) -> WorkerProbe:
    """A probe on the profile's device, or on this machine if the profile names no host. Raises ProbeError and its subclasses."""
    return (SshProbe if profile.device.host else LocalProbe)(profile, reference, notify)
