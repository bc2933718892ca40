"""f(transpose(x)) = transpose(f'(x)): transpositions move toward the outputs, where those of the frontend meet and cancel.

Everything moves one way, so rewriting ends. What is left are layouts that the model's own inputs and outputs demand, and
true shuffles. `transpose -> reshape -> product with constant W` needs no transposition at all: the rows of W are permuted
instead.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import (
    ArgMax,
    Cast,
    Concat,
    Const,
    Dequantize,
    Expand,
    Gather,
    Integers,
    MatMul,
    Op,
    Pad,
    Quantize,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Tile,
    Transpose,
    Where,
)
from qcompiler.ir.pointwise import Binary, Unary

from .axes import Axes, commute, inverse, moves_data, permute_attribute, reshape_groups


def sink_transposes(graph: Graph, declined: Declined | None = None) -> Graph:
    """Move transpositions toward the outputs."""
    return rewrite(graph, RULES, declined)


POINTWISE = (Unary, Binary, Where, Cast)


def sink_through_pointwise(v: Value, sweep: Sweep) -> Value | None:
    """op(transpose(x), y) = transpose(op(x, transposed y)), where y is transposed already, constant, or cheap to transpose."""
    return _sink_joint(v, v.op) if isinstance(v.op, POINTWISE) else None


def sink_through_concat(v: Value, sweep: Sweep) -> Value | None:
    """concat(transpose(x), transpose(y)) = transpose(concat(x, y))."""
    match v.op:
        case Concat(axis) if (perm := _shared_perm(v)) is not None:
            return _sink_joint(v, Concat(perm[axis]))
    return None


def _shared_perm(v: Value) -> Axes | None:
    """The permutation of the first transposed operand that has the rank of `v`."""
    return next((i.op.perm for i in v.inputs if isinstance(i.op, Transpose) and len(i.op.perm) == len(v.shape)), None)


def _sink_joint(v: Value, op: Op) -> Value | None:
    perm = _shared_perm(v)
    if perm is None:
        return None
    before = [_before_transpose(i, perm) for i in v.inputs]
    operands = [i for i in before if i is not None]
    return _transposed(v, perm, op, *operands) if len(operands) == len(before) else None


def _before_transpose(y: Value, perm: Axes) -> Value | None:
    """A value whose transposition by `perm` is `y` (broadcast to that rank), if one is to be had for nothing."""
    if isinstance(y.op, Transpose) and y.op.perm == perm:
        return y.inputs[0]
    shape = (1,) * (len(perm) - len(y.shape)) + y.shape
    back = inverse(perm)
    if not y.shape:
        return y
    if isinstance(y.op, Const) and y.type.quant is None:
        return transposed_constant(y, back)
    return None if moves_data(shape, back) else apply(Reshape(tuple(shape[p] for p in back)), y, name=f"{y.name}.r")


def transposed_constant(c: Value, perm: Axes) -> Value:
    """The constant that stands beside a tensor transposed by `perm` as `c` did beside the tensor before."""
    if not isinstance(c.op, Const):
        raise ValueError(f"'{c.name}' is no constant")
    data = c.op.data.reshape((1,) * (len(perm) - len(c.shape)) + c.shape).transpose(perm)
    return Value(Const(data), (), c.type.with_shape(*data.shape), c.name)


def _transposed(v: Value, perm: Axes, op: Op, *operands: Value) -> Value:
    """``transpose(op(operands))`` in place of `v`, whose name stays with the operator that computes."""
    return apply(Transpose(perm), apply(op, *operands, name=v.name), name=f"{v.name}.t")


def sink_through_axes(v: Value, sweep: Sweep) -> Value | None:
    """Operators with attributes per axis: the attributes are permuted instead."""
    if not v.inputs or not isinstance(v.inputs[0].op, Transpose) or isinstance(v.inputs[0].inputs[0].op, Const):
        return None
    perm = v.inputs[0].op.perm
    op = _remap(v, perm)
    return None if op is None else _transposed(v, perm, op, v.inputs[0].inputs[0], *v.inputs[1:])


def _remap(v: Value, perm: Axes) -> Op | None:
    """The operator of `v` for an operand that has not been transposed by `perm` yet."""
    back = partial(permute_attribute, perm=perm)
    match v.op:
        case Pad(pads):
            return replace(v.op, pads=back(pads))
        case Slice(starts, stops, steps):
            return Slice(back(starts), back(stops), back(steps))
        case Tile(repeats):
            return Tile(back(repeats))
        case Expand() if len(v.shape) == len(perm):
            return Expand(back(v.shape))
        case Resize(taps):
            return Resize(back(taps))
        case Reduce(axes=axes, keepdims=True):
            return replace(v.op, axes=tuple(sorted(perm[a] for a in axes)))
        case ArgMax(axis=axis, keepdims=True) | Softmax(axis=axis):
            return replace(v.op, axis=perm[axis])
        case Gather(axis) if len(v.inputs[1].shape) == 1:
            return Gather(perm[axis])
        case Quantize(type) if type.quant is None or type.quant.axis is None:
            return v.op
        case Dequantize() | Integers() if v.inputs[0].type.quant is not None and v.inputs[0].type.quant.axis is None:
            return v.op
    return None


def sink_through_argmax(v: Value, sweep: Sweep) -> Value | None:
    """argmax(transpose(x)) without the reduced axis: the other axes are transposed behind."""
    match v:
        case Value(ArgMax(axis, keepdims=False) as op, (Value(Transpose(perm), (x,)),)):
            kept = [p for p in perm if p != perm[axis]]
            return _transposed(v, tuple(sorted(kept).index(p) for p in kept), replace(op, axis=perm[axis]), x)
    return None


def sink_through_reshape(v: Value, sweep: Sweep) -> Value | None:
    """reshape(transpose(x)) = transpose(reshape(shuffle(x))): all but the true shuffle sinks."""
    match v:
        case Value(Reshape(shape), (Value(Transpose(perm), (x,)) as t,)) if v.type.quant is None or v.type.quant.axis is None:
            moved = commute(x.shape, perm, shape)
            if moved is None:
                return None
            y = apply(Transpose(moved.before), x, name=t.name) if moves_data(x.shape, moved.before) else x
            return _transposed(v, moved.after, Reshape(moved.middle), y)
    return None


def permute_rows(v: Value, sweep: Sweep) -> Value | None:
    """reshape(transpose(x)) @ W = reshape(x) @ permuted W: how a flatten of N, C, H, W meets N, H, W, C."""
    match v:
        case Value(MatMul(), (Value(Reshape() as flat, (Value(Transpose(perm), (x,)) as t,)), Value(Const(w)) as weights)) if w.ndim == 2:
            sources, layout = _last_group(t.shape, flat.shape)
            order = sorted(sources, key=lambda i: perm[i])
            if order == list(sources) or layout != (len(flat.shape) - 1,):
                return None
            rows = np.arange(w.shape[0]).reshape([t.shape[i] for i in sources]).transpose([sources.index(i) for i in order]).reshape(-1)
            sorted_axes = iter(order)
            untangled = tuple(perm[next(sorted_axes)] if i in sources else p for i, p in enumerate(perm))
            y = apply(Reshape(flat.shape), apply(Transpose(untangled), x, name=t.name), name=v.inputs[0].name)
            return apply(MatMul(), y, Value(Const(w[rows]), (), weights.type, weights.name), name=v.name)
    return None


def _last_group(before: Axes, after: Axes) -> tuple[Axes, Axes]:
    groups = [] if 0 in before else reshape_groups(before, after)
    return groups[-1] if groups else ((), ())


RULES: tuple[Rule, ...] = (
    sink_through_pointwise,
    sink_through_concat,
    sink_through_axes,
    sink_through_argmax,
    sink_through_reshape,
    permute_rows,
)
