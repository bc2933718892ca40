"""f(x) = x, f(g(x)) = h(x): data movement that moves nothing is removed, and movement of movement becomes one step."""

from __future__ import annotations

from math import inf

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Concat, Const, Dequantize, Expand, Gather, Pad, PadMode, Reduce, Reshape, Resize, Slice, Tile, Transpose
from qcompiler.ir.pointwise import Binary, Clip
from qcompiler.ir.types import DType

from .axes import compose, moves_data


def remove_identities(graph: Graph, declined: Declined | None = None) -> Graph:
    """Remove operators without effect and compose neighbouring movement."""
    return rewrite(graph, RULES, declined)


def drop_no_op(v: Value, sweep: Sweep) -> Value | None:
    """Transpose, Reshape, Expand, Slice ... whose result is their operand."""
    match v:
        case Value(Transpose(perm), (x,)) if perm == tuple(range(len(perm))):
            return x
        case Value(Reshape() | Expand(), (x,)) if x.shape == v.shape:
            return x
        case Value(Slice(starts, _, steps), (x,)) if x.shape == v.shape and not any(starts) and set(steps) <= {1}:
            return x
        case Value(Pad(pads), (x,)) if not any(a or b for a, b in pads):
            return x
        case Value(Tile(repeats), (x,)) if set(repeats) <= {1}:
            return x
        case Value(Concat(), (x,)):
            return x
        case Value(Cast(dtype), (x,)) if dtype == x.type.dtype:
            return x
        case Value(Clip(lo, hi), (x,)) if (lo, hi) == (-inf, inf):
            return x
        case Value(Resize(taps), (x,)) if all(t is None for t in taps):
            return x
        case Value(Reduce(axes=axes, keepdims=True), (x,)) if all(x.shape[a] == 1 for a in axes):
            return x
    return None


def compose_movement(v: Value, sweep: Sweep) -> Value | None:
    """Movement of movement of the same kind, as one."""
    match v:
        case Value(Transpose(outer), (Value(Transpose(inner), (x,)),)):
            return apply(Transpose(compose(outer, inner)), x, name=v.name)
        case Value(Transpose(perm), (x,)) if not moves_data(x.shape, perm) and _one_scale(v):
            return apply(Reshape(v.shape), x, name=v.name)
        case Value(Reshape(shape), (Value(Reshape(), (x,)),)):
            return Value(Reshape(shape), (x,), v.type, v.name)
        case Value(Expand(), (Value(Expand(), (x,)),)):
            return apply(Expand(v.shape), x, name=v.name)
        case Value(Pad(outer, PadMode.constant, a), (Value(Pad(inner, PadMode.constant, b), (x,)),)) if a == b and _grows(outer) and _grows(inner):
            return apply(Pad(tuple((p + r, q + s) for (p, q), (r, s) in zip(outer, inner)), value=a), x, name=v.name)
    return None


def _one_scale(v: Value) -> bool:
    return v.type.quant is None or v.type.quant.axis is None


def _grows(pads: tuple[tuple[int, int], ...]) -> bool:
    return all(a >= 0 and b >= 0 for a, b in pads)


def flatten_concat(v: Value, sweep: Sweep) -> Value | None:
    """concat(.., concat(a, b), ..) = concat(.., a, b, ..) along the same axis."""
    if not isinstance(v.op, Concat) or not any(i.op == v.op and sweep.single_use(i) for i in v.inputs):
        return None
    parts = (p for i in v.inputs for p in (i.inputs if i.op == v.op and sweep.single_use(i) else (i,)))
    return apply(v.op, *parts, name=v.name)


def drop_expand(v: Value, sweep: Sweep) -> Value | None:
    """x + expand(y) = x + y: broadcasting is part of binary operators."""
    if not isinstance(v.op, Binary) or not any(isinstance(i.op, Expand) for i in v.inputs):
        return None
    for operands in _without_one_expand(v.inputs):
        candidate = apply(v.op, *operands, name=v.name)
        if candidate.type == v.type:
            return candidate
    return None


def _without_one_expand(operands: tuple[Value, ...]) -> list[tuple[Value, ...]]:
    return [(*operands[:n], i.inputs[0], *operands[n + 1 :]) for n, i in enumerate(operands) if isinstance(i.op, Expand)]


def move_before_dequantize(v: Value, sweep: Sweep) -> Value | None:
    """transpose(dequantize(c)) = dequantize(transpose(c)) for a constant c, so that weights stay dequantized constants."""
    match v:
        case Value(Transpose() as op, (Value(Dequantize(), (Value(Const()) as c,)) as d,)):
            return apply(Dequantize(), apply(op, c, name=f"{c.name}.t"), name=d.name)
        case Value(Reshape(shape), (Value(Dequantize(), (Value(Const()) as c,)) as d,)) if _keeps_axis(c, shape):
            return apply(Dequantize(), Value(Reshape(shape), (c,), c.type.with_shape(*shape), f"{c.name}.r"), name=d.name)
    return None


def _keeps_axis(c: Value, shape: tuple[int, ...]) -> bool:
    axis = c.type.quant.axis if c.type.quant is not None else None
    return axis is None or c.shape[: axis + 1] == shape[: axis + 1]


def drop_index_cast(v: Value, sweep: Sweep) -> Value | None:
    """gather(x, cast(i)) = gather(x, i) between int32 and int64, also through movement: whatever is a valid index fits both. What is
    cast further need not be cast on the way."""
    match v:
        case Value(Gather(), (x, index)) if (plain := _without_casts(index)) is not index:
            return apply(v.op, x, plain, name=v.name)
        case Value(Cast(), (x,)) if not x.type.dtype.is_float and (plain := _without_casts(x)) is not x:
            return apply(v.op, plain, name=v.name)
    return None


def _without_casts(index: Value) -> Value:
    """`index` of the integers that it was made from, moved about as it is."""
    match index:
        case Value(Cast(), (x,)) if {index.type.dtype, x.type.dtype} <= {DType.i32, DType.i64}:
            return _without_casts(x)
        case Value(Reshape() | Slice() | Transpose() | Expand() | Tile(), (x,)) if (plain := _without_casts(x)) is not x:
            return apply(index.op, plain, name=index.name)
    return index


RULES: tuple[Rule, ...] = (drop_no_op, compose_movement, flatten_concat, drop_expand, move_before_dequantize, drop_index_cast)
