"""Pointwise operators of the float stage: one dataclass each; unary ones, binary ones that broadcast, and `Map`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .graph import Graph
from .ops import Op
from .types import DType, TensorType


@dataclass(frozen=True)
class Unary(Op):
    """Base: one operand, result of the same type."""

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, x.dtype)


@dataclass(frozen=True)
class Binary(Op):
    """Base: two operands, broadcast by numpy's rules."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.dtype != b.dtype:
            raise ValueError(f"operands of {type(self).__name__} differ in element type: {a}, {b}")
        return TensorType(np.broadcast_shapes(a.shape, b.shape), a.dtype)


@dataclass(frozen=True)
class Comparison(Binary):
    """Base: a binary operator with a boolean result."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        return TensorType(super().infer(a, b).shape, DType.bool)


@dataclass(frozen=True)
class Clip(Unary):
    """min(max(x, lo), hi); either bound may be infinite. Relu is Clip(0, inf), Relu6 is Clip(0, 6)."""

    lo: float = float("-inf")
    hi: float = float("inf")


@dataclass(frozen=True)
class LeakyRelu(Unary):
    """x where x >= 0, else alpha * x."""

    alpha: float = 0.01


@dataclass(frozen=True)
class Elu(Unary):
    """x where x >= 0, else alpha * (exp(x) - 1)."""

    alpha: float = 1.0


@dataclass(frozen=True)
class Selu(Unary):
    """gamma * (x where x > 0, else alpha * (exp(x) - 1))."""

    alpha: float
    gamma: float


@dataclass(frozen=True)
class HardSigmoid(Unary):
    """clip(alpha * x + beta, 0, 1)."""

    alpha: float = 0.2
    beta: float = 0.5


@dataclass(frozen=True)
class Gelu(Unary):
    """x * Phi(x), exactly or by the tanh approximation."""

    tanh: bool = False


@dataclass(frozen=True)
class Softplus(Unary):
    """log(1 + exp(x))."""


class Sigmoid(Unary):
    """1 / (1 + exp(-x))."""


class HardSwish(Unary):
    """x * clip(x / 6 + 1/2, 0, 1)."""


class Mish(Unary):
    """x * tanh(softplus(x))."""


class Tanh(Unary):
    """Hyperbolic tangent."""


class Erf(Unary):
    """The Gauss error function."""


class Exp(Unary):
    """Natural exponential."""


class Log(Unary):
    """Natural logarithm."""


class Sqrt(Unary):
    """Square root."""


class Reciprocal(Unary):
    """1 / x."""


class Neg(Unary):
    """-x."""


class Abs(Unary):
    """|x|."""


class Sin(Unary):
    """Sine of radians."""


class Cos(Unary):
    """Cosine of radians."""


class Sign(Unary):
    """-1, 0 or 1."""


class Floor(Unary):
    """Greatest integer not above x."""


class Ceil(Unary):
    """Least integer not below x."""


class Round(Unary):
    """Nearest integer, ties to even."""


class Not(Unary):
    """Logical negation of booleans."""


class Add(Binary):
    """a + b."""


class Sub(Binary):
    """a - b."""


class Mul(Binary):
    """a * b."""


class Div(Binary):
    """a / b; of integers truncated toward zero, as ONNX."""


class Min(Binary):
    """The lesser."""


class Max(Binary):
    """The greater."""


class Pow(Binary):
    """a to the power b."""


class Mod(Binary):
    """Remainder with the sign of b."""


class PRelu(Binary):
    """Operands x, slope: x where x >= 0, else slope * x."""


class And(Binary):
    """Logical and of booleans."""


class Or(Binary):
    """Logical or of booleans."""


class Equal(Comparison):
    """a == b."""


class Less(Comparison):
    """a < b."""


class LessOrEqual(Comparison):
    """a <= b."""


class Greater(Comparison):
    """a > b."""


class GreaterOrEqual(Comparison):
    """a >= b."""


@dataclass(frozen=True, eq=False)
class Map(Unary):
    """A unary function given by a graph: one Input of shape [n], pointwise operators and scalar constants, one output.

    A connected region of pointwise operators that reads a single tensor becomes one `Map`, whatever it spells (SiLU,
    hard-swish, tanh-GELU ...); the integer stage turns it into one lookup table. `label` is for people: "mul(sigmoid)".
    """

    body: Graph
    label: str

    __eq__ = object.__eq__
    __hash__ = object.__hash__
