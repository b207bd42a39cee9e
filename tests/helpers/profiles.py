"""Profiles as files that are quick to measure with: one thread, eight runs, and no doubt about noise unless requested."""

from pathlib import Path

import yaml
from click.testing import CliRunner, Result

from helpers.sshd import Board
from pipeline.cli.main import compress

QUICK = {"warmup_runs": 1, "runs": 8, "block_runs": 4, "processes": 1, "final_processes": 2, "noise_limit": 1.0, "retries": 0}


def here(folder: Path, runtime: dict[str, object] | None = None, **probe: float) -> str:
    """A profile of this machine."""
    return _write(folder / "here.yaml", {"name": "bench", "this_machine": True}, runtime, probe)


def there(folder: Path, board: Board, runtime: dict[str, object] | None = None, **probe: float) -> str:
    """A profile of the board at the other end of a real OpenSSH connection."""
    return _write(folder / "board.yaml", board.facts, runtime, {"reconnect_s": 20, **probe})


def to_walk(folder: Path, board: Board, **probe: float) -> str:
    """A profile of the board, with an absolute budget that any plan of the demo network meets."""
    quick = {"reconnect_s": 20, "runs": 16, "final_processes": 4}
    return _write(folder / "board.yaml", board.facts, {"channel_step": 16}, {**quick, **probe}, {"latency_p50": "1000 ms"})


def command(*arguments: object) -> Result:
    """Run `compress` with these arguments. Any exception other than an exit fails the test."""
    return CliRunner().invoke(compress, [str(each) for each in arguments], catch_exceptions=False)


def _write(
    path: Path,
    device: dict[str, object],
    runtime: dict[str, object] | None,
    probe: dict[str, float],
    budget: dict[str, str] | None = None,
) -> str:
    facts = {"device": device, "runtime": {"threads": 1, **(runtime or {})}, "probe": {**QUICK, **probe}, "budget": budget or {}}
    path.write_text(yaml.safe_dump(facts))
    return str(path)
