"""Elementwise operators, comparisons, casts, reductions and products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call, operator
from jetvit.passes.frontends.onnx.values import DTYPES, MICROSOFT, UnsupportedError, broadcast_shape


def _operand(call: Call, index: int) -> Any:
    """A number, unless its own axes are more than all others have: they are axes of the result."""
    others = [value for place, value in enumerate(call.inputs) if place != index and value is not None]
    return call.operand(index, max((len(value.shape) for value in others), default=0))


def _pair(call: Call) -> tuple[Any, Any]:
    """Two operands, at least one of them a tensor."""
    a, b = _operand(call, 0), _operand(call, 1)
    return (call.tensor(0), b) if not isinstance(a, Tensor) and not isinstance(b, Tensor) else (a, b)


def _commuted(call: Call) -> tuple[Tensor, Any]:
    a, b = _pair(call)
    return (a, b) if isinstance(a, Tensor) else (b, a)


@operator("Add")
def add(call: Call) -> Tensor:
    """a + b; a bias that the product before has taken in is not added again."""
    if call.node in call.weights.biases:
        product = call.weights.biases[call.node]
        (index,) = [i for i, value in enumerate(call.node.inputs) if value is product.outputs[0]]
        return call.tensor(index)
    return torch.add(*_commuted(call))


@operator("Mul")
def mul(call: Call) -> Tensor:
    """a · b; an empty tensor times zero, which exporters write for β = 0, is zero and provably so."""
    for index in (0, 1):
        value, other = call.node.inputs[index], call.node.inputs[1 - index]
        producer = value.producer() if value is not None else None
        filled = producer is not None and (
            producer.op_type == "ConstantOfShape"
            or (producer.op_type == "Expand" and call.number_of(producer.inputs[0]) == 0)
        )
        if filled and call.number_of(other) == 0:
            x = call.tensor(index)
            factor = call.inputs[1 - index]
            assert factor is not None
            return torch.zeros(broadcast_shape(x.shape, factor.shape), dtype=x.dtype)
    return torch.mul(*_commuted(call))


@operator("Sub")
def sub(call: Call) -> Tensor:
    """a − b"""
    a, b = _pair(call)
    return torch.sub(a, b) if isinstance(a, Tensor) else torch.rsub(b, a)


@operator("Div")
def div(call: Call) -> Tensor:
    """a / b, towards zero for integers."""
    a, b = _pair(call)
    a = a if isinstance(a, Tensor) else call.tensor(0)
    return torch.div(a, b) if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(call: Call) -> Tensor:
    """a to the power b, in the type of a."""
    a, b = _pair(call)
    if not isinstance(a, Tensor):
        return torch.pow(call.tensor(0), b).to(call.tensor(0).dtype)
    result = torch.pow(a, b)
    return result if result.dtype == a.dtype else result.to(a.dtype)


@operator("Mod")
def mod(call: Call) -> Tensor:
    """The remainder, with the sign of b; of a for `fmod`."""
    a, b = call.tensor(0), _operand(call, 1)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


_COMPARISONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "Equal": (torch.eq, torch.eq),
    "Less": (torch.lt, torch.gt),
    "Greater": (torch.gt, torch.lt),
    "LessOrEqual": (torch.le, torch.ge),
    "GreaterOrEqual": (torch.ge, torch.le),
}


@operator(*_COMPARISONS)
def comparison(call: Call) -> Tensor:
    """To bool."""
    a, b = _pair(call)
    straight, swapped = _COMPARISONS[call.node.op_type]
    return straight(a, b) if isinstance(a, Tensor) else swapped(b, a)


@operator("And")
def logical_and(call: Call) -> Tensor:
    """Both."""
    return torch.logical_and(call.tensor(0), call.tensor(1))


@operator("Or")
def logical_or(call: Call) -> Tensor:
    """Either."""
    return torch.logical_or(call.tensor(0), call.tensor(1))


@operator("Xor")
def logical_xor(call: Call) -> Tensor:
    """One, not both."""
    return torch.logical_xor(call.tensor(0), call.tensor(1))


_VARIADIC: dict[str, Callable[..., Tensor]] = {
    "Min": torch.minimum,
    "Max": torch.maximum,
    "Sum": torch.add,
    "Mean": torch.add,
}


@operator(*_VARIADIC)
def variadic(call: Call) -> Tensor:
    """Of any number of tensors."""
    result = call.tensor(0)
    for index in range(1, len(call.inputs)):
        result = _VARIADIC[call.node.op_type](result, call.tensor(index))
    return result / len(call.inputs) if call.node.op_type == "Mean" else result


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Neg": torch.neg, "Abs": torch.abs, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round,
    "Sign": torch.sign, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
    "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
    "Atanh": torch.atanh, "Erf": torch.erf, "IsNaN": torch.isnan, "Not": torch.logical_not,
    "BitwiseNot": torch.bitwise_not, "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh,
    "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish,
}  # fmt: skip


@operator(*_UNARY)
def unary(call: Call) -> Tensor:
    """Of each entry."""
    return _UNARY[call.node.op_type](call.tensor(0))


@operator("IsInf")
def is_inf(call: Call) -> Tensor:
    """True for infinite entries of the signs asked for."""
    x = call.tensor(0)
    if not call.attribute("detect_negative", 1):
        return torch.isposinf(x)
    return torch.isinf(x) if call.attribute("detect_positive", 1) else torch.isneginf(x)


@operator("Gelu")
def gelu(call: Call) -> Tensor:
    """The Gaussian error linear unit, exact or by tanh."""
    return F.gelu(call.tensor(0), approximate=call.attribute("approximate", "none"))


@operator("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Selu", "HardSigmoid", "Swish")
def activation(call: Call) -> Tensor:
    """Activations with constants."""
    x, kind, alpha = call.tensor(0), call.node.op_type, call.attribute("alpha")
    if kind == "LeakyRelu":
        return F.leaky_relu(x, 0.01 if alpha is None else alpha)
    if kind == "Elu":
        return F.elu(x, 1.0 if alpha is None else alpha)
    if kind == "Celu":
        return F.celu(x, 1.0 if alpha is None else alpha)
    if kind == "ThresholdedRelu":
        return torch.where(x > (1.0 if alpha is None else alpha), x, 0.0)
    if kind == "Selu":
        gamma = call.attribute("gamma", 1.0507009873554805)
        return gamma * F.elu(x, 1.6732632423543772 if alpha is None else alpha)
    if kind == "HardSigmoid":
        return torch.clamp(x * (0.2 if alpha is None else alpha) + call.attribute("beta", 0.5), 0.0, 1.0)
    return x * torch.sigmoid(x if alpha in (None, 1.0) else alpha * x)


@operator("PRelu")
def prelu(call: Call) -> Tensor:
    """A slope for negative entries, broadcast to them."""
    x, slope = call.tensor(0), call.tensor(1)
    return torch.where(x < 0, slope * x, x)


@operator("Clip")
def clip(call: Call) -> Tensor:
    """Between bounds, either of which may be missing."""
    x = call.tensor(0)
    if call.opset < 11:
        return torch.clamp(x, call.attribute("min"), call.attribute("max"))
    low, high = (call.number_or_tensor(index) if call.has(index) else None for index in (1, 2))
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low = torch.full((), low, dtype=x.dtype) if low is not None and not isinstance(low, Tensor) else low
        high = torch.full((), high, dtype=x.dtype) if high is not None and not isinstance(high, Tensor) else high
    return torch.clamp(x, low, high)


@operator("Cast", "CastLike")
def cast(call: Call) -> Tensor:
    """To another type; floats to integers towards zero."""
    x = call.tensor(0)
    if call.node.op_type == "CastLike":
        other = call.inputs[1]
        assert other is not None
        dtype: torch.dtype | None = other.dtype
    else:
        dtype = DTYPES.get(call.attribute("to"))
    if dtype is None:
        raise UnsupportedError(f"a cast to type {call.attribute('to')}")
    return x if x.dtype == dtype else x.to(dtype)


@operator("Where")
def where(call: Call) -> Tensor:
    """A choice for each entry."""
    a, b = _operand(call, 1), _operand(call, 2)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a, b = call.tensor(1), call.tensor(2)
    return torch.where(call.tensor(0), a, b)


@operator("MatMul")
def matmul(call: Call) -> Tensor:
    """A linear layer where the right side is a constant matrix."""
    if call.node in call.weights.linears:
        return linear(call, call.tensor(0))
    return torch.matmul(call.tensor(0), call.tensor(1))


def linear(call: Call, x: Tensor) -> Tensor:
    """The product with the node's constant matrix, and its bias."""
    found = call.weights.linears[call.node]
    weight = call.weights.stored(found.weight)
    turned = found.is_out_in == call.weights.is_turned(found.weight)
    bias = call.weights.stored(found.bias) if found.bias is not None else None
    return F.linear(x, weight.t() if turned else weight, bias)


@operator("Gemm")
def gemm(call: Call) -> Tensor:
    """α·A·B + β·C"""
    if call.node in call.weights.linears:
        return linear(call, call.tensor(0))
    a = call.tensor(0).t() if call.attribute("transA", 0) else call.tensor(0)
    b = call.tensor(1).t() if call.attribute("transB", 0) else call.tensor(1)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    result = torch.matmul(a, b)
    result = result if alpha == 1.0 else result * _number(alpha, result)
    if not call.has(2):
        return result
    c = call.tensor(2)
    return result + (c if beta == 1.0 else c * _number(beta, c))


def _number(value: float, like: Tensor) -> float | int:
    return value if like.dtype.is_floating_point else int(value)


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul(call: Call) -> Tensor:
    """α·A·B with either side transposed."""
    a, b = call.tensor(0), call.tensor(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise UnsupportedError("transBatchA or transBatchB")
    a = a.transpose(-2, -1) if call.attribute("transA", 0) else a
    b = b.transpose(-2, -1) if call.attribute("transB", 0) else b
    alpha = call.attribute("alpha", 1.0)
    result = torch.matmul(a, b)
    return result if alpha == 1.0 else result * alpha


@operator("Einsum")
def einsum(call: Call) -> Tensor:
    """With the letters of the result written out."""
    equation = str(call.attribute("equation")).replace(" ", "")
    if "->" not in equation and "." not in equation:
        letters = sorted(letter for letter in set(equation) - {","} if equation.count(letter) == 1)
        equation += "->" + "".join(letters)
    return torch.einsum(equation, [call.tensor(index) for index in range(len(call.inputs))])
