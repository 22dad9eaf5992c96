"""Put together, by onnxscript's rewriter, the functions of PyTorch that exporters take apart.

Covered: GELU by erf (x/√2 or x·√½; the half on x, on the bracket or on the product), GELU by tanh (x³ as a power or as
products), layer normalisation over the last axis as means and a root, with a bias or without one, and masked attention
as torch's exporter writes it before opset 23.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jetvit.passes.frontends.onnx import scopes

if TYPE_CHECKING:
    import onnx_ir as ir

log = logging.getLogger(__name__)
_TOLERANCE = 2e-3  # of constants in half precision


def normalize(model: ir.Model) -> int:
    """Apply the rules to a model, in place; returns how many times one fired."""
    import onnx_ir.passes.common as common
    from onnxscript.rewriter import RewriteRuleSet

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _split_constants(model.graph)
    _constants_last(model.graph)
    operators = {node.op_type for node in model.graph.all_nodes()}
    rules: list[Any] = []
    if "Erf" in operators:
        rules += _gelu_rules(_by_erf, "none")
    if "Tanh" in operators:
        rules += _gelu_rules(_by_tanh, "tanh")
    if {"ReduceMean", "Sqrt"} <= operators:
        rules += _layer_norm_rules()
    if "IsNaN" in operators:
        common.ShapeInferencePass()(model)
        rules += _attention_rules()
    count = int(RewriteRuleSet(rules).apply_to_model(model)) if rules else 0
    log.debug("%d idioms put together", count)
    return count


def _split_constants(graph: ir.Graph) -> None:
    """Give a constant that bears several names back to each of them.

    TorchScript's exporter keeps tensors of equal values once, such as the biases of a model that was never trained, and
    calls them by their other names through Identity nodes.
    """
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "" or node.outputs[0].is_graph_output():
            continue
        constant, old = node.inputs[0], node.outputs[0]
        if constant is None or not constant.is_initializer() or scopes.is_made_up(old.name):
            continue
        new = ir.Value(name=old.name, type=constant.type, shape=constant.shape, const_value=constant.const_value)
        old.replace_all_uses_with(new)
        graph.remove(node, safe=True)
        graph.register_initializer(new)


def _constants_last(graph: ir.Graph) -> None:
    """Put the constant of a sum or a product second, so that a rule need not be tried in every order."""
    for node in graph.all_nodes():
        if node.op_type in ("Add", "Mul") and node.domain == "" and len(node.inputs) == 2:
            first, second = node.inputs
            if first is not None and second is not None and _is_constant(first) and not _is_constant(second):
                node.replace_input_with(0, second)
                node.replace_input_with(1, first)


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def _constant(value: float) -> Any:
    from onnxscript.rewriter.pattern import Constant

    return Constant(value, rel_tol=_TOLERANCE)


def _either(*patterns: Any) -> Any:
    from onnxscript.rewriter.pattern import OrValue

    return OrValue(list(patterns))


def _by_erf(op: Any, x: Any) -> Iterator[Any]:
    """1 + erf(x/√2)"""
    scaled = _either(op.Div(x, _constant(math.sqrt(2))), op.Mul(x, _constant(math.sqrt(0.5))))
    yield op.Add(op.Erf(scaled), _constant(1.0))


def _by_tanh(op: Any, x: Any) -> Iterator[Any]:
    """1 + tanh(√(2/π)·(x + 0.044715·x³))"""
    cube = _either(op.Pow(x, _constant(3.0)), op.Mul(op.Mul(x, x), x), op.Mul(x, op.Mul(x, x)))
    cubic = op.Mul(cube, _constant(0.044715))
    for inner in (op.Add(x, cubic), op.Add(cubic, x)):
        yield op.Add(op.Tanh(op.Mul(inner, _constant(math.sqrt(2 / math.pi)))), _constant(1.0))


def _gelu_rules(brackets: Callable[[Any, Any], Iterator[Any]], approximate: str) -> list[Any]:
    """GELU in all orders of its three factors: a half, x and a bracket; the half comes second where it stands."""
    from onnxscript.rewriter.pattern import RewriteRule

    orders: tuple[Callable[[Any, Any, Any], Any], ...] = (
        lambda op, x, bracket: op.Mul(op.Mul(x, bracket), _constant(0.5)),
        lambda op, x, bracket: op.Mul(op.Mul(bracket, x), _constant(0.5)),
        lambda op, x, bracket: op.Mul(x, op.Mul(bracket, _constant(0.5))),
        lambda op, x, bracket: op.Mul(op.Mul(bracket, _constant(0.5)), x),
        lambda op, x, bracket: op.Mul(op.Mul(x, _constant(0.5)), bracket),
        lambda op, x, bracket: op.Mul(bracket, op.Mul(x, _constant(0.5))),
    )

    def rule(order: Callable[[Any, Any, Any], Any], place: int) -> Any:
        def pattern(op: Any, x: Any) -> Any:
            return order(op, x, list(brackets(op, x))[place])

        return RewriteRule(pattern, lambda op, x: op.Gelu(x, approximate=approximate), name=f"gelu_{approximate}")

    return [rule(order, place) for order in orders for place in range(2 if approximate == "tanh" else 1)]


def _attention_rules() -> list[Any]:
    """The masked attention of torch's exporter: rows that the mask hides whole give zeros, as SDPA has it."""
    from onnxscript.rewriter.pattern import RewriteRuleClassBase

    class MaskedAttention(RewriteRuleClassBase):
        """softmax(q·kᵀ + mask), with 0 for what is no number, times v; q and k are scaled before."""

        def pattern(self, op: Any, q: Any, turned_k: Any, v: Any, mask: Any, zero: Any) -> Any:
            weights = op.Softmax(op.Add(op.MatMul(q, turned_k), mask), axis=-1)
            return op.MatMul(op.Where(op.IsNaN(weights), zero, weights), v)

        def check(self, op: Any, *_: Any, v: Any, zero: Any, **__: Any) -> Any:
            return v.shape is not None and len(v.shape) == 4 and _number(zero) == 0

        def rewrite(self, op: Any, q: Any, turned_k: Any, v: Any, mask: Any, **_: Any) -> Any:
            return op.Attention(q, op.Transpose(turned_k, perm=[0, 1, 3, 2]), v, mask, scale=1.0)

    return [MaskedAttention.rule()]


def _number(value: ir.Value) -> float | None:
    """The number of a constant of one entry."""
    constant = value.const_value
    return float(constant.numpy().reshape(-1)[0]) if constant is not None and constant.size == 1 else None


def _layer_norm_rules() -> list[Any]:
    """(x − mean) / √(variance + ε) over the last axis, then a scale, then a bias."""
    from onnxscript.rewriter.pattern import RewriteRuleClassBase

    class LayerNorm(RewriteRuleClassBase):
        """One rule with the bias and one without; ε and the axes are read off the matched nodes."""

        def __init__(self, has_bias: bool):
            super().__init__(f"layer_norm_{'with' if has_bias else 'without'}_bias")
            self.has_bias = has_bias

        def pattern(self, op: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
            mean = op.ReduceMean(x, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["mean"])
            centred = op.Sub(x, mean)
            square = _either(op.Pow(centred, _constant(2.0)), op.Mul(centred, centred))
            variance = op.ReduceMean(square, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["var"])
            normal = op.Mul(op.Div(centred, op.Sqrt(op.Add(variance, epsilon))), scale)
            return op.Add(normal, bias) if self.has_bias else normal

        def check(self, op: Any, *_: Any, scale: Any, epsilon: Any, mean: Any, var: Any, **__: Any) -> Any:
            vector = scale.const_value is not None and len(scale.const_value.shape) == 1
            last = all(_is_over_last_axis(value.producer()) for value in (mean, var))
            return vector and last and _number(epsilon) is not None

        def rewrite(self, op: Any, x: Any, scale: Any, epsilon: Any, bias: Any = None, **_: Any) -> Any:
            inputs = [x, scale] if bias is None else [x, scale, bias]
            return op.LayerNormalization(*inputs, axis=-1, epsilon=_number(epsilon))

    return [LayerNorm.rule(True), LayerNorm.rule(False)]


def _is_over_last_axis(node: ir.Node) -> bool:
    keeps = node.attributes.get("keepdims")
    if keeps is not None and not keeps.value:
        return False
    if (attribute := node.attributes.get("axes")) is not None:
        return list(attribute.value) == [-1]
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    return axes is not None and axes.const_value is not None and axes.const_value.numpy().reshape(-1).tolist() == [-1]
