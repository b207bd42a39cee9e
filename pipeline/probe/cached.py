"""CachedProbe: store measurements, and reuse them under the same conditions."""

import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.core.feeds import arrays_of
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.errors import StorageError
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Reference, Workload
from pipeline.system.files import sha256_bytes, write_atomically
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["CachedProbe", "cache_folder"]

_MEASUREMENT = TypeAdapter(Measurement)
SLOWER = 1.25
"""Largest slowdown of the reference. It is above the noise of a busy machine and below the loss of half a core."""


def cache_folder() -> Path:
    """Return the folder for stored measurements: COMPRESS_CACHE_DIR, or the user's cache folder.

    For a user without a home folder, the returned path is not writable. `CachedProbe` then stores nothing.
    """
    own = os.environ.get("COMPRESS_CACHE_DIR")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "compress" / "measurements"
    except RuntimeError:  # no HOME and no entry in the user database, so no cache folder
        return Path(os.devnull, "compress")


class CachedProbe:
    """Wraps a probe and stores its measurements; see `Probe`.

    The key contains the structures of the graph and its reference, the inputs' shapes, the whole fingerprint (machine,
    runtime version, every setting), the number of processes and whether memory is measured. A stored measurement that
    cannot be read is taken again. Failures and measurements with remarks are not stored.

    A measurement is neither stored nor reused if its reference took more than SLOWER times as long as in the fastest
    one. Another program then shared the core, which slows only files that run longer than a time slice.
    """

    def __init__(self, probe: Probe, reference: Reference, folder: Path) -> None:
        self._probe = probe
        self._folder = folder
        self._reference_ms = float("inf")
        inputs = arrays_of(reference.inputs)
        shapes = str(inputs[0].shape) if len(inputs) == 1 else str([(each.shape, each.dtype.name) for each in inputs])
        self._circumstances = f"{reference.graph.structure} {shapes} {probe.fingerprint}"

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Probe.fingerprint`."""
        return self._probe.fingerprint

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """See `Probe.busy_cores`."""
        return self._probe.busy_cores

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """See `Probe.measure`. `options.fresh` skips the stored measurement. Nothing is stored or reused for a `load`."""
        if load is not None:
            return self._probe.measure(graph, options, load)
        key = sha256_bytes(f"{graph.structure} {options.processes} {options.memory} {self._circumstances}".encode())
        path = self._folder / f"{key}.json"
        if not options.fresh:
            found = self._read(path, graph)
            if found is not None and self._undisturbed(found):
                return found
        measured = self._probe.measure(graph, options)
        if isinstance(measured, Measurement) and not measured.remarks and self._undisturbed(measured):
            self._write(path, measured)
        return measured

    def _undisturbed(self, measured: Measurement) -> bool:
        """Whether the reference was at most SLOWER times as slow as in the fastest measurement so far."""
        reference = measured.reference_p50_ms
        if reference is None:
            return True
        self._reference_ms = min(self._reference_ms, reference.value)
        return reference.value <= SLOWER * self._reference_ms

    def close(self) -> None:
        """Close the wrapped probe."""
        self._probe.close()

    def _read(self, path: Path, graph: Graph) -> Measurement | None:
        try:
            found = _MEASUREMENT.validate_json(read_foreign(path, JSON_LIMIT_BYTES, own=True))
        except (OSError, ValidationError):
            return None
        return found if (found.structure, found.fingerprint) == (graph.structure, self.fingerprint) else None

    def _write(self, path: Path, measured: Measurement) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _MEASUREMENT.dump_json(measured))
        except (OSError, StorageError):
            pass  # the cache only saves time; a run works without it
