"""Fleet: do the same on many devices. A few come first, then several at a time, and it stops if too many fail."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from pipeline.core.profile import Profile
from pipeline.deploy.deliver import Delivered
from pipeline.errors import CompressError
from pipeline.foreign_text import clean_text

__all__ = ["Outcome", "Rollout", "Target", "roll_out"]


@dataclass(frozen=True)
class Target:
    """One device of a fleet."""

    name: str
    profile: Profile


@dataclass(frozen=True)
class Rollout:
    """How many devices to do at once, and when to stop."""

    parallel: int = 4
    """Number of devices at a time."""
    canary: int = 1
    """Number of devices that come first. If one of them fails, no other device is touched."""
    max_failures: float = 0.25
    """Share of all devices. If more have failed, no further device is started."""


@dataclass(frozen=True)
class Outcome:
    """The result for one device."""

    name: str
    result: Literal["shipped", "unchanged", "failed", "not tried"]
    delivered: Delivered | None = None
    error: str | None = None
    """Name of the error's class."""
    message: str | None = None
    exit_code: int = 0


def roll_out(
    targets: Sequence[Target],
    action: Callable[[Target], Delivered],
    rollout: Rollout,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[Outcome, ...]:
    """Do `action` on all `targets`, and return the outcomes in their order. `report` gets each outcome when it is known.

    A failing device does not affect the others. Devices that have been started are always completed. This also holds if `report`
    raises: its first error is raised at the end.
    """
    outcomes: dict[str, Outcome] = {}
    troubles: list[Exception] = []

    def settle(outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        try:
            report(outcome)
        except Exception as trouble:
            troubles.append(trouble)

    first, rest = targets[: rollout.canary], targets[rollout.canary :]
    with ThreadPoolExecutor(max(1, rollout.parallel), thread_name_prefix="device") as pool:
        for wave, may_fail in ((first, 0.0), (rest, rollout.max_failures * len(targets))):
            waiting, running = list(wave), set[Future[Outcome]]()
            while running or (waiting and _failures(outcomes) <= may_fail):
                while waiting and len(running) < rollout.parallel and _failures(outcomes) <= may_fail:
                    running.add(pool.submit(_outcome, waiting.pop(0), action))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    settle(each.result())
            if wave is first and _failures(outcomes):
                break
    for target in targets:
        if target.name not in outcomes:
            settle(Outcome(target.name, "not tried"))
    if troubles:
        raise troubles[0]
    return tuple(outcomes[target.name] for target in targets)


def _failures(outcomes: dict[str, Outcome]) -> int:
    return sum(outcome.result == "failed" for outcome in outcomes.values())


def _outcome(target: Target, action: Callable[[Target], Delivered]) -> Outcome:
    try:
        delivered = action(target)
    except CompressError as problem:
        return Outcome(target.name, "failed", None, type(problem).__name__, clean_text(str(problem)), problem.exit_code)
    except Exception as problem:  # a defect on one device must not stop the others half-way
        message = clean_text(f"{target.name}: a defect of this program: {problem!r}")
        return Outcome(target.name, "failed", None, type(problem).__name__, message, 1)
    return Outcome(target.name, "shipped" if delivered.changed else "unchanged", delivered)
