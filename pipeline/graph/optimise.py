"""Optimise: simplify an exported graph without looking at the values of its weights.

`optimise` makes the deployed graph, `optimise_trainable` the trainable one; `pipeline.graph.exporters` says what they are.

The optimiser of torch's exporter also looks at values: it drops a bias of zeros and a multiplication by one, and it merges
layers with equal weights. The structure of such a graph can change when the network is trained. Then the shipped file would
differ from the one that the search measured. The rules used here depend only on operators and shapes.
"""

import contextlib
import logging
from collections.abc import Container, Iterator, Mapping

import onnx_ir
import onnx_ir.passes.common as common
from onnx_ir.passes import InPlacePass, PassManager, Sequential
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from pipeline.graph.index_rules import INDEX_RULES
from pipeline.graph.weights import FoldWeights, hidden_dropout, mark_constants, name_weights

__all__ = ["optimise", "optimise_trainable"]

ROUNDS = 2
"""Largest number of rounds. One rewrite can make another possible."""

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is an optional bias."""

_RULES = (
    *INDEX_RULES,
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.min_min_rule,
    rules.max_max_rule,
    rules.min_max_rule,
    rules.successive_clip_relu_rule,
    rules.successive_relu_clip_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.slice_split_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.normalize_pad_format_conv_integer_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_pad_into_conv_integer_rule,
)
"""Our rules for indices, and onnxscript's own rules in its order, except those that depend on values: `remove_optional_bias_*`,
`mul_by_1`, `add_0`, `sub_0`, `div_by_1` and `max_min`."""

_DEPLOYED_RULES = RewriteRuleSet(
    [
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
        *_RULES,
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ]
)
_TRAINABLE_RULES = RewriteRuleSet(_RULES)


def optimise(model: onnx_ir.Model) -> None:
    """Fold constants in `model`, rewrite it and remove unused parts, in place. `torch.onnx.export(..., optimize=False)` made it.

    The operators and shapes of the result depend only on the network's code. A bias of zeros is kept, and weights with equal
    values are not merged.
    """
    _run(model, _FoldConstants(), [RewritePass(_DEPLOYED_RULES)])


def optimise_trainable(model: onnx_ir.Model, parameters: Container[str]) -> None:
    """Optimise `model`, in place, and keep what training needs: BatchNormalization, Dropout, and each weight as an initializer.

    What the network computes from its weights alone (weight norm, transposed weights, tables of relative positions) is folded.
    A tensor of the torch state dict that is not changed keeps its name. `parameters` are the names of the learnable ones;
    `pipeline.graph.weights.constants_of` reads from the graph which initializers are not learnable.
    """
    originals = dict(model.graph.initializers)
    # a rule looks at every node, so the rules come after the removal of what is not needed any more
    fewer = [common.RemoveUnusedNodesPass(), common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)]
    with hidden_dropout(model):
        _run(model, FoldWeights(), [*fewer, RewritePass(_TRAINABLE_RULES)])
    name_weights(model, originals)
    mark_constants(model, originals, parameters)


def _run(model: onnx_ir.Model, fold: InPlacePass, rewrite: list[InPlacePass]) -> None:
    with _silent_loggers():
        _rewrite(model, fold, rewrite)


@contextlib.contextmanager
def _silent_loggers() -> Iterator[None]:
    """Without a handler, Python prints warnings of libraries to stderr. These tell what a pass left as it was."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rewrite(model: onnx_ir.Model, fold: InPlacePass, rewrite: list[InPlacePass]) -> None:
    weights = dict(model.graph.initializers)
    common.InlinePass()(model)
    rounds = PassManager(
        [
            fold,
            _DropLiteralBiases(model),
            *rewrite,
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
            common.RemoveUnusedOpsetsPass(),
        ],
        steps=ROUNDS,
        early_stop=True,
    )
    Sequential(
        rounds,
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        _MergeLiterals(weights),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


class _FoldConstants(InPlacePass):
    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        return onnx_ir.passes.PassResult(model, optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified)


class _DropLiteralBiases(InPlacePass):
    """Removes the zero bias that the exporter adds to a layer without one. A bias of the network itself is kept."""

    def __init__(self, model: onnx_ir.Model) -> None:
        """`model` must not be folded yet, because folding hides which values come from the network's weights."""
        super().__init__()
        made: set[int] = set()
        for node in model.graph:
            # these operators read only the shape or the type of an input
            read = {"Shape": (), "Size": (), "CastLike": node.inputs[:1]}.get(node.op_type, node.inputs)
            if all(value is None or id(value) in made for value in read):
                made |= {id(value) for value in node.outputs}
        layers = (node for node in model.graph if node.op_type in BIASED and len(node.inputs) == 3)
        self._layers = [node for node in layers if id(node.inputs[2]) in made]

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        found = [node for node in self._layers if len(node.inputs) == 3 and _is_zero(node.inputs[2])]
        for node in found:
            node.resize_inputs(2)
        return onnx_ir.passes.PassResult(model, modified=bool(found))


def _is_zero(value: onnx_ir.Value | None) -> bool:
    tensor = onnx_ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor is not None and not tensor.numpy().any()


class _MergeLiterals(InPlacePass):
    """Merges equal constants that are not weights: integers such as axes and shapes, and numbers in the network's code."""

    def __init__(self, weights: Mapping[str, onnx_ir.Value]) -> None:
        super().__init__()
        self._weights, self._names = {id(value) for value in weights.values()}, frozenset(weights)

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        seen: dict[tuple[object, ...], onnx_ir.Value] = {}
        initializers = model.graph.initializers
        for name, value in list(initializers.items()):
            tensor = value.const_value
            if id(value) in self._weights or tensor is None or value.is_graph_output():
                continue
            if tensor.dtype.is_floating_point() and (tensor.size > 1 or self._is_from_weights(value)):
                continue
            kept = seen.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del initializers[name]
        return onnx_ir.passes.PassResult(model, modified=bool(seen))

    def _is_from_weights(self, value: onnx_ir.Value) -> bool:
        return not self._names.isdisjoint(value.meta.get(optimizer.FOLDED_FROM_KEY, ()))
