"""Job: what the user asked for, and the identity that a run directory is bound to."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pipeline.core.budget import Limit
from pipeline.core.plan import Importance
from pipeline.core.profile import BudgetText, Profile
from pipeline.core.restriction import Restriction
from pipeline.errors import DataError, ModelError
from pipeline.foreign_text import escape_text
from pipeline.search.problem import NAMED_REWARDS, Reward, SearcherFactory
from pipeline.search.searchers import DEFAULT_SEARCHER, SEARCHERS, starts_on_path, usual_reward
from pipeline.system.files import sha256_file
from pipeline.training.model_args import Argument
from pipeline.training.settings import FinetuneSettings

if TYPE_CHECKING:
    from pipeline.training.task import OwnTask  # at run time this would import torch

__all__ = ["DEPTHS", "Depth", "Job"]

Depth = Literal["auto", "off"]
DEPTHS: tuple[str, ...] = get_args(Depth)
"""Values of `Job.depth`."""


@dataclass(frozen=True)
class Job:
    """One compression job, with the options of the command line.

    >>> from pathlib import Path
    >>> from pipeline import Job
    >>> job = Job(target="raspberrypi")  # the demo network and its data
    >>> job.searcher, job.trials, job.finetuning.epochs
    ('ppo-lagrangian', 60, None)

    Your own network, your own images, and a budget that overrides the profile's:

    >>> job = Job(
    ...     target="raspberrypi",
    ...     model="nets.py:make_net",
    ...     model_args={"width": 0.5},
    ...     weights=Path("net.safetensors"),
    ...     data="./images",
    ...     budget={"latency_p50": "40%", "accuracy_drop": 1.0},
    ... )

    Raises ModelError if there is no such searcher or reward.
    """

    target: str
    model: str = "digits"
    weights: Path | None = None
    data: str = "digits"
    """With "none" there are no labels: `unlabelled` is the data set, and agreement with the dense network is judged."""
    unlabelled: Path | None = None
    """A folder of images without labels. They are used wherever the dense network gives the answers."""
    task: OwnTask | str | None = None
    """Replaces `data`. A text such as "tasks.py:task" is a function that returns the task; it is called when the run loads."""
    budget: Mapping[str, BudgetText] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    """Limits on the user's own functions."""
    searcher: str | SearcherFactory = DEFAULT_SEARCHER
    reward: Reward | None = None
    """What the search maximises: a name, or a function Candidate -> float. By default, what the searcher was made for."""
    trials: int = 60
    seed: int = 0
    device: str = "auto"
    """Where networks are scored and trained: "cpu", "cuda", "cuda:N", or "auto", which is a GPU if there is one. The board is
    part of the profile."""
    out: Path | None = None
    dry_run: bool = False
    """Whether the probe is simulated. Nothing is measured then."""
    allow_ssh_commands: bool = False
    """Whether the ssh configuration that the profile names may run programs on this machine."""
    calibration: Path | None = None
    """A file from `calibrate`. The search then runs here with predicted latencies, and measures once on the device at the end."""
    shape: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Input -> its shape, where an ONNX file leaves sizes free. The name "" stands for the only input."""
    importance: Importance | None = None
    """What ranks channels. None: "l2", and "reconstruction" with few pictures."""
    freeze: tuple[str, ...] = ()
    """Patterns of layers that keep all their channels, such as "backbone.layer1.*"."""
    only: tuple[str, ...] = ()
    """Patterns of the layers that may lose channels. Without any, all may."""
    min_width: Mapping[str, float] = field(default_factory=dict)
    """Pattern -> the smallest share of their channels that these layers keep."""
    depth: Depth = "off"
    """Whether the search may drop whole blocks ("auto") or only channels ("off")."""
    supernet_steps: int | None = None
    """Training steps of the supernet. By default as many as pay if the budget is tight; 0 for none."""
    finetuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    """Not used if `task` is set; its `train` decides."""
    workers: int | Literal["auto"] | None = None
    """Processes that score plans at the same time. "auto": one per core on which nothing is timed. None: "auto" with
    `device.hosts`, and otherwise 1. More than one changes which plans the search asks for."""
    loader_workers: int | None = None
    """Processes that read images ahead. None: on a processor none, and beside a GPU one per core but one, at most 8. The number
    changes no result."""
    command: tuple[str, ...] = ()
    """The command as typed, for the record."""
    model_args: Mapping[str, Argument] = field(default_factory=dict)
    """Arguments of the model's factory, as in `--model-arg width=0.5`."""

    def __post_init__(self) -> None:
        """Raises ModelError or DataError for options that do not fit, before anything is loaded or measured."""
        _ = self.restriction
        if self.shape and not self.model.lower().endswith(".onnx"):
            raise ModelError(f"--shape fixes the sizes of an ONNX file; {self.model} is none")
        if self.unlabelled is None and self.data == "none" and self.task is None:
            raise DataError("data: got 'none', but there are no images without labels either; give --data or --unlabelled FOLDER")
        if self.unlabelled is not None and self.task is not None:
            raise DataError(
                f"{self.unlabelled}: images without labels are not used with a task of your own; leave one of them out"
            )
        if self.depth not in DEPTHS:
            raise ModelError(f"depth: got '{self.depth}'; choose one of {', '.join(DEPTHS)}")
        reward = self.search_reward()
        if self.depth != "off" and isinstance(reward, str) and "entropy" in reward:
            raise ModelError(
                "depth: the entropy of a layer that was dropped is not defined; use --reward accuracy, or --depth off"
            )
        for kind, asked, known in (("searcher", self.searcher, SEARCHERS), ("reward", self.reward, NAMED_REWARDS)):
            if isinstance(asked, str) and asked not in known:
                raise ModelError(f"unknown {kind} '{asked}'; choose one of {', '.join(sorted(known))}, or pass a function")

    @property
    def data_source(self) -> str | None:
        """Where images come from: `data`, or the file of the user's own task. None for a task that was made in Python."""
        if self.task is None:
            return self.data
        return self.task if isinstance(self.task, str) else None

    @property
    def data_words(self) -> str:
        """The sources of the images, for the screen."""
        sources = [self._data_name] if self.data != "none" or self.task else []
        return ", ".join([*sources, *([f"{self.unlabelled} without labels"] if self.unlabelled else [])])

    @property
    def restriction(self) -> Restriction:
        """Which layers may lose channels, and how many. Raises ModelError for a share that is out of range."""
        return Restriction(self.freeze, self.only, tuple(self.min_width.items()), self.depth != "off")

    @property
    def _data_name(self) -> str:
        if self.task is None:
            return self.data
        return self.task if isinstance(self.task, str) else self.task.description

    def search_function(self) -> SearcherFactory:
        """The function that makes the searcher."""
        return SEARCHERS[self.searcher] if isinstance(self.searcher, str) else self.searcher

    def search_reward(self) -> Reward:
        """The reward of the search: `reward`, or the searcher's usual one."""
        return self.reward or (usual_reward(self.searcher) if isinstance(self.searcher, str) else "accuracy")

    @property
    def starts_on_path(self) -> bool:
        """Whether the search starts from the sensitivity of each group, where this is measured."""
        return isinstance(self.searcher, str) and starts_on_path(self.searcher) and self.search_reward() == "accuracy"

    def identity(self, profile: Profile, budget: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the results depend on, as far as it is known before anything is loaded."""
        newer = set() if profile.runtime.allow_fallback else {"allow_fallback"}  # older runs have no such entry
        pool = set() if profile.device.hosts else {"hosts", "every_board"}
        return {
            "profile": profile.model_dump(mode="json", exclude={"budget": True, "device": {"store", *pool}, "runtime": newer}),
            "budget": dict(budget),
            "model": escape_text(self.model),
            **({"model_args": dict(self.model_args)} if self.model_args else {}),  # older runs have no such entry
            **({"shape": {name: list(sizes) for name, sizes in self.shape.items()}} if self.shape else {}),
            "weights": escape_text(self.weights.name) if self.weights else None,
            "data": escape_text(self._data_name),
            **({"unlabelled": escape_text(self.unlabelled.name)} if self.unlabelled else {}),
            "searcher": self.searcher if isinstance(self.searcher, str) else _name(self.searcher),
            "reward": reward if isinstance(reward := self.search_reward(), str) else _name(reward),
            "trials": self.trials,
            "seed": self.seed,
            "dry_run": self.dry_run,
            "calibration": sha256_file(self.calibration) if self.calibration and self.calibration.is_file() else None,
            "importance": self.importance or "l2",  # a run with another usual importance notes it beside the data
            **self.restriction.facts(),
            "supernet_steps": self.supernet_steps,
            "finetuning": _finetuning(self.finetuning),
        }

    def folder(self, identity: Mapping[str, Any]) -> Path:
        """`out`, or a folder under runs/. The same job always gets the same folder, so that the same command finds its run."""
        if self.out is not None:
            return self.out
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        searcher = str(identity["searcher"]).partition("(")[0]  # without settings, which may be long
        words = (Path(self.target).stem, self.model.rpartition(":")[2], searcher)
        return Path("runs") / re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join((*words, digest)))


def _finetuning(settings: FinetuneSettings) -> dict[str, Any]:
    """`settings` as the identity stores them. Older runs can still be resumed: they stored an unset batch size as 128 and unset
    epochs as 20, and had no settings for few pictures.
    """
    usual = FinetuneSettings()
    found = {name: value for name, value in settings.facts().items() if name not in ("recover", "minutes")}
    found |= {name: value for name in ("recover", "minutes") if (value := getattr(settings, name)) != getattr(usual, name)}
    for name, stored in (("batch_size", 128), ("epochs", usual.whole_epochs)):
        if found[name] is None:
            found[name] = stored
        elif found[name] == stored:
            found[f"{name}_was_named"] = True
    return found


def _name(function: Any) -> str:
    """The name that identifies a user's function. Arguments that were bound to it are part of the name."""
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())]
        return f"{_name(function.func)}({', '.join(bound)})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))
