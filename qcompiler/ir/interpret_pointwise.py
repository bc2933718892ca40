"""Interpreter kernels of the pointwise operators; see `interpret`. Each takes the operator, the namespace, the arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special

from . import pointwise as pw
from .interpret_movement import Array, Kernel, Namespace
from .ops import Op


def clip(op: pw.Clip, xp: Namespace, x: Array) -> Array:
    """min(max(x, lo), hi); a NaN stays."""
    x = xp.where(x < op.lo, _like(xp, x, op.lo), x) if op.lo > -math.inf else x
    return xp.where(x > op.hi, _like(xp, x, op.hi), x) if op.hi < math.inf else x


def _like(xp: Namespace, x: Array, value: float) -> Array:
    return xp.full((), value, dtype=x.dtype)


def exp_minus_1(xp: Namespace, x: Array) -> Array:
    """exp(x) - 1 of the negative part, so that nothing overflows where the result is not used."""
    return xp.expm1(xp.where(x < 0, x, xp.zeros_like(x)))


def elu(op: pw.Elu, xp: Namespace, x: Array) -> Array:
    """x, or alpha * (exp(x) - 1) where x is negative."""
    return xp.where(x < 0, op.alpha * exp_minus_1(xp, x), x)


def selu(op: pw.Selu, xp: Namespace, x: Array) -> Array:
    """gamma times x, or gamma * alpha * (exp(x) - 1) where x is not positive."""
    return op.gamma * xp.where(x > 0, x, op.alpha * exp_minus_1(xp, x))


def leaky_relu(op: pw.LeakyRelu, xp: Namespace, x: Array) -> Array:
    """x, or alpha * x where x is negative."""
    return xp.where(x < 0, op.alpha * x, x)


def prelu(op: pw.PRelu, xp: Namespace, x: Array, slope: Array) -> Array:
    """x, or slope * x where x is negative."""
    return xp.where(x < 0, slope * x, x)


def hard_sigmoid(op: pw.HardSigmoid, xp: Namespace, x: Array) -> Array:
    """clip(alpha * x + beta, 0, 1)."""
    return clip(pw.Clip(0.0, 1.0), xp, op.alpha * x + op.beta)


def hard_swish(op: pw.HardSwish, xp: Namespace, x: Array) -> Array:
    """x * clip(x / 6 + 1/2, 0, 1)."""
    return x * hard_sigmoid(pw.HardSigmoid(1 / 6, 0.5), xp, x)


def sigmoid(op: Op, xp: Namespace, x: Array) -> Array:
    """1 / (1 + exp(-x)); the overflow of exp gives the right 0."""
    return 1 / (1 + xp.exp(-x))


def softplus(op: Op, xp: Namespace, x: Array) -> Array:
    """max(x, 0) + log(1 + exp(-|x|)), which neither overflows nor loses the tail."""
    return clip(pw.Clip(0.0), xp, x) + xp.log1p(xp.exp(-xp.abs(x)))


def mish(op: Op, xp: Namespace, x: Array) -> Array:
    """x * tanh(softplus(x))."""
    return x * xp.tanh(softplus(op, xp, x))


def erf(op: Op, xp: Namespace, x: Array) -> Array:
    """The Gauss error function, which the array API does not have: scipy's, or the namespace's own."""
    return scipy.special.erf(x) if xp is np else xp.special.erf(x)


def gelu(op: pw.Gelu, xp: Namespace, x: Array) -> Array:
    """x * Phi(x), or its approximation by tanh."""
    if op.tanh:
        return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(op, xp, x / math.sqrt(2)))


def divide(op: Op, xp: Namespace, a: Array, b: Array) -> Array:
    """Of integers truncated toward zero: the floor, plus one where it is inexact and the signs differ."""
    if not xp.isdtype(a.dtype, "integral"):
        return a / b
    quotient = a // b
    return xp.where((quotient * b != a) & ((a < 0) != (b < 0)), quotient + 1, quotient)


def power(op: Op, xp: Namespace, a: Array, b: Array) -> Array:
    """a ** b; of integers through float64 where an exponent is negative, which numpy refuses."""
    if xp.isdtype(a.dtype, "integral") and bool(xp.any(b < 0)):
        return xp.astype(xp.pow(xp.astype(a, xp.float64), xp.astype(b, xp.float64)), a.dtype)
    return xp.pow(a, b)


def named(function: str) -> Kernel:
    """The kernel that is a function of the namespace itself."""

    def kernel(op: Op, xp: Namespace, *arrays: Any) -> Array:
        return getattr(xp, function)(*arrays)

    return kernel


KERNELS: Mapping[type[Op], Kernel] = {
    pw.Clip: clip,
    pw.LeakyRelu: leaky_relu,
    pw.Elu: elu,
    pw.Selu: selu,
    pw.HardSigmoid: hard_sigmoid,
    pw.HardSwish: hard_swish,
    pw.Gelu: gelu,
    pw.Softplus: softplus,
    pw.Sigmoid: sigmoid,
    pw.Mish: mish,
    pw.Tanh: named("tanh"),
    pw.Erf: erf,
    pw.Exp: named("exp"),
    pw.Log: named("log"),
    pw.Sqrt: named("sqrt"),
    pw.Reciprocal: lambda op, xp, x: 1 / x,
    pw.Neg: named("negative"),
    pw.Abs: named("abs"),
    pw.Sin: named("sin"),
    pw.Cos: named("cos"),
    pw.Sign: named("sign"),
    pw.Floor: named("floor"),
    pw.Ceil: named("ceil"),
    pw.Round: named("round"),
    pw.Not: named("logical_not"),
    pw.Add: named("add"),
    pw.Sub: named("subtract"),
    pw.Mul: named("multiply"),
    pw.Div: divide,
    pw.Min: named("minimum"),
    pw.Max: named("maximum"),
    pw.Pow: power,
    pw.Mod: named("remainder"),
    pw.PRelu: prelu,
    pw.And: named("logical_and"),
    pw.Or: named("logical_or"),
    pw.Equal: named("equal"),
    pw.Less: named("less"),
    pw.LessOrEqual: named("less_equal"),
    pw.Greater: named("greater"),
    pw.GreaterOrEqual: named("greater_equal"),
}
