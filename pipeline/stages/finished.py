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
        notify(f"{run.artifact}: not whole, so it is made anew ({problem})")
        return None
    compared = (
        "" if run.facts("sources") is not None else "; which files it was made from was not recorded, so they were not compared"
    )
    notify(f"already done: {run.artifact}{compared}")
    for path in (run.supernet, run.checkpoint, run.alignment):
        if path.exists() and not run.is_intact(path):
            notify(f"{path}: it was changed since this run wrote it; the artifact is whole and does not need it any more")
    return found
