"""Small signed artifacts, and a device on the loopback interface that they are shipped to."""

import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from helpers.graphs import INPUT, conv_net
from helpers.sshd import Board
from pipeline.core.profile import Profile, Runtime
from pipeline.deploy.keys import SigningKey, TrustedKey, new_key, read_trusted
from pipeline.deploy.manifest import Manifest, Terms, sign_artifact
from pipeline.deploy.store import Timeouts
from pipeline.packaging.serving import serving_files

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
TIMEOUTS = Timeouts(silence_s=20, health_s=60, commit_s=60)
"""How long the tests wait for a device."""
INPUTS = np.concatenate([INPUT, -INPUT, 2 * INPUT])


class Maker:
    """Makes artifacts, and signs them with its own key, which it trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.key: SigningKey = new_key(self.keys, "maker", NOW)

    @property
    def trusted(self) -> tuple[TrustedKey, ...]:
        return read_trusted(self.keys)

    def make(
        self,
        name: str,
        profile: Profile,
        *,
        seed: int = 0,
        version: int = 1,
        days: int = 365,
        devices: tuple[str, ...] = ("*",),
        limits: Mapping[str, float] | None = None,
        changes: Mapping[str, bytes] | None = None,
        key: SigningKey | None = None,
        architecture: str = "x86_64",
    ) -> Path:
        """An artifact with weights from `seed`. `changes` replace files before it is signed."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        model = conv_net(8, seed=seed)
        files = {"model.onnx": model, **serving_files(profile, {"x": INPUTS}, {"y": answers(model)}, limits or {})}
        for each, data in {**files, "weights.safetensors": b"not for the device", **(changes or {})}.items():
            (folder / each).write_bytes(data)
        self.sign(folder, version=version, days=days, devices=devices, key=key, architecture=architecture)
        return folder

    def sign(
        self,
        folder: Path,
        *,
        version: int = 1,
        days: int = 365,
        devices: tuple[str, ...] = ("*",),
        key: SigningKey | None = None,
        architecture: str = "x86_64",
    ) -> Manifest:
        return sign_artifact(
            folder,
            key or self.key,
            Terms(
                name="net",
                version=version,
                architecture=architecture,
                devices=devices,
                created=NOW - datetime.timedelta(days=1),
                expires=NOW + datetime.timedelta(days=days),
                provenance={},
            ),
        )


def profile_of(store: Path | str) -> Profile:
    """This machine as a device, with its releases in `store`."""
    device = {"name": "here", "this_machine": True, "store": str(store), "cores": 1}
    return Profile.model_validate({"device": device, "runtime": Runtime(threads=1)}, strict=False)


def answers(model: bytes) -> NDArray[np.float32]:
    """The answers of `model` to INPUTS."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": INPUTS[i : i + 1]})[0] for i in range(len(INPUTS))])


def lies(board: Board, *answers: Any) -> None:
    """Make the board report that it has the agent, and then give these answers to any request."""
    messages = [json.dumps(each) for each in ({"alive": True}, *answers)]
    liar = board.program("liar.py", _LIAR.format(messages=messages))
    board.python.write_text(f"#!/bin/sh\nexec {sys.executable} {liar}\n")


_LIAR = """
import struct, sys
for text in {messages!r}:
    sys.stdout.buffer.write(struct.pack(">IQ", len(text), 0) + text.encode())
sys.stdout.buffer.flush()
sys.stdin.buffer.read()
"""


def store_of(board: Board) -> Path:
    return board.home / "compress"


def serves(store: Path) -> NDArray[np.float32]:
    """The answers of the model behind `current` to INPUTS. It is loaded as a program on the device loads it."""
    return answers((store / "current" / "model.onnx").read_bytes())
