"""Board pool: connect to all boards of a profile, and leave out those that cannot be pooled with the others."""

from concurrent.futures import ThreadPoolExecutor

from pipeline.core.profile import Profile
from pipeline.errors import ProbeError
from pipeline.probe.cached import CachedProbe, cache_folder
from pipeline.probe.connection import Notify
from pipeline.probe.interface import Reference
from pipeline.probe.pool import LEAST_BOARDS, Board, PoolProbe, refused_boards
from pipeline.probe.ssh import SshProbe
from pipeline.probe.worker_probe import WorkerProbe

__all__ = ["connect_boards", "of_one_board", "pool_probe"]


def of_one_board(profile: Profile, host: str) -> Profile:
    """The profile of one board of a pool. It does not wait for a lost board, because the others go on."""
    device = profile.device.model_copy(update={"host": host, "hosts": None, "every_board": False})
    return profile.model_copy(update={"device": device, "probe": profile.probe.model_copy(update={"reconnect_s": 0.0})})


def connect_boards(profile: Profile, notify: Notify) -> dict[str, WorkerProbe]:
    """Connect to all boards at the same time. The caller closes them. Returns the boards of the pool by address.

    A board that cannot be reached, or that has another processor or runtime than the others, is left out, and `notify` gets the
    reason. Raises ProbeError if fewer than two boards are left.
    """
    hosts = profile.device.hosts or []

    def connect(host: str) -> WorkerProbe | ProbeError:
        try:
            return SshProbe(of_one_board(profile, host), None, notify)
        except ProbeError as problem:
            return problem

    with ThreadPoolExecutor(max(1, len(hosts))) as threads:
        tried = dict(zip(hosts, threads.map(connect, hosts), strict=True))
    boards = {host: found for host, found in tried.items() if not isinstance(found, ProbeError)}
    left_out = {host: f"{found}; it is left out of the pool" for host, found in tried.items() if isinstance(found, ProbeError)}
    fingerprints = [(host, probe.fingerprint) for host, probe in boards.items()]
    left_out |= refused_boards(fingerprints, profile.runtime.onnxruntime) if fingerprints else {}
    for host in left_out:
        if host in boards:
            boards.pop(host).close()
    if len(boards) < LEAST_BOARDS:
        for probe in boards.values():
            probe.close()
        raise ProbeError(
            f"device.hosts: {len(boards)} of {len(hosts)} boards can be used, and a pool needs at least {LEAST_BOARDS}: "
            f"{'; '.join(left_out.values())}"
        )
    for reason in left_out.values():
        notify(reason)
    return boards


def pool_probe(profile: Profile, boards: dict[str, WorkerProbe], reference: Reference, notify: Notify) -> PoolProbe:
    """A probe on all `boards`. Each times files against `reference`, which it measures itself."""
    return PoolProbe(
        [
            Board(host, CachedProbe(probe.with_reference(reference), reference, cache_folder()), probe.reconnect)
            for host, probe in boards.items()
        ],
        every_board=profile.device.every_board,
        patience_s=profile.probe.reconnect_s,
        notify=notify,
    )
