"""Profile: one device, its runtime settings, how to measure on it, and its budget."""

import math
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from pipeline.core.host_name import checked_host
from pipeline.core.opsets import choose_format, reads
from pipeline.errors import ProfileError, ThreadsError
from pipeline.foreign_text import ForeignText
from pipeline.system.bundled import shipped_files
from pipeline.system.ssh_config import refuse_commands
from pipeline.system.strict_yaml import load_yaml
from pipeline.system.units import parse_bytes

__all__ = [
    "BudgetText",
    "Device",
    "Precision",
    "ProbeSettings",
    "Profile",
    "Provider",
    "Runtime",
    "available_cores",
    "load_profile",
]

ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
BudgetText = str | float
Precision = Literal["fp32", "int8"]
Provider = Literal["CPUExecutionProvider", "XnnpackExecutionProvider", "OpenVINOExecutionProvider"]


class _Strict(BaseModel):
    """A frozen model that refuses unknown keys and converts no value silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Device(_Strict):
    """The board, and how to reach it."""

    name: ForeignText = Field(min_length=1, examples=["Raspberry Pi 4 Model B"])
    this_machine: bool = False
    """True only where the machine that runs `compress` is the target; its figures are then the device's."""
    architecture: Literal["aarch64", "armv7l", "x86_64"] | None = Field(None, examples=["aarch64"])
    cpu: ForeignText | None = Field(None, examples=["Cortex-A72"])
    cores: int | None = Field(None, ge=1, le=1024, examples=[4])
    gmacs_per_s: float | None = Field(None, gt=0, examples=[14.8])
    """Speed that others report for float32 convolutions on all its cores. `doctor` warns when the speed is far from it."""
    memory: ByteCount | None = Field(None, examples=["4 GiB"])
    host: str | None = Field(None, examples=["pi@raspberrypi.local"])
    """Address of the device for ssh; null: this machine measures in place of the device."""
    hosts: list[str] | None = Field(None, max_length=1000, examples=["[pi@board-1.local, pi@board-2.local]"])
    """Addresses of several boards of this type, which measure at the same time, in place of `host`."""
    every_board: bool = False
    """With `hosts`: whether a verdict needs each board to be within the limit, and not their mean."""
    python: str = Field("python3", pattern=r"^(~/)?[A-Za-z0-9_./+][A-Za-z0-9_./+-]*$", examples=["python3"])
    """Python interpreter on the device that can import onnxruntime and numpy."""
    ssh_config: str | None = Field(None, min_length=1, examples=["./ssh_config"])
    """OpenSSH configuration to use instead of your own; a relative path starts at the profile's folder. It must not run programs
    on this machine without --allow-ssh-commands."""
    store: str = Field("~/compress", pattern=r"^(~/|/)[A-Za-z0-9_./+-]+$", examples=["~/compress"])
    """Folder on the device that holds the releases; `current` in it links to the active release."""

    @field_validator("host")
    @classmethod
    def _host_is_a_name(cls, host: str | None) -> str | None:
        return host if host is None else checked_host(host)

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names(cls, hosts: list[str] | None) -> list[str] | None:
        if hosts is not None and len({checked_host(host) for host in hosts}) < max(2, len(hosts)):
            raise ValueError("expected at least two different boards; a single one is device.host")
        return hosts

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.hosts:
            if self.host not in (None, self.hosts[0]):
                raise ValueError("host and hosts exclude each other; remove one")
            object.__setattr__(self, "host", self.hosts[0])  # for all work that needs one board
        if self.this_machine and self.host:
            raise ValueError(f"this_machine and host{'s' if self.hosts else ''} exclude each other; remove one")
        if self.every_board and not self.hosts:
            raise ValueError("every_board needs hosts, a list of boards; add it, or remove every_board")
        if not self.this_machine:
            for key in ("architecture", "cores", "memory"):
                if getattr(self, key) is None:
                    raise ValueError(f"'{key}' is missing; only a device with this_machine: true may leave it out")
        return self


class Runtime(_Strict):
    """ONNX Runtime settings on the device. The same settings are measured and shipped."""

    onnxruntime: str | None = Field(None, pattern=r"^\d+\.\d+(\.\d+)?$", examples=['"1.22.1"'])
    execution_provider: Provider = Field("CPUExecutionProvider", examples=["CPUExecutionProvider"])
    allow_fallback: bool = False
    """Whether the CPU provider may run nodes that `execution_provider` does not. Otherwise such a network is refused."""
    threads: int | Literal["all"] = Field("all", examples=[4])
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = Field("all", examples=["all"])
    spinning: bool = True
    """Waiting threads spin to start sooner; false saves battery where frames are rare."""
    arena: bool = True
    memory_pattern: bool = True
    prepacking: bool = True
    blocked_layout: bool = True
    """ONNX Runtime's NCHWc layout, in which a width costs as much as the next multiple of 8 or 16. Builds for ARM before 2026 do
    not have it; false makes this machine compute as they do."""
    denormal_as_zero: bool = False
    opset: int | None = Field(None, ge=18, le=26, examples=[18])
    """Opset of the shipped file; null: the lowest that the network needs. The device's onnxruntime must read it."""
    ir_version: int | None = Field(None, ge=8, le=13, examples=[9])
    """IR version of the shipped file; null: 9, which onnxruntime reads from 1.15 on."""
    ort_format: bool = False
    """Also ship the file in onnxruntime's own format, and the list of operators for a reduced build of onnxruntime."""
    channel_step: int | Literal["measured"] = Field("measured", examples=["measured"])
    """Widths are multiples of this, because vector units are fast only at multiples of their own width. `measured`: a short sweep
    before the search finds the step."""

    @field_validator("onnxruntime")
    @classmethod
    def _a_known_release(cls, version: str | None) -> str | None:
        if version is not None:
            reads(version)
        return version

    @field_validator("opset", "ir_version")
    @classmethod
    def _can_be_read(cls, value: int | None, info: ValidationInfo) -> int | None:
        version = info.data.get("onnxruntime")
        if version is not None:
            choose_format([version], **{"opset": None, "ir_version": None, str(info.field_name): value})
        return value

    @field_validator("ort_format")
    @classmethod
    def _can_be_loaded(cls, value: bool, info: ValidationInfo) -> bool:
        version = info.data.get("onnxruntime")
        if value and version is not None and not reads(version).ort_format:
            raise ValueError(
                f"onnxruntime {version} does not load the current ORT format; install 1.16 or later on the device, or write false"
            )
        return value

    @field_validator("channel_step")
    @classmethod
    def _some_channels(cls, step: int | str) -> int | str:
        if isinstance(step, int) and not 1 <= step <= 256:
            raise ValueError("expected a whole number from 1 to 256, or measured")
        return step

    @field_validator("threads")
    @classmethod
    def _some_threads(cls, threads: int | str) -> int | str:
        if isinstance(threads, int) and not 1 <= threads <= 1024:
            raise ValueError("expected a whole number of at least 1, or all")
        return threads


class ProbeSettings(_Strict):
    """How often and how long to measure."""

    warmup_runs: int = Field(10, ge=1, le=10_000, examples=[10])
    runs: int = Field(64, ge=8, le=100_000, examples=[64])
    """Timed runs of the candidate in each process; the dense graph runs equally often in between."""
    block_runs: int = Field(8, ge=1, le=1000, examples=[8])
    """Consecutive runs of one graph before the other takes its turn."""
    processes: int = Field(2, ge=1, le=50, examples=[2])
    """Fresh processes per trial."""
    final_processes: int = Field(5, ge=1, le=100, examples=[5])
    """Fresh processes for plans that are measured again and for the shipped file."""
    time_limit_s: float = Field(60.0, gt=0, le=86_400, examples=[60.0])
    """Timed runs of one process stop after this time; the completed runs are used."""
    timeout_s: float = Field(300.0, gt=0, le=86_400, examples=[300.0])
    """A process that has not answered after this time is killed, and the candidate is marked as failed."""
    cooldown_s: float = Field(120.0, ge=0, le=3600, examples=[120.0])
    """Longest wait for a throttled device before it is measured again."""
    reconnect_s: float = Field(600.0, ge=0, le=86_400, examples=[600.0])
    """Longest wait for a lost device before the run ends. The run can be resumed."""
    noise_limit: float = Field(0.10, gt=0, le=1, examples=[0.10])
    """Largest median absolute deviation, relative to the median, of a stable measurement."""
    retries: int = Field(1, ge=0, le=20, examples=[1])
    """How often an unstable measurement is repeated."""

    @field_validator("time_limit_s", "timeout_s", "cooldown_s", "reconnect_s", mode="before")
    @classmethod
    def _whole_seconds_are_numbers_too(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) < 2**53 else math.inf  # infinity is out of range, as a number of this size is
        return value


class Profile(_Strict):
    """The content of a file in hw_profiles/."""

    device: Device
    runtime: Runtime
    probe: ProbeSettings = Field(default_factory=ProbeSettings)
    precision: list[Precision] = Field(["fp32"], examples=["[fp32, int8]"])
    """int8: also try int8 at the end, and ship it where it is faster on the device and accurate enough."""
    budget: dict[str, BudgetText] = Field(default_factory=dict, examples=["{latency_p50: 50 %}"])

    @field_validator("precision")
    @classmethod
    def _fp32_and_others(cls, precision: list[Precision]) -> list[Precision]:
        if "fp32" not in precision or len(set(precision)) < len(precision):
            raise ValueError("expected [fp32] or [fp32, int8]")
        return precision

    @property
    def measures_its_device(self) -> bool:
        """Whether absolute time and memory figures are the device's own."""
        return self.device.this_machine or self.device.host is not None

    @property
    def cores(self) -> int:
        """Number of cores of the device; for this machine at most the number that is available."""
        available = len(available_cores())
        return min(self.device.cores or available, available) if self.device.this_machine else self.device.cores or available

    @property
    def memory_bytes(self) -> int:
        """Memory of the device in bytes."""
        return self.device.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    @property
    def architecture(self) -> str:
        """Instruction set of the device."""
        return self.device.architecture or platform.machine()

    @property
    def threads(self) -> int:
        """Number of threads for one inference on the device."""
        return self.cores if self.runtime.threads == "all" else int(self.runtime.threads)


def available_cores() -> list[int]:
    """Return the cores that this process may use, lowest first. In a container they can be fewer than the host has."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load_profile(target: str, *, allow_ssh_commands: bool = False) -> Profile:
    """Load the profile at path `target`, or the one of that name in hw_profiles/. Relative paths in it start at its own folder.

    allow_ssh_commands: whether the ssh configuration that the profile names may run programs on this machine.

    Raises ProfileError with file and line, also where that configuration runs programs without permission. Raises ThreadsError
    when the threads exceed the device's cores.
    """
    path = _find(target)
    profile = load_yaml(path, Profile, ProfileError)
    if profile.device.ssh_config is not None:
        try:
            Path(profile.device.ssh_config).expanduser()
        except RuntimeError:
            raise ProfileError(
                f"{path}: device.ssh_config: the home folder in '{profile.device.ssh_config[:200]}' is unknown; write the full "
                "path"
            ) from None
        beside = str(path.parent / Path(profile.device.ssh_config).expanduser()) if path.parent != Path() else None
        device = profile.device.model_copy(update={"ssh_config": beside or profile.device.ssh_config})
        profile = profile.model_copy(update={"device": device})
        if not allow_ssh_commands:
            refuse_commands(Path(str(device.ssh_config)))
    if profile.threads > profile.cores:
        raise ThreadsError(
            f"{path}: runtime.threads is {profile.threads}, but {profile.device.name} has {profile.cores} "
            f"core{'s' if profile.cores > 1 else ''}; write threads: {profile.cores} or less"
        )
    return profile


def _find(target: str) -> Path:
    path = Path(target)
    with suppress(OSError):  # the name can be too long for a file
        if path.is_file():
            return path
    known = shipped_files("hw_profiles", ".yaml")
    name = path.name.removesuffix(".yaml")
    if str(path.parent) == "." and name in known:
        return known[name]
    raise ProfileError(
        f"unknown profile '{target}'; give a YAML file or one of {', '.join(sorted(known))}; or copy a similar one from "
        f"{next(iter(known.values())).parent} and edit it"
    )
