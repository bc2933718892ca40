"""From accumulators and constants to quantized values: what every lowering rule ends in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import integer
from qcompiler.ir.graph import Value, apply
from qcompiler.ir.ops import Const, constant
from qcompiler.ir.types import DType, Quantization, TensorType
from qcompiler.numerics.requantize import FRACTION_BITS, multiplier


class NoIntegerForm(Exception):
    """An operator that cannot be lowered, with the reason."""


def const_array(v: Value) -> NDArray[np.generic]:
    """The data of a constant. NoIntegerForm where it is computed at run time."""
    if not isinstance(v.op, Const):
        raise NoIntegerForm(f"'{v.name}' is computed at run time; expected a constant")
    return v.op.data


def quant_of(t: TensorType) -> Quantization:
    """The per-tensor quantization of an activation type; ValueError where there is none."""
    if t.quant is None or t.quant.axis is not None:
        raise ValueError(f"expected an activation quantized per tensor, found {t}")
    return t.quant


def scale_of(v: Value) -> float:
    """The scale of an activation."""
    return quant_of(v.type).scale[0]


def quantized_constant(x: Value, y: TensorType, name: str) -> Value:
    """The float constant `x` in the quantization of `y`."""
    return constant(quant_of(y).quantize(const_array(x)).astype(y.dtype.numpy), name, replace(y, shape=x.shape))


def requantized(acc: Value, scale: float | NDArray[np.floating], y: TensorType, name: str) -> Value:
    """`acc`, whose unit is `scale` (scalar, or an array that broadcasts against it), in the quantization of `y`."""
    quant = quant_of(y)
    real = np.atleast_1d(np.asarray(scale, np.float64) / quant.scale[0])
    pairs = [multiplier(float(r), 0 if y.dtype is DType.i16 else FRACTION_BITS) for r in real.ravel()]
    shift = np.array([p.shift for p in pairs], np.int32).reshape(real.shape)
    q = np.array([p.q for p in pairs], np.int32).reshape(real.shape)
    operands = constant(shift, f"{name}.shift"), constant(q, f"{name}.multiplier")
    return apply(integer.Requantize(replace(y, shape=acc.shape), quant.qmin, quant.qmax), acc, *operands, name=name)
