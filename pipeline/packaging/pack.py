"""Pack: write the artifact folder, completely or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline.core.artifact import Artifact, FileFacts, dump_artifact
from pipeline.core.plan import Block, ChannelPlan, Kept, layer_of
from pipeline.errors import RunError, WeightsError, one_line
from pipeline.graph.prunable_network import Origin, network_of_skeleton
from pipeline.graph.shrink import rebuild
from pipeline.graph.structure import load_graph
from pipeline.system.files import flush_folder, sha256_bytes, storage_errors, temporary_beside
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, ONNX_LIMIT_BYTES, read_foreign
from pipeline.system.safetensors_file import read_tensors

__all__ = ["NETWORK_FILE", "file_facts", "load_compressed", "pack", "plan_json", "weights_bytes"]

PLAN_FORMAT = 1
NETWORK_FILE = "network.onnx"
"""The graph, without weights, of a network that is rebuilt. It is in the artifact only if the user's own module is not used."""


@dataclass(frozen=True)
class _Plan:
    """The parts of plan.json that are read."""

    format: int
    groups: Mapping[str, Any]
    network: Origin = "own"
    """Whose network the weights belong to. Artifacts of older versions do not say, and all have the user's own."""
    layer_groups: Mapping[str, int] = field(default_factory=dict)
    """Grouped layer -> its number of groups. In artifacts of older versions, only depthwise convolutions lost groups."""
    dropped: tuple[Block, ...] = ()
    """The blocks that the network does not have. In artifacts of older versions, it has all of them."""


_PLAN = TypeAdapter(_Plan)


def weights_bytes(module: nn.Module) -> bytes:
    """The state dict of the pruned network as safetensors."""
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in module.state_dict().items()})


def plan_json(
    made: tuple[str, Mapping[str, Any] | None],
    plan: ChannelPlan,
    kept: Kept,
    network: Origin = "own",
    layer_groups: Mapping[str, int] | None = None,
    dropped: tuple[Block, ...] = (),
) -> bytes:
    """The widths, the kept channels of the original network, and how that network is made, as JSON.

    `made` is the model and the arguments of its factory. `network` says whose module has the weights of the artifact.
    `layer_groups` is the number of groups of each grouped layer of the pruned module, and `dropped` are the blocks of the plan.
    """
    model, model_args = made
    groups = {name: {"width": width, "channels": list(kept[name])} for name, width in plan}
    arguments = {"model_args": dict(model_args)} if model_args else {}
    grouped = {"layer_groups": dict(layer_groups)} if layer_groups else {}
    blocks = {"dropped": [asdict(block) for block in dropped]} if dropped else {}
    facts = {"format": PLAN_FORMAT, "model": model, **arguments, "network": network, **grouped, **blocks, "groups": groups}
    return json.dumps(facts, indent=1).encode()


def load_compressed(original: nn.Module, artifact: Path) -> nn.Module:
    """Load the pruned torch network of an artifact folder, in evaluation mode. No pickle is read.

    `original` is the network from the factory that was compressed, with any weights. If its own code cannot run with fewer
    channels, the artifact holds a network that is rebuilt from the exported graph. Then that one is returned, and `original` is
    not used.

    Raises RunError if the folder holds no weights, WeightsError if they belong to another network.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from pipeline import Job, compress, load_compressed
    >>> from pipeline.training.load import find_model
    >>> from pipeline.training.settings import FinetuneSettings
    >>> out = Path(tempfile.mkdtemp()) / "run"
    >>> job = Job(target="raspberrypi", dry_run=True, trials=1, supernet_steps=0, finetuning=FinetuneSettings(epochs=0), out=out)
    >>> artifact = compress(job).folder
    >>> net = load_compressed(find_model("digits").factory(10), artifact)
    """
    try:
        tensors = read_tensors(artifact / "weights.safetensors")
        plan = _PLAN.validate_json(read_foreign(artifact / "plan.json", JSON_LIMIT_BYTES))
    except (OSError, ValueError, safetensors.SafetensorError) as problem:
        raise RunError(
            f"{artifact}: weights.safetensors and plan.json are missing or unreadable ({one_line(problem, 120)})"
        ) from None
    if plan.format != PLAN_FORMAT:
        raise RunError(f"{artifact}/plan.json: format {plan.format}; this program reads {PLAN_FORMAT}")
    if plan.network == "rebuilt":
        return _rebuilt(artifact, tensors, plan.dropped)
    network = rebuild(original, tensors, plan.layer_groups, plan.dropped)
    for name in plan.groups:
        if not {layer_of(name), f"{layer_of(name)}.weight"} & tensors.keys():  # a group may be named after a parameter
            raise WeightsError(
                f"{artifact}/plan.json: the network has no layer '{name[:100]}'; use the factory that was compressed"
            )
    return network.eval()


def _rebuilt(artifact: Path, tensors: Mapping[str, torch.Tensor], dropped: tuple[Block, ...]) -> nn.Module:
    try:
        network = network_of_skeleton(load_graph(read_foreign(artifact / NETWORK_FILE, ONNX_LIMIT_BYTES)))
        if dropped:
            network.drop(dropped)
    except Exception as problem:  # protobuf's and onnx's own errors have no common class
        raise RunError(f"{artifact / NETWORK_FILE}: no readable network there ({one_line(problem, 120)})") from None
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as problem:
        raise WeightsError(
            f"{artifact}/weights.safetensors: not the weights of {NETWORK_FILE} beside it ({one_line(problem, 120)}); "
            "copy the whole artifact folder again"
        ) from None
    return network.eval()


def file_facts(files: Mapping[str, bytes]) -> dict[str, FileFacts]:
    """Hash and size of each file."""
    return {name: FileFacts(sha256_bytes(data), len(data)) for name, data in files.items()}


def pack(folder: Path, artifact: Artifact, files: Mapping[str, bytes]) -> None:
    """Write `files` and artifact.json to a temporary folder, and rename it to `folder`.

    A folder that already exists was found to be damaged; it is renamed. Raises StorageError, and then nothing of the new folder
    is left.
    """
    temporary = temporary_beside(folder)
    with storage_errors(folder):
        try:
            temporary.mkdir()
            for name, data in {**files, "artifact.json": dump_artifact(artifact)}.items():
                with (temporary / name).open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            flush_folder(temporary)
            if folder.exists():
                folder.rename(folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.broken"))
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_folder(folder.parent)
