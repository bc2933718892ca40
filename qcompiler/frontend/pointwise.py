"""Operators on single elements: activations, arithmetic with broadcasting, comparisons and logic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce

from qcompiler.frontend.fold import known_array
from qcompiler.frontend.node import Importer, Importers, Node, numpy_dtype
from qcompiler.frontend.quantization import clip_integers
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Op
from qcompiler.ir.types import DType

IMPORTERS = Importers()

# --- one operand, nothing to say about it ---

_UNARY: Mapping[str, Op] = {
    "Relu": pw.Clip(0.0),
    "Sigmoid": pw.Sigmoid(),
    "HardSwish": pw.HardSwish(),
    "Tanh": pw.Tanh(),
    "Softplus": pw.Softplus(),
    "Mish": pw.Mish(),
    "Erf": pw.Erf(),
    "Exp": pw.Exp(),
    "Log": pw.Log(),
    "Sqrt": pw.Sqrt(),
    "Reciprocal": pw.Reciprocal(),
    "Neg": pw.Neg(),
    "Abs": pw.Abs(),
    "Sin": pw.Sin(),
    "Cos": pw.Cos(),
    "Sign": pw.Sign(),
    "Floor": pw.Floor(),
    "Ceil": pw.Ceil(),
    "Round": pw.Round(),
    "Not": pw.Not(),
}

_BINARY: Mapping[str, Op] = {
    "Add": pw.Add(),
    "Sub": pw.Sub(),
    "Mul": pw.Mul(),
    "Div": pw.Div(),
    "PRelu": pw.PRelu(),
    "And": pw.And(),
    "Or": pw.Or(),
    "Equal": pw.Equal(),
    "Less": pw.Less(),
    "LessOrEqual": pw.LessOrEqual(),
    "Greater": pw.Greater(),
    "GreaterOrEqual": pw.GreaterOrEqual(),
}

_VARIADIC: Mapping[str, Op] = {"Sum": pw.Add(), "Min": pw.Min(), "Max": pw.Max()}


def _unary(op: Op) -> Importer:
    return lambda node, x: node.emit(op, x)


def _binary(op: Op) -> Importer:
    return lambda node, a, b: node.emit(op, a, b)


def _variadic(op: Op) -> Importer:
    return lambda node, *xs: reduce(lambda a, b: node.emit(op, a, b), xs)


IMPORTERS.update({name: _unary(op) for name, op in _UNARY.items()})
IMPORTERS.update({name: _binary(op) for name, op in _BINARY.items()})
IMPORTERS.update({name: _variadic(op) for name, op in _VARIADIC.items()})


# --- activations with parameters ---


@IMPORTERS.register("LeakyRelu")
def leaky_relu(node: Node, x: Value) -> Value:
    """x where x >= 0, else alpha * x."""
    return node.emit(pw.LeakyRelu(node.number("alpha")), x)


@IMPORTERS.register("Elu")
def elu(node: Node, x: Value) -> Value:
    """x where x >= 0, else alpha * (exp(x) - 1)."""
    return node.emit(pw.Elu(node.number("alpha")), x)


@IMPORTERS.register("Celu")
def celu(node: Node, x: Value) -> Value:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1)) = alpha * elu(x / alpha)."""
    alpha = node.number("alpha")
    inner = node.emit(pw.Elu(1.0), node.emit(pw.Div(), x, node.constant(alpha, x)))
    return node.emit(pw.Mul(), inner, node.constant(alpha, x))


@IMPORTERS.register("Selu")
def selu(node: Node, x: Value) -> Value:
    """gamma * (x where x > 0, else alpha * (exp(x) - 1))."""
    return node.emit(pw.Selu(node.number("alpha"), node.number("gamma")), x)


@IMPORTERS.register("HardSigmoid")
def hard_sigmoid(node: Node, x: Value) -> Value:
    """clip(alpha * x + beta, 0, 1)."""
    return node.emit(pw.HardSigmoid(node.number("alpha"), node.number("beta")), x)


@IMPORTERS.register("Gelu")
def gelu(node: Node, x: Value) -> Value:
    """x * Phi(x)."""
    return node.emit(pw.Gelu(node.choice("approximate", "none", "tanh") == "tanh"), x)


@IMPORTERS.register("Swish")
def swish(node: Node, x: Value) -> Value:
    """x * sigmoid(alpha * x)."""
    alpha = node.number("alpha")
    scaled = x if alpha == 1 else node.emit(pw.Mul(), x, node.constant(alpha, x))
    return node.emit(pw.Mul(), x, node.emit(pw.Sigmoid(), scaled))


@IMPORTERS.register("Softsign")
def softsign(node: Node, x: Value) -> Value:
    """x / (1 + |x|)."""
    return node.emit(pw.Div(), x, node.emit(pw.Add(), node.emit(pw.Abs(), x), node.constant(1, x)))


@IMPORTERS.register("ThresholdedRelu")
def thresholded_relu(node: Node, x: Value) -> Value:
    """x where x > alpha, else 0: x * (x > alpha)."""
    above = node.emit(pw.Greater(), x, node.constant(node.number("alpha"), x))
    return node.emit(ops.Where(), above, x, node.constant(0, x))


@IMPORTERS.register("Clip")
def clip(node: Node, x: Value, lo: Value | None = None, hi: Value | None = None) -> Value:
    """Constant bounds (attributes before opset 11) become one Clip, computed ones Max and Min."""
    if x.type.quant is not None:
        return clip_integers(node, x, (lo, hi))
    lower, upper = _bound(node, "min", lo, -math.inf), _bound(node, "max", hi, math.inf)
    if lower != -math.inf or upper != math.inf:
        x = node.emit(pw.Clip(lower, upper), x)
    if lo is not None and known_array(lo) is None:
        x = node.emit(pw.Max(), x, lo)
    return node.emit(pw.Min(), x, hi) if hi is not None and known_array(hi) is None else x


def _bound(node: Node, name: str, operand: Value | None, open_end: float) -> float:
    """A bound known now; `open_end` where there is none, or where it is known only at run time."""
    data = None if operand is None else known_array(operand)
    if data is not None:
        return float(data.reshape(-1)[0])
    limit = 3.4e38  # the default of the attributes is the greatest float32
    given = float(node.attributes.get(name, open_end))
    return open_end if abs(given) > limit else given


# --- arithmetic that needs a word ---


@IMPORTERS.register("Mean")
def mean(node: Node, *xs: Value) -> Value:
    """Sum of the operands over their number."""
    total = reduce(lambda a, b: node.emit(pw.Add(), a, b), xs)
    return total if len(xs) == 1 else node.emit(pw.Mul(), total, node.constant(1 / len(xs), total))


@IMPORTERS.register("Pow")
def power(node: Node, a: Value, b: Value) -> Value:
    """The exponent may have another type; the result has that of the base."""
    if b.type.dtype.is_float and not a.type.dtype.is_float:
        return node.cast(node.emit(pw.Pow(), node.cast(a, b.type.dtype), b), a.type.dtype)
    return node.emit(pw.Pow(), a, node.cast(b, a.type.dtype))


@IMPORTERS.register("Mod")
def mod(node: Node, a: Value, b: Value) -> Value:
    """Remainder with the sign of b; with fmod that of a: a - b * trunc(a / b)."""
    if not node.integer("fmod"):
        return node.emit(pw.Mod(), a, b)
    magnitude = node.emit(pw.Mod(), node.emit(pw.Abs(), a), node.emit(pw.Abs(), b))
    return node.emit(pw.Mul(), node.emit(pw.Sign(), a), magnitude)


@IMPORTERS.register("Xor")
def xor(node: Node, a: Value, b: Value) -> Value:
    """Booleans that differ."""
    return node.emit(pw.Not(), node.emit(pw.Equal(), a, b))


@IMPORTERS.register("IsNaN")
def is_nan(node: Node, x: Value) -> Value:
    """What does not equal itself."""
    return node.emit(pw.Not(), node.emit(pw.Equal(), x, x))


@IMPORTERS.register("Where")
def where(node: Node, condition: Value, a: Value, b: Value) -> Value:
    """a where the condition holds, else b."""
    if condition.type.dtype is not DType.bool or a.type.dtype is not b.type.dtype:
        raise ValueError(f"expected a bool condition and two operands of one type, found {condition.type}, {a.type}, {b.type}")
    return node.emit(ops.Where(), condition, a, b)


# --- element types and pass-through ---


@IMPORTERS.register("Cast")
def cast(node: Node, x: Value) -> Value:
    """Elements in another type."""
    return node.cast(x, numpy_dtype(node.integer("to")))


@IMPORTERS.register("CastLike")
def cast_like(node: Node, x: Value, like: Value) -> Value:
    """Elements in the type of another operand."""
    return node.cast(x, like.type.dtype)


@IMPORTERS.register("Identity")
def identity(node: Node, x: Value) -> Value:
    """The operand itself."""
    return x
