"""Optimise: make an exported graph small, in the same way whatever the values of its weights are.

torch's exporter has an optimiser of its own. Its rules also look at values: they drop a bias that is all zeros and a
multiplication by one, and merge two layers whose weights are equal. A graph made that way changes its structure when the
network is trained, so that what was measured in the search is not what ships. The rules here look at operators and shapes.
"""

import onnx_ir
import onnx_ir.passes.common as common
from onnx_ir.passes import PassManager, Sequential
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass, RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

__all__ = ["optimise"]

ROUNDS = 2
"""At most: one rewriting may make room for another."""

BIASED = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose third input is a bias that may be left out."""

_RULES = RewriteRuleSet(
    [
        rules.dropout_zero_rule,
        rules.dropout_inference_rule,
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
        rules.fuse_batchnorm_into_conv_rule,
        rules.fuse_batchnorm_into_conv_transpose_rule,
        rules.fuse_batchnorm_into_gemm_rule,
    ]
)
"""onnxscript's own, in its order, without those that depend on values: `remove_optional_bias_*`, `mul_by_1`, `add_0`, `sub_0`,
`div_by_1` and `max_min`."""


def optimise(model: onnx_ir.Model) -> None:
    """Fold constants, rewrite and tidy up `model`, as `torch.onnx.export(..., optimize=False)` made it, in place.

    The operators and shapes of the result depend on the network's code alone. A zero bias stays, and two weights of equal
    values stay two.
    """
    weights = {id(value) for value in model.graph.initializers.values()}
    common.InlinePass()(model)
    drop_literals = _DropLiteralBiases(model)
    rounds = PassManager(
        [
            _FoldConstants(),
            drop_literals,
            RewritePass(_RULES),
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


class _FoldConstants(onnx_ir.passes.InPlacePass):
    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        return onnx_ir.passes.PassResult(model, optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified)


class _DropLiteralBiases(onnx_ir.passes.InPlacePass):
    """The exporter gives a layer without a bias one that is made of zeros in the graph. A bias of the network stays."""

    def __init__(self, model: onnx_ir.Model) -> None:
        """`model`: before anything is folded, when it can still be told what comes from the network's weights."""
        super().__init__()
        made: set[int] = set()
        for node in model.graph:
            # of these the exporter reads only a shape or a type
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


class _MergeLiterals(onnx_ir.passes.InPlacePass):
    """Keep one of several equal integers, such as axes and shapes, and of equal numbers in the network's code."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights

    def call(self, model: onnx_ir.Model) -> onnx_ir.passes.PassResult:
        seen: dict[tuple[object, ...], onnx_ir.Value] = {}
        initializers = model.graph.initializers
        for name, value in list(initializers.items()):
            tensor = value.const_value
            if id(value) in self._weights or tensor is None or value.is_graph_output():
                continue
            if tensor.dtype.is_floating_point() and tensor.size > 1:
                continue
            kept = seen.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del initializers[name]
        return onnx_ir.passes.PassResult(model, modified=bool(seen))
