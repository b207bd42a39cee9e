"""Finished: the artifact of a run that an earlier process completed."""

from collections.abc import Callable

from pipeline.core.artifact import Artifact, read_artifact
from pipeline.core.run import Run
from pipeline.errors import RunError

__all__ = ["finished_artifact"]


def finished_artifact(run: Run, notify: Callable[[str], None]) -> Artifact | None:
    """The artifact of a finished run; None if there is none or if it is damaged. `notify` gets what was found."""
    if not (run.artifact / "artifact.json").exists():
        return None
    try:
        found = read_artifact(run.artifact)
    except RunError as problem:
        notify(f"{run.artifact}: incomplete, so it is created again ({problem})")
        return None
    compared = (
        ""
        if run.facts("sources") is not None
        else "; the hashes of its inputs were not recorded, so the inputs were not compared"
    )
    notify(f"already done: {run.artifact}{compared}")
    for path in (run.supernet, run.checkpoint, run.alignment):
        if path.exists() and not run.is_intact(path):
            notify(f"{path}: it was changed since this run wrote it; the artifact is complete and no longer needs it")
    return found
