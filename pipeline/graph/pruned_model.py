"""PrunedModelBuilder: make the pruned torch module and the pruned ONNX graph of any plan, from one analysis of the network."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan, Kept, PruneSpace
from pipeline.core.weight_slices import WeightSlices
from pipeline.errors import TraceError
from pipeline.graph.analyse import analyse
from pipeline.graph.counts import macs, params
from pipeline.graph.export import export, exporter_of, opset_of, stripped
from pipeline.graph.exporters import EXPORTERS
from pipeline.graph.importance import Ranking, rank
from pipeline.graph.proof import Disagreement, prove_shrink, prove_slice
from pipeline.graph.shrink import keep_channels, shrink
from pipeline.graph.slice import SliceableGraph, prepare
from pipeline.graph.structure import load_graph, structure
from pipeline.graph.weight_file import assembled, file_size_bytes
from pipeline.system.files import write_atomically
from pipeline.system.foreign_file import ONNX_LIMIT_BYTES, read_foreign

__all__ = ["PrunedModel", "PrunedModelBuilder", "start_builder"]

PROOFS = 3
"""Number of random plans by which slicing is checked before the first candidate is measured."""


class PrunedModel:
    """The torch module and the ONNX file of a plan, before they are measured or scored. Each is made on first use."""

    def __init__(
        self,
        plan: ChannelPlan,
        graph: WeightSlices | onnx.ModelProto,
        example: Tensor,
        make_module: Callable[[], nn.Module],
        exact: bool = True,
    ) -> None:
        self.plan = plan
        self.exact = exact  # False: the file gives approximately the module's output, as int8 does
        self.weight_slices = graph if isinstance(graph, WeightSlices) else None
        # weight slices are assembled without values: structure, size and counts need none
        self._graph = assembled(graph, values=False) if isinstance(graph, WeightSlices) else graph
        self.structure = structure(self._graph)
        self.example, self._make_module = example, make_module
        self._lock = threading.Lock()  # a probe may read `answer` from another thread
        self._known: tuple[nn.Module, NDArray[np.float32]] | None = None

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
        """The pruned torch network, in evaluation mode. `answer` is computed before it is returned, because training or scoring
        changes it.
        """
        return self._settled()[0]

    @property
    def answer(self) -> NDArray[np.float32]:
        """Output of the new, unchanged module for the example. The ONNX file must give the same output."""
        return self._settled()[1]

    @cached_property
    def macs(self) -> int:
        """Number of multiply-accumulate operations of the file for one input; see `pipeline.graph.counts.macs`."""
        return macs(self._graph)

    @cached_property
    def params(self) -> int:
        """Number of parameters in the file; see `pipeline.graph.counts.params`."""
        return params(self._graph)

    def _settled(self) -> tuple[nn.Module, NDArray[np.float32]]:
        with self._lock:
            if self._known is None:
                module = self._make_module().eval()
                with torch.no_grad():
                    self._known = module, module(self.example).numpy()
            return self._known


@dataclass(frozen=True)
class PrunedModelBuilder:
    """Makes pruned models: in milliseconds with a `sliceable` graph, otherwise in seconds, by exporting each module."""

    module: nn.Module
    space: PruneSpace
    ranking: Mapping[str, tuple[int, ...]]
    example: Tensor
    opset: int
    ir_version: int
    sliceable: SliceableGraph | None
    exporter: str
    """Name of the exporter that made the dense graph; see `EXPORTERS`."""
    proof: str
    """Result of the check of slicing, in words."""

    def kept(self, plan: ChannelPlan) -> Kept:
        """Return the channels that `plan` keeps."""
        return keep_channels(plan, self.ranking)

    def make(self, plan: ChannelPlan) -> PrunedModel:
        """Return the pruned model of `plan`."""
        kept = self.kept(plan)
        if self.sliceable:
            return PrunedModel(
                plan, self.sliceable.weight_slices(kept), self.example, lambda: shrink(self.module, self.space, kept)
            )
        module = shrink(self.module, self.space, kept)
        return PrunedModel(plan, self.exported(module), self.example, lambda: module)

    def exported(self, module: nn.Module) -> onnx.ModelProto:
        """Export `module`, first with the exporter of the dense graph, for measuring or shipping. Raises TraceError."""
        first = {name: exporter for name, exporter in EXPORTERS.items() if name == self.exporter}
        model = export(module, self.example, self.opset, self.ir_version, exporters={**first, **EXPORTERS})
        return stripped(model, self.ir_version)


def start_builder(
    module: nn.Module,
    example: Tensor,
    form: FileFormat,
    ranking: Ranking,
    dense_path: Path,
    seed: int,
) -> PrunedModelBuilder:
    """Analyse `module`, export it to `dense_path` unless that file exists, rank its channels and check slicing.

    `example` is one input as a batch, (1, C, H, W). The opset may go up to `form.highest_opset` if the network needs it.
    Raises TraceError, NothingToPrune or StorageError.
    """
    if dense_path.is_file():
        base = load_graph(read_foreign(dense_path, ONNX_LIMIT_BYTES))
    else:
        base = export(module, example, form.opset, form.ir_version, form.highest_opset)
        write_atomically(dense_path, base.SerializeToString(deterministic=True))
    opset, exporter = opset_of(base), exporter_of(base)
    space = analyse(module, example)
    prove_shrink(module, space, example, seed)
    ranked = rank(module, space, ranking.kind, ranking.batches)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    try:
        sliceable = prepare(base, space, shapes, form.ir_version)
        worst = max(prove_slice(module, sliceable, example, seed + number) for number in range(PROOFS))
        proof = (
            f"{PROOFS} random plans sliced in ONNX and pruned in torch: answers differ by {worst:.1e} of the largest output; "
            f"exported by {exporter}"
        )
        return PrunedModelBuilder(module, space, ranked, example, opset, form.ir_version, sliceable, exporter, proof)
    except (Disagreement, TraceError, ValueError) as problem:
        proof = f"slicing is not proven for this network ({problem}); every candidate is exported instead, which takes seconds"
        return PrunedModelBuilder(module, space, ranked, example, opset, form.ir_version, None, exporter, proof)
