"""The meaning of each integer operator, in numpy. Data movement is shared with the float interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcompiler.ir import integer, interpret
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import ArgMax, Integers, Op
from qcompiler.ir.types import DType
from qcompiler.numerics import attention, normalize
from qcompiler.numerics.requantize import FRACTION_BITS, Multiplier, narrow, requantize, requantize_wide
from qcompiler.numerics.softmax import log_softmax, softmax

Array = NDArray[Any]
Meaning = Callable[..., Array]

INT32 = np.iinfo(np.int32)


def compute(v: Value, operands: Sequence[Array]) -> Array:
    """The array of `v` from the arrays of its operands. Raises OverflowError where an accumulator leaves int32."""
    meaning = MEANINGS.get(type(v.op))
    if meaning is None:
        return np.asarray(interpret.compute(v, operands, np))
    result = meaning(v.op, v, *operands)
    return to_int32(result, v) if v.type.dtype.name == "i32" else result


def to_int32(acc: Array, v: Value) -> Array:
    """`acc` as int32; OverflowError names the value where one does not fit."""
    if acc.size and (acc.min() < INT32.min or acc.max() > INT32.max):
        raise OverflowError(f"accumulator of '{v.name}' reaches [{acc.min()}, {acc.max()}], beyond int32: the overflow proof is wrong")
    return acc.astype(np.int32)


def centered(v: Value, x: Array) -> Array:
    """x - z as int64."""
    assert v.type.quant is not None
    return x.astype(np.int64) - v.type.quant.zero_point[0]


def zero_point(v: Value) -> int:
    """z of a quantized value."""
    assert v.type.quant is not None
    return v.type.quant.zero_point[0]


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """Windows of x [N,H,W,C] as a view [N,OH,OW,C,kh,kw]."""
    (kh, kw), (dh, dw) = kernel, dilations
    every = sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))
    return every[:, :: strides[0], :: strides[1], :, ::dh, ::dw]


def pad_spatial(x: Array, pads: Sequence[tuple[int, int]], value: int) -> Array:
    """x [N,H,W,C] with `value` around H and W."""
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _conv(op: integer.IntConv, v: Value, x: Array, w: Array, bias: Array, *residual: Array) -> Array:
    quant = v.inputs[0].type.quant
    assert quant is not None
    padded = pad_spatial(x, op.pads, quant.zero_point[0])
    cols = windows(padded, w.shape[1:3], op.strides, op.dilations).astype(np.float64)
    n, oh, ow = cols.shape[:3]
    g, per = op.groups, w.shape[3]
    if per == 1 and g == w.shape[0]:
        acc = np.einsum("nhwcij,cij->nhwc", cols, w[..., 0].astype(np.float64))
    else:
        rows = cols.reshape(n * oh * ow, g, per * w.shape[1] * w.shape[2]).transpose(1, 0, 2)
        weights = w.transpose(0, 3, 1, 2).reshape(g, w.shape[0] // g, -1).transpose(0, 2, 1).astype(np.float64)
        acc = np.matmul(rows, weights).transpose(1, 0, 2).reshape(n, oh, ow, w.shape[0])
    total = acc.astype(np.int64) + bias.astype(np.int64)
    if not residual:
        return total
    product = residual[1] * centered(v.inputs[3], residual[0])
    return total + (product >> FRACTION_BITS if residual[0].dtype == np.int16 else product)


def _sum(op: integer.IntSum, v: Value, *xs: Array) -> Array:
    total: Array = np.zeros((), np.int64)
    for m, i, x in zip(op.multipliers, v.inputs, xs):
        total = total + m * centered(i, x)
    return total


def _mul(op: integer.IntMul, v: Value, a: Array, b: Array) -> Array:
    return centered(v.inputs[0], a) * centered(v.inputs[1], b)


def _matmul(op: integer.IntMatMul, v: Value, a: Array, b: Array) -> Array:
    x, y = centered(v.inputs[0], a).astype(np.float64), centered(v.inputs[1], b).astype(np.float64)
    return np.matmul(x, y).astype(np.int64)


def _sum_pool(op: integer.IntSumPool, v: Value, x: Array) -> Array:
    padded = pad_spatial(centered(v.inputs[0], x), op.pads, 0)
    return windows(padded, op.kernel, op.strides, op.dilations).sum((4, 5))


def _reduce_sum(op: integer.IntReduceSum, v: Value, x: Array) -> Array:
    return centered(v.inputs[0], x).sum(op.axes, keepdims=op.keepdims)


def _resize(op: integer.IntResize, v: Value, x: Array) -> Array:
    acc = centered(v.inputs[0], x)
    for axis, (i0, i1, t) in ((1, op.rows), (2, op.columns)):
        weight = np.array(t, np.int64).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        acc = (128 - weight) * acc.take(i0, axis) + weight * acc.take(i1, axis)
    return acc


def _requantize(op: integer.Requantize, v: Value, acc: Array, shift: Array, multiplier: Array) -> Array:
    assert op.type.quant is not None
    if op.type.dtype is DType.i16:
        return np.clip(requantize_wide(acc, shift, multiplier), np.int16(op.lo), np.int16(op.hi))
    return np.clip(requantize(acc, shift, multiplier, op.type.quant.zero_point[0]), np.int8(op.lo), np.int8(op.hi))


def _lookup(op: integer.Lookup, v: Value, x: Array, table: Array) -> Array:
    index = x.astype(np.int64) + 128
    return table[index] if table.ndim == 1 else table[np.arange(table.shape[0]), index]


def _softmax(op: integer.IntSoftmax, v: Value, x: Array, table: Array) -> Array:
    assert op.type.quant is not None
    if op.log:
        return log_softmax(x, table, op.axis, op.type.quant.zero_point[0])
    return softmax(x, table, op.axis)


def _argmax(op: ArgMax, v: Value, x: Array) -> Array:
    n = x.shape[op.axis]
    if op.k > 1:
        return np.argsort(-x.astype(np.int64), op.axis, kind="stable").take(np.arange(op.k), op.axis)
    index = n - 1 - np.flip(x, op.axis).argmax(op.axis) if op.last else x.argmax(op.axis)
    return np.asarray(np.expand_dims(index, op.axis) if op.keepdims else index, np.int64)


def _add(op: integer.IntAdd, v: Value, a: Array, b: Array) -> Array:
    return np.clip(a.astype(np.int32) + b, -(1 << 15), (1 << 15) - 1).astype(np.int16)


def _cast(op: integer.IntCast, v: Value, x: Array) -> Array:
    assert op.type.quant is not None
    bounds, zero_point = np.iinfo(v.type.dtype.numpy), op.type.quant.zero_point[0]
    wide = x.astype(np.int16) if zero_point else x  # only u8 has one
    return np.clip(wide + zero_point if zero_point else wide, bounds.min, bounds.max).astype(v.type.dtype.numpy)


def _normalize(op: integer.IntNormalize, v: Value, x: Array, g: Array, b: Array) -> Array:
    bits, out = 8 * x.itemsize, 8 * v.type.dtype.numpy.itemsize
    constants = normalize.Affine(g.astype(np.int64), b.astype(np.int64), op.shift)
    y = normalize.normalize(x, constants, op.epsilon, op.centered, zero_point(v.inputs[0]), bits, out)
    assert v.type.quant is not None
    return np.clip(y, v.type.quant.qmin, v.type.quant.qmax).astype(v.type.dtype.numpy)


def _attention(op: integer.IntAttention, v: Value, q: Array, k: Array, values: Array, table: Array, *rest: Array) -> Array:
    zeros = (zero_point(v.inputs[0]), zero_point(v.inputs[1]), zero_point(v.inputs[2]), zero_point(v))
    constants = attention.Constants(Multiplier(*op.logits), Multiplier(*op.values), table, zeros)
    bias = rest[0] if op.bias else None
    y = attention.attention(q, k, values, constants, op.causal, bias, rest[-1] != 0 if op.mask else None)
    assert v.type.quant is not None
    return np.clip(y, v.type.quant.qmin, v.type.quant.qmax).astype(np.int8)


def _rotate(op: integer.IntRotate, v: Value, x: Array, cos: Array, sin: Array) -> Array:
    wide = centered(v.inputs[0], x)
    return wide * cos[:, None, :] + wide[..., list(op.partners)] * sin[:, None, :]


MEANINGS: dict[type[Op], Meaning] = {
    integer.IntConv: _conv,
    integer.IntSum: _sum,
    integer.IntMul: _mul,
    integer.IntMatMul: _matmul,
    integer.IntSumPool: _sum_pool,
    integer.IntReduceSum: _reduce_sum,
    integer.IntResize: _resize,
    integer.Requantize: _requantize,
    integer.Lookup: _lookup,
    integer.Clamp: lambda op, v, x: np.clip(x, x.dtype.type(op.lo), x.dtype.type(op.hi)),
    integer.IntMax: lambda op, v, a, b: np.maximum(a, b),
    integer.IntMin: lambda op, v, a, b: np.minimum(a, b),
    integer.IntSoftmax: _softmax,
    integer.IntAdd: _add,
    integer.IntNarrow: lambda op, v, r: narrow(r, zero_point(v)),
    integer.IntCast: _cast,
    integer.IntNormalize: _normalize,
    integer.IntAttention: _attention,
    integer.IntRotate: _rotate,
    ArgMax: _argmax,
    Integers: lambda op, v, q: q.view(v.type.dtype.numpy) ^ v.type.dtype.numpy.type(op.sign_bit(v.inputs[0].type)),
}
