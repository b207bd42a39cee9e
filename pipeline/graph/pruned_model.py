"""PrunedModelBuilder: make the pruned torch module and the pruned ONNX graph of any plan, from one analysis of the network."""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import torch
from torch import nn

from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.feeds import Arrays
from pipeline.core.onnx_outputs import all_outputs
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import Block, ChannelPlan, Kept, PruneSpace
from pipeline.core.progress import Progress, no_progress
from pipeline.core.weight_slices import WeightSlices
from pipeline.graph.analyse import analyse
from pipeline.graph.counts import macs, params
from pipeline.graph.export import export, export_trainable, exporter_of, opset_of, stripped
from pipeline.graph.importance import rank
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.prunable_network import PLANS, PrunableNetwork, rebuild_from_graph
from pipeline.graph.rounding import MOST_LOST, agrees
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import keep_channels, shrink
from pipeline.graph.structure import load_graph, structure
from pipeline.graph.to_torch import GraphNetwork
from pipeline.graph.weight_file import assembled, file_size_bytes
from pipeline.system.files import write_atomically
from pipeline.system.foreign_file import ONNX_LIMIT_BYTES, read_foreign

__all__ = ["PrunedModel", "PrunedModelBuilder", "start_builder"]

USUAL_TOLERANCE, FACTOR = 1e-3, 10.0
"""By which share of the largest output a file may differ from its torch module on a device, and how much more it may differ than
the plans that were compared before the search.
"""


class PrunedModel:
    """The torch module and the ONNX file of a plan, before they are measured or scored. Each is made on first use."""

    def __init__(
        self,
        plan: ChannelPlan,
        graph: WeightSlices | onnx.ModelProto,
        example: Inputs,
        make_module: Callable[[], nn.Module],
        exact: bool = True,
        tolerance: float = USUAL_TOLERANCE,
    ) -> None:
        self.plan = plan
        self.tolerance = tolerance  # by which share of the largest output the file may differ from `answers` on a device
        self.exact = exact  # False: the file gives approximately the module's output, as int8 does
        self.weight_slices = graph if isinstance(graph, WeightSlices) else None
        # weight slices are assembled without values: structure, size and counts need none
        self._graph = assembled(graph, values=False) if isinstance(graph, WeightSlices) else graph
        self.structure = structure(self._graph)
        self.example, self._make_module = example, make_module
        self._lock = threading.Lock()  # a probe may read `answers` from another thread
        self._known: tuple[nn.Module, Arrays] | None = None

    @cached_property
    def data(self) -> bytes:
        """The ONNX file."""
        graph = assembled(self.weight_slices) if self.weight_slices else self._graph
        return bytes(graph.SerializeToString(deterministic=True))

    @cached_property
    def file_size_bytes(self) -> int:
        """Length of `data`, computed without making the file."""
        return file_size_bytes(self.weight_slices, self._graph) if self.weight_slices else len(self.data)

    @property
    def module(self) -> nn.Module:
        """The pruned torch network, in evaluation mode. `answers` are computed before it is returned, because training or scoring
        changes it.
        """
        return self._settled()[0]

    @property
    def answers(self) -> Arrays:
        """Outputs of the new, unchanged module for the example. The ONNX file must give the same outputs."""
        return self._settled()[1]

    @cached_property
    def macs(self) -> int:
        """Number of multiply-accumulate operations of the file for one input; see `pipeline.graph.counts.macs`."""
        return macs(self._graph)

    @cached_property
    def params(self) -> int:
        """Number of parameters in the file; see `pipeline.graph.counts.params`."""
        return params(self._graph)

    def _settled(self) -> tuple[nn.Module, Arrays]:
        with self._lock:
            if self._known is None:
                module = self._make_module().eval()
                with torch.no_grad():
                    self._known = module, arrays_in(outputs_of(module(self.example)))
            return self._known


@dataclass(frozen=True)
class PrunedModelBuilder:
    """Makes pruned models in milliseconds, by slicing the graph of the dense network."""

    network: PrunableNetwork
    ranking: Mapping[str, tuple[int, ...]]
    example: Inputs
    opset: int
    ir_version: int
    exporter: str
    """Name of the exporter that made the dense graph; see `EXPORTERS`."""
    proof: str
    """Result of the check of slicing, in words."""

    @property
    def module(self) -> nn.Module:
        """The dense torch network: the user's own, or the one that is rebuilt from the graph."""
        return self.network.module

    @property
    def space(self) -> PruneSpace:
        """The groups. The tensors of their slots are those of `module`."""
        return self.network.space

    @property
    def grouped(self) -> Grouped:
        """How channels leave grouped convolutions and GroupNorm."""
        return self.network.trainable.labelled.grouped

    @property
    def has_grouped_layers(self) -> bool:
        """Whether there is a grouped convolution, which is not depthwise, or a GroupNorm with several groups."""
        return self.network.trainable.labelled.has_grouped_layers

    @property
    def in_groups(self) -> frozenset[str]:
        """The prunable groups whose channels pass through grouped convolutions or GroupNorm."""
        return self.network.trainable.labelled.in_groups & {group.name for group in self.space.groups}

    @property
    def tolerance(self) -> float:
        """By which share of the largest output a file may differ from its torch module; more if ONNX Runtime loses digits."""
        return min(max(USUAL_TOLERANCE, FACTOR * self.network.worst), MOST_LOST)

    def kept(self, plan: ChannelPlan) -> Kept:
        """Return the channels that `plan` keeps, and the blocks that it drops."""
        return keep_channels(plan, self.ranking)

    def dropped(self, plan: ChannelPlan) -> tuple[Block, ...]:
        """Return the blocks that `plan` drops. Their tensors are those of `module` if it is the user's own, else initializers."""
        space = self.space if self.network.origin == "own" else self.network.trainable.labelled.space
        return space.dropped(self.kept(plan))

    def make(self, plan: ChannelPlan) -> PrunedModel:
        """Return the pruned model of `plan`."""
        kept = self.kept(plan)
        slices = self.network.deployed.weight_slices(kept)
        make_module = functools.partial(shrink, self.module, self.space, kept)
        return PrunedModel(plan, slices, self.example, make_module, tolerance=self.tolerance)

    def trained(self, module: nn.Module, plan: ChannelPlan) -> onnx.ModelProto:
        """The graph of `plan` with the weights of `module`, which was made for that plan and then trained."""
        return stripped(self.network.trained(module, self.kept(plan)), self.ir_version)

    def exported(self, module: nn.Module) -> onnx.ModelProto:
        """Export another module, for example one that a rival pruned, for measuring. Raises TraceError."""
        return stripped(export(module, self.example, self.opset, self.ir_version), self.ir_version)

    def skeleton(self, plan: ChannelPlan) -> bytes:
        """The trainable graph of `plan` without weights, from which the torch network can be rebuilt.

        Dropped blocks are still in it, with all their channels: without them, layers could get other names.
        """
        kept = self.kept(replace(plan, dropped=()))
        graph = assembled(self.network.trainable.weight_slices(kept), values=False)
        return bytes(graph.SerializeToString(deterministic=True))

    def rebuilt(self, reason: str) -> "PrunedModelBuilder":
        """The same with the torch network rebuilt from the graph, because of `reason`. Raises TraceError."""
        network = rebuild_from_graph(self.network, self.example, reason)
        return replace(self, network=network, proof=_proof(network, self.exporter))


def start_builder(
    module: nn.Module,
    example: Inputs,
    form: FileFormat,
    settings: PruningSettings,
    dense_path: Path,
    progress: Progress = no_progress,
) -> PrunedModelBuilder:
    """Export `module` to `dense_path` unless that file exists, find its groups, prove them and rank their channels.

    If `module` is rebuilt from an ONNX file that the user gave, its graph must be in `dense_path`.

    `example` is one sample as a batch, (1, C, H, W), or a `Batch`. The opset may go up to `form.highest_opset` if the network
    needs it. Raises ModelError for a restriction that does not fit, TraceError, NothingToPrune or StorageError.
    """
    progress(0, 0, "reading the exported network")
    base = load_graph(read_foreign(dense_path, ONNX_LIMIT_BYTES)) if dense_path.is_file() else None
    if base is None or not (isinstance(module, GraphNetwork) or _answers_like(base, module, example)):
        progress(0, 0, "exporting the network; it is the first export, so the time left is unknown")
        base = export_trainable(module, example, form.opset, form.ir_version, form.highest_opset)
        write_atomically(dense_path, base.SerializeToString(deterministic=True))
    exporter, opset = exporter_of(base), opset_of(base)
    base.ir_version = form.ir_version
    network = analyse(module, example, base, progress, settings)
    progress(0, 0, "ranking the channels of each group")
    ranked = rank(network.module, network.space, settings.importance, settings.batches)
    return PrunedModelBuilder(network, ranked, example, opset, form.ir_version, exporter, _proof(network, exporter))


def _answers_like(model: onnx.ModelProto, module: nn.Module, example: Inputs) -> bool:
    """Whether `model` is a graph of `module` with its weights."""
    with torch.no_grad():
        expected = arrays_in(outputs_of(module.eval()(example)))
    data = model.SerializeToString()
    try:
        return agrees(expected, all_outputs(data, arrays_in(example)), module, example, data)
    except Exception:  # ONNX Runtime's own errors: the file is a graph of another network
        return False


def _proof(network: PrunableNetwork, exporter: str) -> str:
    own = "" if network.origin == "own" else f"; the torch network is rebuilt from its graph ({network.reason})"
    return (
        f"{PLANS} random plans sliced in ONNX and pruned in torch: answers differ by {network.worst:.1e} of the largest "
        f"output; exported by {exporter}{own}"
    )
