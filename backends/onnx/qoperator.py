"""``Quantize(op(Dequantize(a), ...))`` written as one ONNX operator on integers, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qcompiler.frontend.export import Fused
from qcompiler.frontend.export.operators import (
    broadcast_operand,
    common_layout,
    conv_attributes,
    emit,
    pads_fit,
    pool_attributes,
)
from qcompiler.frontend.export.writer import CHANNELS_FIRST, MICROSOFT, Perm, Writer, identity
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType, Quantization
from qcompiler.passes.storage_points import is_movement

WIDE = 16
"""Bits of values that integer operators do not know, but for movement."""


@dataclass(frozen=True)
class Expression:
    """Float operator `x` on operands `quantized`, between Dequantize and the Quantize `result`."""

    x: Value
    quantized: tuple[Value, ...]
    result: Value

    @property
    def y(self) -> Quantization:
        """The quantization of the result."""
        return _quant(self.result)


Written = tuple[str, Perm]
Rule = Callable[[Expression, Writer], Written]


def fuse_quantized(v: Value) -> Fused | None:
    """The integer operator for the Quantize `v`, or None where it stays a float operator."""
    if not isinstance(v.op, ops.Quantize):
        return None
    x, clip = _without_clip(v.inputs[0])
    e = Expression(x, tuple(_stored_alike(q, x.op, v) for q in _quantized_operands(x)), v)
    rule = _rule(e) if e.quantized else None
    return None if rule is None else Fused(e.quantized, partial(_write, e, rule, clip))


def _without_clip(x: Value) -> tuple[Value, pw.Clip]:
    """A Clip is folded into the requantization of its operand."""
    if isinstance(x.op, pw.Clip) and not isinstance(x.inputs[0].op, ops.Dequantize):
        return x.inputs[0], x.op
    return x, pw.Clip()


def _quantized_operands(x: Value) -> tuple[Value, ...]:
    """The integers behind the operands of `x` that count; empty where one is not quantized (to 8 bits, or a bias to 32)."""
    inputs = x.inputs[:1] if is_movement(x) and not isinstance(x.op, ops.Concat) else x.inputs
    found = tuple(i.inputs[0] for i in inputs if isinstance(i.op, ops.Dequantize))
    return found if len(found) == len(inputs) else ()


def _stored_alike(q: Value, op: ops.Op, result: Value) -> Value:
    """An int8 constant as uint8 where the result is uint8, for operators that want one type: the same numbers."""
    differs = (q.type.dtype, result.type.dtype) == (DType.i8, DType.u8)
    if not (differs and isinstance(q.op, ops.Const) and isinstance(op, (pw.Add, pw.Mul, ops.Concat))):
        return q
    quant = replace(_quant(q), zero_point=tuple(z + 128 for z in _quant(q).zero_point))
    return ops.constant((q.op.data.astype(np.int16) + 128).astype(np.uint8), q.name, replace(q.type, dtype=DType.u8, quant=quant))


def _quant(v: Value) -> Quantization:
    if v.type.quant is None:
        raise ValueError(f"expected a quantized value, found {v!r}")
    return v.type.quant


def _rule(e: Expression) -> Rule | None:
    same = all(_quant(q) == e.y and q.type.dtype is e.result.type.dtype for q in e.quantized)
    if same and (is_movement(e.x) or isinstance(e.x.op, pw.Clip)) and not _refused(e.x.op, e.y):
        return _movement
    if e.y.levels is not None or any(_quant(q).bits == WIDE for q in (*e.quantized, e.result)):
        return None
    rule, legal = RULES.get(type(e.x.op), (None, lambda _: False))
    return rule if legal(e) else None


def _write(e: Expression, rule: Rule, clip: pw.Clip, v: Value, w: Writer) -> None:
    out, perm = rule(e, w)
    lo, hi = _integer_bounds(clip, e)
    limits = np.iinfo(v.type.dtype.numpy)
    if (lo, hi) != (limits.min, limits.max):
        out = w.node("Clip", [out, w.scalar(lo, v.type.dtype), w.scalar(hi, v.type.dtype)], f"{v.name}_clipped")
    w.place(v, out, perm)


def _integer_bounds(clip: pw.Clip, e: Expression) -> tuple[int, int]:
    """The bounds of `clip`, and of fewer bits than the storage has, in the storage type's integers."""
    limits, offset = np.iinfo(e.result.type.dtype.numpy), 128 if e.result.type.dtype is DType.u8 else 0
    low, high = (max(e.y.qmin + offset, int(limits.min)), min(e.y.qmax + offset, int(limits.max)))
    ends = [float(np.rint(b / e.y.scale[0]) + e.y.zero_point[0]) for b in (clip.lo, clip.hi)]
    return int(np.clip(ends[0], low, high)), int(np.clip(ends[1], low, high))


# --- legality -----------------------------------------------------------------------------------------------------------


def _refused(op: ops.Op, quant: Quantization) -> bool:
    """Movement that is left to floats. onnxruntime fuses an integer Pad into the MaxPool behind it, and then refuses pads that reach
    the kernel's size; what is padded, or a bound, may be none of a codebook's levels; pools, Clip and Pad know no 16-bit integers."""
    if quant.bits == WIDE or quant.levels is not None:
        return not isinstance(op, (ops.Reshape, ops.Transpose, ops.Slice, ops.Concat, ops.Gather))
    return isinstance(op, ops.MaxPool) and not pads_fit(op)


def _conv_legal(e: Expression) -> bool:
    """The bias must have the accumulator's scale S_x S_w, as QLinearConv assumes."""
    x, weights, *bias = e.quantized
    product = np.array(_quant(weights).scale) * _quant(x).scale[0]
    return all(np.allclose(_quant(b).scale, product, rtol=1e-6, atol=0) for b in bias)


def _per_tensor(e: Expression) -> bool:
    return all(_quant(q).axis is None for q in e.quantized)


def _pool_legal(e: Expression) -> bool:
    op = e.x.op
    if not isinstance(op, ops.AveragePool):
        return False
    return pads_fit(op) and op.dilations == (1, 1) and op.counted_pads in (op.pads, ((0, 0), (0, 0)))


def _global_mean(e: Expression) -> bool:
    return e.x.op == ops.Reduce(ops.Reduction.mean, (1, 2)) and e.x.type.rank == 4


def _plain_softmax(e: Expression) -> bool:
    return isinstance(e.x.op, ops.Softmax) and not e.x.op.log


# --- operators ----------------------------------------------------------------------------------------------------------


def _affine(v: Value, w: Writer) -> list[str]:
    return w.affine(_quant(v), v.type.dtype, v.name)


def _with_affine(v: Value, perm: Perm, w: Writer) -> list[str]:
    """Name, scale and zero point of an operand."""
    return [w.read(v, perm), *_affine(v, w)]


def _conv(e: Expression, w: Writer) -> Written:
    x, weights, *bias = e.quantized
    assert isinstance(e.x.op, ops.Conv)
    operands = [*_with_affine(x, CHANNELS_FIRST, w), *_with_affine(weights, CHANNELS_FIRST, w), *_affine(e.result, w)]
    names = [*operands, *(w.read(b, (0,)) for b in bias)]
    return w.node("QLinearConv", names, e.result.name, **conv_attributes(e.x.op, e.x)), CHANNELS_FIRST


def _matmul(e: Expression, w: Writer) -> Written:
    a, b = e.quantized
    names = [*_with_affine(a, identity(a), w), *_with_affine(b, identity(b), w), *_affine(e.result, w)]
    return w.node("QLinearMatMul", names, e.result.name), identity(e.x)


def _binary(kind: str, e: Expression, w: Writer) -> Written:
    perm = common_layout(e.quantized, e.x, w)
    names = [n for q in e.quantized for n in (broadcast_operand(q, e.x.type.rank, perm, w), *_affine(q, w))]
    return w.node(kind, [*names, *_affine(e.result, w)], e.result.name, domain=MICROSOFT), perm


def _concat(e: Expression, w: Writer) -> Written:
    assert isinstance(e.x.op, ops.Concat)
    perm = common_layout(e.quantized, e.x, w)
    names = [*_affine(e.result, w), *(n for q in e.quantized for n in _with_affine(q, perm, w))]
    return w.node("QLinearConcat", names, e.result.name, domain=MICROSOFT, axis=perm.index(e.x.op.axis)), perm


def _unary(kind: str, e: Expression, w: Writer, perm: Perm | None = None, **attributes: Any) -> Written:
    (x,) = e.quantized
    perm = w.layout(x) if perm is None else perm
    return w.node(kind, [*_with_affine(x, perm, w), *_affine(e.result, w)], e.result.name, domain=MICROSOFT, **attributes), perm


def _average_pool(e: Expression, w: Writer) -> Written:
    op = e.x.op
    assert isinstance(op, ops.AveragePool)
    attributes = pool_attributes(op, op.pads) | {"count_include_pad": int(op.counted_pads == op.pads)}
    return _unary("QLinearAveragePool", e, w, CHANNELS_FIRST, **attributes)


def _global_average_pool(e: Expression, w: Writer) -> Written:
    return _unary("QLinearGlobalAveragePool", e, w, CHANNELS_FIRST, channels_last=0)


def _leaky_relu(e: Expression, w: Writer) -> Written:
    assert isinstance(e.x.op, pw.LeakyRelu)
    return _unary("QLinearLeakyRelu", e, w, alpha=e.x.op.alpha)


def _softmax(e: Expression, w: Writer) -> Written:
    assert isinstance(e.x.op, ops.Softmax)
    return _unary("QLinearSoftmax", e, w, axis=w.layout(e.quantized[0]).index(e.x.op.axis), opset=13)


def _movement(e: Expression, w: Writer) -> Written:
    """The float operator itself, on integers: it only moves or compares elements of one quantization."""
    others = e.x.inputs[len(e.quantized) :]
    moved = Value(_in_integers(e.x.op, e.y), (*e.quantized, *others), e.result.type, e.result.name)
    emit(moved.op, moved, w)
    perm = w.layout(moved)
    return w.read(moved, perm), perm


def _in_integers(op: ops.Op, quant: Quantization) -> ops.Op:
    """Real constants among the attributes of a movement as integers of `quant`."""
    integer = partial(_rounded, quant)
    match op:
        case ops.Pad(value=value):
            return replace(op, value=integer(value))
        case pw.Clip(lo=lo, hi=hi):
            return replace(op, lo=integer(lo), hi=integer(hi))
    return op


def _rounded(quant: Quantization, real: float) -> float:
    return float(np.rint(real / quant.scale[0]) + quant.zero_point[0])


RULES: dict[type[ops.Op], tuple[Rule, Callable[[Expression], bool]]] = {
    ops.Conv: (_conv, _conv_legal),
    ops.MatMul: (_matmul, _per_tensor),
    pw.Add: (partial(_binary, "QLinearAdd"), _per_tensor),
    pw.Mul: (partial(_binary, "QLinearMul"), _per_tensor),
    ops.Concat: (_concat, _per_tensor),
    ops.AveragePool: (_average_pool, _pool_legal),
    ops.Reduce: (_global_average_pool, _global_mean),
    pw.Sigmoid: (partial(_unary, "QLinearSigmoid"), _per_tensor),
    pw.LeakyRelu: (_leaky_relu, _per_tensor),
    ops.Softmax: (_softmax, _plain_softmax),
}
