"""The overflow proof: from the actual constants, the range of every integer value, and that no accumulator leaves int32.

Ranges propagate forwards from inputs of 8 and 16 bits; a fused Relu makes them narrower. For an accumulator the proof is stronger than
its range: **every partial sum in every order**, also with activations stored offset by 128 as u8, stays within int32:

    sum_k |w_k| max(255, |x|) + |bias'| + half  <  2^31        bias' including the offset's correction, per output channel
    sum_k |w_k| |x| + |bias| + half  <  2^31                   of 16 bits, |x| the greatest that the requantization before lets through

so tiling, threading and the choice of instruction cannot overflow. A left shift in the requantization is included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ProofError
from qcompiler.ir import integer
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Concat, Const, Input, Pad, const_data
from qcompiler.ir.types import DType
from qcompiler.numerics.requantize import FRACTION_BITS, narrow, rounding_half

from .partition import INDEX_MOVEMENT

LIMIT = 1 << 31
ACTIVATIONS = (DType.i8, DType.i16)
Interval = tuple[int, int]


@dataclass(frozen=True)
class Bound:
    """What is proven of one accumulator: its values lie in [lo, hi], and `reach` bounds the magnitude of every partial sum,
    rounding and shift included. `headroom` bits are left of the 31."""

    lo: int
    hi: int
    reach: int

    @property
    def headroom(self) -> float:
        """log2 of the factor by which the accumulator could still grow."""
        return 31 - float(np.log2(max(self.reach, 1)))


def prove_ranges(graph: Graph) -> dict[Value, Bound]:
    """The proof for every int32 value of an integer graph. ProofError names the first that may overflow, and by how much."""
    intervals: dict[Value, Interval] = {}
    bounds: dict[Value, Bound] = {}
    for v in graph.order:
        if v.type.dtype.name == "i32" and not isinstance(v.op, (Const, Input, *INDEX_MOVEMENT)):
            bounds[v] = _accumulator(v, intervals, graph)
            intervals[v] = (bounds[v].lo, bounds[v].hi)
        elif v.type.dtype in ACTIVATIONS:
            intervals[v] = activation_interval(v, intervals)
    return bounds


def activation_interval(v: Value, known: Mapping[Value, Interval]) -> Interval:
    """An interval that holds every element of the value `v` of 8 or 16 bits."""
    whole = _whole(v)
    match v.op:
        case Const():
            return (int(v.op.data.min()), int(v.op.data.max())) if v.op.data.size else (0, 0)
        case integer.Requantize(lo=lo, hi=hi) | integer.Clamp(lo, hi):
            return lo, hi
        case integer.Lookup():
            table = const_data(v.inputs[1])
            return whole if table is None else (int(table.min()), int(table.max()))
        case integer.IntNormalize(type=type) | integer.IntAttention(type=type) if type.quant is not None:
            return type.quant.qmin, type.quant.qmax
        case integer.IntNarrow(type=type) if type.quant is not None:
            lo, hi = narrow(np.array(known[v.inputs[0]], np.int16), type.quant.zero_point[0]).tolist()
            return lo, hi
        case integer.IntCast():
            return (0, 1) if v.inputs[0].type.dtype is DType.bool else whole
        case integer.IntAdd():
            lo, hi = (int(np.clip(sum(ends), *whole)) for ends in zip(*(known[i] for i in v.inputs)))
            return lo, hi
        case integer.IntSoftmax():
            return whole
    sources = [known[i] for i in v.inputs if i in known]
    if not sources or isinstance(v.op, Pad):
        return whole
    if not isinstance(v.op, (Concat, integer.IntMax, integer.IntMin)):
        return sources[0]
    return min(s[0] for s in sources), max(s[1] for s in sources)


def _whole(v: Value) -> Interval:
    """What the element type of `v` holds."""
    bounds = np.iinfo(v.type.dtype.numpy)
    return int(bounds.min), int(bounds.max)


def _accumulator(v: Value, known: Mapping[Value, Interval], graph: Graph) -> Bound:
    rule = _RULES.get(type(v.op))
    if rule is None:
        raise ProofError(f"no overflow proof is known for {type(v.op).__name__} '{v.name}'")
    lo, hi, reach = rule(v, [_centered(i, known) for i in v.inputs if i.type.dtype in ACTIVATIONS])
    half, left = _requantization(v, graph)
    total = np.asarray((reach + half) << left)
    if total.max() >= LIMIT:
        channel = int(np.argmax(total))
        raise ProofError(
            f"the accumulator of '{v.name}' may reach {int(total.max())} in channel {channel}, expected below 2^31 = {LIMIT}: "
            "its scales are too far apart; calibrate on more typical data or keep this layer's range wider"
        )
    return Bound(int(np.min(lo)), int(np.max(hi)), int(total.max()))


def _requantization(v: Value, graph: Graph) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rounding half, left shift) that the readers of `v` apply, per channel or element."""
    shifts = [const_data(u.inputs[1]) for u in graph.uses[v] if isinstance(u.op, integer.Requantize)]
    s = np.concatenate([np.asarray(x, np.int64).ravel() for x in shifts if x is not None] or [np.zeros(1, np.int64)])
    if isinstance(v.op, integer.IntConv) and s.size == v.shape[-1]:
        return rounding_half(s), np.maximum(-s, 0)
    return rounding_half(s).max(keepdims=True), np.maximum(-s, 0).max(keepdims=True)


def _centered(v: Value, known: Mapping[Value, Interval]) -> Interval:
    zero = 0 if v.type.quant is None or v.type.quant.axis is not None else v.type.quant.zero_point[0]
    lo, hi = known[v]
    return lo - zero, hi - zero


Reach = tuple[NDArray[np.int64] | int, NDArray[np.int64] | int, NDArray[np.int64] | int]


def _conv(v: Value, operands: list[Interval]) -> Reach:
    w, bias = const_data(v.inputs[1]), const_data(v.inputs[2])
    quant = v.inputs[0].type.quant
    assert w is not None
    assert bias is not None
    assert quant is not None
    flat = w.reshape(w.shape[0], -1).astype(np.int64)
    if flat.size and flat.min() < -127:
        raise ProofError(f"weights '{v.inputs[1].name}' hold -128; expected at least -127, so that sums of two products fit in 16 bits")
    lo, hi = (end + quant.zero_point[0] for end in operands[0])
    lo, hi = min(lo, quant.zero_point[0]), max(hi, quant.zero_point[0])  # padding is the zero point
    positive, negative = np.maximum(flat, 0).sum(1), np.minimum(flat, 0).sum(1)
    b = bias.astype(np.int64)
    low, high = positive * lo + negative * hi + b, positive * hi + negative * lo + b
    reach = (positive - negative) * 255 + np.abs(b - 128 * (positive + negative)) + np.abs(b)
    if v.inputs[0].type.dtype is DType.i16:
        reach = (positive - negative) * max(-lo, hi) + np.abs(b)
    if len(v.inputs) == 3:
        return low, high, reach
    m = np.asarray(const_data(v.inputs[4]), np.int64)
    lo, hi = operands[2]
    if v.inputs[3].type.dtype is DType.i16:  # m r is below 2^30, and not yet part of the sum
        lo, hi = lo >> FRACTION_BITS, hi >> FRACTION_BITS
        return low + m * lo, high + m * (hi + 1), reach + m * (1 << 15 - FRACTION_BITS)
    # r, not r - z, may be multiplied first: 2 * 255 covers it and the correction.
    return low + m * lo, high + m * hi, reach + m * 2 * 255


def _sum(v: Value, operands: list[Interval]) -> Reach:
    assert isinstance(v.op, integer.IntSum)
    ends = [sorted((m * lo, m * hi)) for m, (lo, hi) in zip(v.op.multipliers, operands)]
    reach = sum(abs(m) * _magnitude(x, c) for m, x, c in zip(v.op.multipliers, v.inputs, operands))
    return sum(e[0] for e in ends), sum(e[1] for e in ends), reach


def _magnitude(x: Value, centered: Interval) -> int:
    """A bound of |x - z|, and of |x| + |z|: kernels may sum up x and the correction apart."""
    z = 0 if x.type.quant is None else x.type.quant.zero_point[0]
    return max(abs(end + z) for end in centered) + abs(z)


def _product(operands: list[Interval], terms: int) -> Reach:
    (a, b), (c, d) = operands
    products = [a * c, a * d, b * c, b * d]
    return terms * min(0, *products) if terms > 1 else min(products), terms * max(products), terms * 255 * 255 * 2


def _mul(v: Value, operands: list[Interval]) -> Reach:
    return _product(operands, 1)


def _matmul(v: Value, operands: list[Interval]) -> Reach:
    return _product(operands, v.inputs[0].shape[-1])


def _window_sum(v: Value, operands: list[Interval]) -> Reach:
    ((lo, hi),) = operands
    terms = int(np.prod(v.op.kernel)) if isinstance(v.op, integer.IntSumPool) else v.inputs[0].type.size // max(v.type.size, 1)
    return terms * min(lo, 0), terms * max(hi, 0), terms * _magnitude(v.inputs[0], operands[0])


def _resize(v: Value, operands: list[Interval]) -> Reach:
    ((lo, hi),) = operands
    return lo << 14, hi << 14, (2 * 255) << 14


def _rotate(v: Value, operands: list[Interval]) -> Reach:
    lo, hi = operands[0]
    cos, sin = (np.asarray(const_data(i), np.int64) for i in v.inputs[1:])
    low, high = (pick(cos * lo, cos * hi) + pick(sin * lo, sin * hi) for pick in (np.minimum, np.maximum))
    most = max(abs(lo), abs(hi)) if v.inputs[0].type.dtype is DType.i16 else 255
    return low, high, np.atleast_1d(most * (np.abs(cos) + np.abs(sin)).max())


_RULES: dict[type, Callable[[Value, list[Interval]], Reach]] = {
    integer.IntConv: _conv,
    integer.IntSum: _sum,
    integer.IntMul: _mul,
    integer.IntMatMul: _matmul,
    integer.IntSumPool: _window_sum,
    integer.IntReduceSum: _window_sum,
    integer.IntResize: _resize,
    integer.IntRotate: _rotate,
}
