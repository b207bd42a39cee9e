"""Inventory: several devices in a YAML file, each with its profile and its address, and groups of them."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.core.profile import Device, Profile, load_profile
from pipeline.deploy.fleet import Target
from pipeline.errors import ProfileError
from pipeline.system.strict_yaml import load_yaml

__all__ = ["read_inventory"]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Entry(_Strict):
    name: str = Field(pattern=NAME, examples=["kitchen"])
    profile: str = Field(min_length=1, examples=["raspberrypi"])
    """A file relative to the inventory's folder, or a name in hw_profiles/."""
    host: str | None = Field(None, min_length=1, examples=["pi@kitchen.local"])
    """Replaces the profile's host."""


class _Inventory(_Strict):
    devices: list[_Entry] = Field(min_length=1, max_length=10_000)
    groups: dict[str, list[str]] = Field(default_factory=dict, examples=["{ground-floor: [kitchen]}"])

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [entry.name for entry in self.devices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two devices have the name '{twice}'; give each its own name")
        for group, members in self.groups.items():
            unknown = next((member for member in members if member not in names), None)
            if unknown is not None or not members:
                raise ValueError(f"group '{group}' {'names no device' if not members else f'has no device {unknown!r}'}")
        return self


def read_inventory(path: Path, group: str | None = None, *, allow_ssh_commands: bool = False) -> tuple[Target, ...]:
    """The devices of the inventory at `path`, or of one of its groups, in the file's order.

    allow_ssh_commands: see `load_profile`. Raises ProfileError if the file or one of its profiles is malformed, or if there is no
    such group.
    """
    inventory = load_yaml(path, _Inventory, ProfileError)
    if group is not None and group not in inventory.groups:
        known = ", ".join(sorted(inventory.groups)) or "none"
        raise ProfileError(f"{path}: no group '{group}' (known groups: {known})")
    names = inventory.groups[group] if group else [entry.name for entry in inventory.devices]
    return tuple(
        Target(entry.name, _profile(entry, path, allow_ssh_commands)) for entry in inventory.devices if entry.name in names
    )


def _profile(entry: _Entry, inventory: Path, allow_ssh_commands: bool) -> Profile:
    beside = inventory.parent / entry.profile
    profile = load_profile(str(beside) if beside.is_file() else entry.profile, allow_ssh_commands=allow_ssh_commands)
    if entry.host is None:
        return profile
    facts = profile.device.model_dump()
    memory = f"{facts['memory']} B" if facts["memory"] else None
    try:
        alone = {"host": entry.host, "hosts": None, "every_board": False}
        device = Device.model_validate({**facts, "memory": memory, "this_machine": False, **alone})
    except ValidationError as problem:
        raise ProfileError(f"{inventory}: device '{entry.name}': host: {problem.errors()[0]['msg']}") from None
    return profile.model_copy(update={"device": device})
