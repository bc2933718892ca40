"""From the Q/DQ graph to integers: each ``Quantize(op(Dequantize(a), ...))`` becomes integer operators on a.

With real values S (q - z), an operator's result in accumulator units is exact in integers, and its scale S_acc a product of
scales; one Requantize with M = S_acc / S_y brings it to the result's quantization (Jacob et al. 2018, section 2.2):

    Conv          acc = sum x w + (b - z_x sum w)          S_acc = S_x S_w[o]
    Conv + r      acc + m_o (r - z_r)                      m_o = S_r / (S_x S_w[o]), see `residuals`; of fine streams acc + (m_o r >> 6)
    Add, Sub      acc = sum m_i (x_i - z_i)                m_i = round(+-S_i / S_y 2^k), S_acc = S_y 2^-k
    Mul, MatMul   acc = (sum) (a - z_a)(b - z_b)           S_acc = S_a S_b
    averages      acc = sum (x - z)                        S_acc = S_x / divisor
    interpolation acc = sum of 1/128-weighted taps         S_acc = S_x 2^-14
    unary         table[x]                                 256 entries from the float function

To a result of 16 bits an addition is that of already requantized operands: y = sat16(conv + r), of one scale. Normalization, attention and
rotary embedding are in `lower_sequence`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor, log2

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ProofError, UnsupportedModel
from qcompiler.ir import integer
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import (
    ArgMax,
    AveragePool,
    Cast,
    Concat,
    Const,
    Conv,
    CountSteps,
    Dequantize,
    Gather,
    Input,
    MatMul,
    Quantize,
    Reduce,
    Reduction,
    Resize,
    Softmax,
    constant,
)
from qcompiler.ir.pointwise import Add, Clip, Max, Min, Mul, Not, PRelu, Sub, Unary
from qcompiler.ir.sequence import Attention, Normalize, Rotate
from qcompiler.ir.types import DType, Quantization, TensorType, quantized
from qcompiler.numerics.requantize import FRACTION_BITS
from qcompiler.numerics.softmax import MAX_ELEMENTS, exp_table, log_tables

from .lower_sequence import lower_sequence
from .requantization import NoIntegerForm, const_array, quant_of, quantized_constant, requantized, scale_of
from .storage_points import is_movement
from .unary_function import images

SUM_BITS = 14
"""Multipliers of sums have at most this many bits, so that nine-bit differences times them fit in 24."""
TAP_BITS = 7
INTEGER = 1e-5
"""Relative: what is that near to an integer was meant to be one, and rounded to float32."""


def lower_to_integers(graph: Graph) -> Graph:
    """The integer graph of a Q/DQ graph. UnsupportedModel names every value with no integer form."""
    lowering = _Lowering(graph)
    new: dict[Value, Value] = {}
    for v in graph.order:
        new[v] = lowering.value(v, new)
    if lowering.problems:
        raise UnsupportedModel(lowering.problems)
    return Graph(tuple(new[v] for v in graph.inputs), tuple(new[v] for v in graph.outputs), graph.output_names)


class _Lowering:
    """Lowers value by value; float values between Dequantize and Quantize are left as they are and vanish unread."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.problems: list[str] = []

    def value(self, v: Value, new: dict[Value, Value]) -> Value:
        match v:
            case Value(op=Quantize(), inputs=(x,)):
                return self._quantized(v, x, new)
            case Value(op=ArgMax(), inputs=(Value(op=Dequantize(), inputs=(q,)),)):
                return replace(v, inputs=(new[q],))
            case Value(op=Dequantize(), inputs=(q,)):
                return v if new[q] is q else replace(v, inputs=(new[q],))
            case Value(op=Cast(binary=binary), inputs=(x,)) if v.type.dtype is DType.bool and not x.type.dtype.is_float:
                return apply(integer.IntCast(quantized(v.shape, Quantization.per_tensor(1.0)), binary), new[x], name=v.name)
            case Value(op=Not(), inputs=(x,)):
                return inverted(new[x], v.name)
            case Value(inputs=inputs) if not v.type.dtype.is_float and any(new[i] is not i for i in inputs):
                return apply(v.op, *(new[i] for i in inputs), name=v.name)
        return v

    def _quantized(self, v: Value, x: Value, new: dict[Value, Value]) -> Value:
        if isinstance(x.op, (Input, CountSteps)):
            return v
        if isinstance(x.op, Const):
            return quantized_constant(x, v.type, v.name)
        try:
            return lower_expression(x, v.type, lambda i: new[i.inputs[0] if isinstance(i.op, Dequantize) else i], v.name)
        except NoIntegerForm as problem:
            self.problems.append(str(problem))
            return v
        except OverflowError as error:
            raise ProofError(f"'{v.name}': {error}; its calibrated range is far below what its operands can produce") from error


def inverted(x: Value, name: str) -> Value:
    """1 where a mask is zero, else 0."""
    y = quantized(x.shape, Quantization.per_tensor(1.0))
    octets = apply(integer.IntCast(y), x, name=f"{name}.cast") if x.type.dtype is DType.bool else x
    table = constant((np.arange(-128, 128) == 0).astype(np.int8), f"{name}.table")
    return apply(integer.Lookup(y), octets, table, name=name)


Source = Callable[[Value], Value]
"""The integer value behind a Dequantize, or that of a value that is no float."""


def lower_expression(x: Value, y: TensorType, source: Source, name: str) -> Value:
    """Integer operators for the float expression `x`, whose leaves are Dequantize values, to the quantized type `y`."""
    match x:
        case Value(op=Dequantize()):
            return rescaled(source(x), y, name)
        case Value(op=Add()) if y.dtype is DType.i16 and not _in_accumulator(x, source):
            return _wide_sum([_wide_operand(i, y, source, f"{name}.{n}") for n, i in enumerate(x.inputs)], y, name)
        case Value(op=Clip(lo, hi), inputs=(inner,)) if not isinstance(inner.op, Dequantize):
            return _clipped(lower_expression(inner, y, source, name), lo, hi, y)
        case Value(op=Clip(lo, hi), inputs=(inner,)) if inner.inputs[0].type.quant == y.quant:
            return apply(integer.Clamp(*clip_bounds(lo, hi, quant_of(y))), source(inner), name=name)
        case (
            Value(op=Add(), inputs=(Value(op=Conv()) as conv, Value(op=Dequantize()) as other))
            | Value(op=Add(), inputs=(Value(op=Dequantize()) as other, Value(op=Conv()) as conv))
        ):
            return _conv(conv.op, _operands(conv, source), y, name, source(other))  # type: ignore[arg-type]
    return _lower_operator(x, _operands(x, source), y, name)


def _wide_operand(x: Value, y: TensorType, source: Source, name: str) -> Value:
    """An operand of an addition to 16 bits: constants and what is not stored come in the result's own quantization."""
    if isinstance(x.op, Const):
        return quantized_constant(x, y, name)
    return source(x) if isinstance(x.op, Dequantize) else lower_expression(x, replace(y, shape=x.shape), source, name)


def _wide_sum(operands: Sequence[Value], y: TensorType, name: str) -> Value:
    """sat16(a + b) where one operand is in the scale of the result and the other can be had in it for one multiplication at most."""
    if all(o.shape == y.shape for o in operands) and any(o.type.quant == y.quant for o in operands):
        return _within(apply(integer.IntAdd(), *(rescaled(o, y, f"{name}.{n}") for n, o in enumerate(operands)), name=name), quant_of(y))
    return weighted_sum(operands, [1] * len(operands), y, name)


def _within(v: Value, q: Quantization) -> Value:
    """`v`, saturated to the bits of `q` where they are fewer than 16: readers rely on them."""
    return v if q.bits == 16 else apply(integer.Clamp(q.qmin, q.qmax), v, name=v.name)


def _joined(o: Value, y: TensorType, name: str) -> Value:
    """An operand of a concatenation in the quantization of the result."""
    return quantized_constant(o, y, name) if isinstance(o.op, Const) and o.type.quant is None else rescaled(o, y, name)


def _operands(x: Value, source: Source) -> list[Value]:
    """The integer operands of float value `x`."""
    operands = [i if isinstance(i.op, Const) else source(i) if isinstance(i.op, Dequantize) or not i.type.dtype.is_float else None for i in x.inputs]
    if any(o is None for o in operands):
        raise NoIntegerForm(f"{type(x.op).__name__} '{x.name}' reads a value that is not quantized: {[i.name for i in x.inputs]}")
    return [o for o in operands if o is not None]


def _lower_operator(x: Value, operands: Sequence[Value], y: TensorType, name: str) -> Value:
    first = operands[0]
    match x.op:
        case Conv():
            return _conv(x.op, operands, y, name)
        case Add():
            return weighted_sum(operands, [1, 1], y, name)
        case Sub():
            return weighted_sum(operands, [1, -1], y, name)
        case Mul():
            return requantized(apply(integer.IntMul(), *operands, name=f"{name}.acc"), _product_scale(operands), y, name)
        case MatMul():
            return requantized(apply(integer.IntMatMul(), *operands, name=f"{name}.acc"), _product_scale(operands), y, name)
        case AveragePool():
            return _average_pool(x.op, first, y, name)
        case Reduce(kind=Reduction.mean | Reduction.sum):
            return _reduce_sum(x.op, first, y, name)
        case Resize() if not x.op.nearest:
            return _resize(x.op, first, y, name)
        case Max():
            return apply(integer.IntMax(), *(rescaled(o, y, f"{name}.{i}") for i, o in enumerate(operands)), name=name)
        case Min():
            return apply(integer.IntMin(), *(rescaled(o, y, f"{name}.{i}") for i, o in enumerate(operands)), name=name)
        case Softmax():
            return _softmax(x.op, first, y, name)
        case PRelu():
            return _lookup_per_channel(x, first, y, name)
        case Unary():
            return apply(integer.Lookup(y), first, table_of(x, first.type, y, name), name=name)
        case Gather() if isinstance(first.op, Const) and first.type.quant is None:
            return apply(x.op, quantized_constant(first, y, first.name), *operands[1:], name=name)
        case Cast() if not first.type.dtype.is_float:
            return apply(integer.IntCast(y), first, name=name)
        case Normalize() | Attention() | Rotate():
            return lower_sequence(x, operands, y, name)
        case Concat():
            return apply(x.op, *(_joined(o, y, f"{name}.{i}") for i, o in enumerate(operands)), name=name)
        case _ if is_movement(x):
            return rescaled(apply(x.op, *operands, name=name), y, name)
    raise NoIntegerForm(f"{type(x.op).__name__} '{x.name}' has no integer form")


def _product_scale(operands: Sequence[Value]) -> float:
    return scale_of(operands[0]) * scale_of(operands[1])


def clip_bounds(lo: float, hi: float, q: Quantization) -> tuple[int, int]:
    """The real bounds as integers of quantization `q`."""
    ends = [int(np.clip(np.rint(b / q.scale[0]) + q.zero_point[0], q.qmin, q.qmax)) if np.isfinite(b) else None for b in (lo, hi)]
    return q.qmin if ends[0] is None else ends[0], q.qmax if ends[1] is None else ends[1]


def _clipped(v: Value, lo: float, hi: float, y: TensorType) -> Value:
    low, high = clip_bounds(lo, hi, quant_of(y))
    if isinstance(v.op, integer.Requantize):
        return replace(v, op=replace(v.op, lo=max(low, v.op.lo), hi=min(high, v.op.hi)))
    return apply(integer.Clamp(low, high), v, name=v.name)


def rescaled(v: Value, y: TensorType, name: str) -> Value:
    """`v` in the quantization of `y`: itself where it has it already."""
    if v.type.quant == y.quant:
        return v
    if isinstance(v.op, Const):
        q = quant_of(y).quantize(quant_of(v.type).dequantize(v.op.data)).astype(y.dtype.numpy)
        return constant(q, name, replace(y, shape=v.shape))
    if is_fine(quant_of(v.type), quant_of(y)):
        return apply(integer.IntNarrow(y), v, name=name)
    return weighted_sum([v], [1], replace(y, shape=v.shape), name)


def is_fine(r: Quantization, y: Quantization) -> bool:
    """Whether `r` is what a requantization to `y` has before its last shift."""
    return r.bits == 16 and y.bits <= 8 and r.zero_point == (0,) and r.scale[0] * (1 << FRACTION_BITS) == y.scale[0]


def weighted_sum(operands: Sequence[Value], signs: Sequence[int], y: TensorType, name: str) -> Value:
    """sum of signs_i * operand_i in the quantization of `y`."""
    ratios = [s * scale_of(o) / quant_of(y).scale[0] for s, o in zip(signs, operands)]
    k = SUM_BITS - 1 - floor(log2(max(map(abs, ratios))))
    acc = apply(integer.IntSum(tuple(round(r * 2.0**k) for r in ratios)), *operands, name=f"{name}.acc")
    return requantized(acc, quant_of(y).scale[0] * 2.0**-k, y, name)


def _conv(op: Conv, operands: Sequence[Value], y: TensorType, name: str, residual: Value | None = None) -> Value:
    x, w = operands[:2]
    data, wq = const_array(w), w.type.quant
    assert wq is not None
    if any(wq.zero_point):
        raise NoIntegerForm(f"weights '{w.name}' have zero points {set(wq.zero_point)}; expected symmetric weights")
    scales = _conv_scales(x, w)
    own = np.zeros(w.shape[0], np.int64) if len(operands) < 3 else _bias(operands[2], scales)
    correction = quant_of(x.type).zero_point[0] * data.reshape(data.shape[0], -1).astype(np.int64).sum(1)
    bias = constant((own - correction - _second_half(scales, y)).astype(np.int32), f"{name}.bias")
    made = integer.IntConv(op.strides, op.pads, op.dilations, op.groups)
    added = [] if residual is None else [residual, constant(np.rint(_residual_unit(residual) / scales).astype(np.int32), f"{name}.residual")]
    return requantized(apply(made, x, w, bias, *added, name=f"{name}.acc"), scales, y, name)


def _second_half(scales: NDArray[np.float64], y: TensorType) -> NDArray[np.int64]:
    """Half of 1/64 of a step of the 8-bit `y`, in units of `scales`: a requantization rounds to 1/64 and then to whole steps, halves up both times.
    Without this half the first only cuts off, so that results do not lean upwards."""
    if y.dtype is not DType.i8:
        return np.zeros(scales.shape, np.int64)
    return np.rint(quant_of(y).scale[0] / scales * 2.0 ** -(FRACTION_BITS + 1)).astype(np.int64)


def _residual_unit(r: Value) -> float:
    """The real value of what a multiplier of the accumulator is for: one step, or 64 of a fine stream."""
    return scale_of(r) * (1 << FRACTION_BITS if r.type.dtype is DType.i16 else 1)


def _in_accumulator(x: Value, source: Source) -> bool:
    """Whether the sum `x` is of a stored operand and of a convolution whose weights were scaled for it: all multipliers are integers."""
    match x.inputs:
        case (Value(op=Conv()) as conv, Value(op=Dequantize()) as other) | (Value(op=Dequantize()) as other, Value(op=Conv()) as conv):
            real = _residual_unit(source(other)) / _conv_scales(*_operands(conv, source)[:2])
            return bool((np.abs(real - np.rint(real)) < INTEGER * real).all() and (np.rint(real) >= 1).all() and (real < 1 << 15).all())
    return False


def _conv_scales(x: Value, w: Value) -> NDArray[np.float64]:
    """The unit of the accumulator of each output channel."""
    quant = w.type.quant
    assert quant is not None
    return np.asarray(np.broadcast_to(np.array(quant.scale), w.shape[:1]) * scale_of(x))


def _bias(b: Value, scales: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bias in units of `scales`: kept where it is quantized so, else rounded to it."""
    data = const_array(b)
    if b.type.quant is None:
        return np.rint(data.astype(np.float64) / scales).astype(np.int64)
    own = np.broadcast_to(np.array(b.type.quant.scale), scales.shape)
    if np.allclose(own, scales, rtol=1e-6, atol=0):
        return data.astype(np.int64)
    return np.rint(b.type.quant.dequantize(data) / scales).astype(np.int64)


def _average_pool(op: AveragePool, x: Value, y: TensorType, name: str) -> Value:
    acc = apply(integer.IntSumPool(op.kernel, op.strides, op.pads, op.dilations), x, name=f"{name}.acc")
    divisors = op.divisors(x.shape)
    return requantized(acc, scale_of(x) / (divisors if np.ptp(divisors) else divisors.flat[0]), y, name)


def _reduce_sum(op: Reduce, x: Value, y: TensorType, name: str) -> Value:
    count = np.prod([x.shape[a] for a in op.axes]) if op.kind is Reduction.mean else 1
    acc = apply(integer.IntReduceSum(Reduction.sum, op.axes, op.keepdims), x, name=f"{name}.acc")
    return requantized(acc, scale_of(x) / float(count), y, name)


def _resize(op: Resize, x: Value, y: TensorType, name: str) -> Value:
    if len(op.taps) != 4 or op.taps[0] is not None or op.taps[3] is not None:
        raise NoIntegerForm(f"Resize '{name}' interpolates batch or channels; expected height and width only")
    rows, columns = (_integer_taps(t, x.shape[1 + i]) for i, t in enumerate(op.taps[1:3]))
    acc = apply(integer.IntResize(rows, columns), x, name=f"{name}.acc")
    return requantized(acc, scale_of(x) * 2.0 ** (-2 * TAP_BITS), y, name)


def _integer_taps(
    taps: tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]] | None, size: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    if taps is None:
        return tuple(range(size)), tuple(range(size)), (0,) * size
    return taps[0], taps[1], tuple(round(t * (1 << TAP_BITS)) for t in taps[2])


def _softmax(op: Softmax, x: Value, y: TensorType, name: str) -> Value:
    if x.shape[op.axis] > MAX_ELEMENTS:
        raise NoIntegerForm(f"Softmax '{name}' over {x.shape[op.axis]} elements; supported are {MAX_ELEMENTS}")
    table = log_tables(scale_of(x), quant_of(y).scale[0]) if op.log else exp_table(scale_of(x))
    return apply(integer.IntSoftmax(op.axis, y, op.log), x, constant(table, f"{name}.table"), name=name)


def table_of(f: Value, x: TensorType, y: TensorType, name: str) -> Value:
    """The 256 results of the unary float value `f` on every int8 operand of type `x`, quantized as `y`."""
    reals = quant_of(x).dequantize(np.arange(-128, 128))
    return constant(_finite_quantized(images(f, reals), quant_of(y)), f"{name}.table")


def _finite_quantized(results: NDArray[np.floating], q: Quantization) -> NDArray[np.int8]:
    """Infinities saturate; an undefined result (log or square root of a negative) becomes the zero point."""
    return q.quantize(np.nan_to_num(results.astype(np.float64), nan=0.0, posinf=1e30, neginf=-1e30)).astype(np.int8)


def _lookup_per_channel(x: Value, operand: Value, y: TensorType, name: str) -> Value:
    slope = const_array(x.inputs[1]).astype(np.float64).reshape(-1, 1)
    reals = quant_of(operand.type).dequantize(np.arange(-128, 128))[None, :]
    table = _finite_quantized(np.where(reals < 0, slope * reals, reals), quant_of(y))
    return apply(integer.Lookup(y), operand, constant(table[0] if len(table) == 1 else table, f"{name}.table"), name=name)
