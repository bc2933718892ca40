"""One spelling for each affine and clipping arithmetic, so that later passes know few patterns.

    x - c = x + (-c)        x / c = x * (1/c)        -x = x * (-1)        (x * a) * b = x * (a b)
    max(x, c) = clip(x, c, inf)        clip(clip(x, a, b), c, d) = clip(x, min(max(a, c), d), min(max(b, c), d))

Constants stand on the right; reductions keep their axes, with a `Reshape` behind; a pool over everything is a `Reduce`.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import AveragePool, Concat, Const, Dequantize, Gather, MaxPool, Reduce, Reduction, Reshape, Slice, constant
from qcompiler.ir.pointwise import Add, Binary, Clip, Div, LeakyRelu, Max, Min, Mul, Neg, PRelu, Sub
from qcompiler.ir.types import DType, Quantization, TensorType

from .axes import reshape_groups
from .constants import Floats, fits, floats, same_dtype, uniform


def canonicalize(graph: Graph, declined: Declined | None = None) -> Graph:
    """Spell arithmetic by constants in one way."""
    return rewrite(graph, RULES, declined)


def constant_right(v: Value, sweep: Sweep) -> Value | None:
    """c + x = x + c."""
    match v:
        case Value(Add() | Mul() | Max() | Min(), (Value(Const()) as c, x)) if not isinstance(x.op, Const):
            return apply(v.op, x, c, name=v.name)
    return None


def shrink_uniform(v: Value, sweep: Sweep) -> Value | None:
    """A constant of equal elements is a number, so that what it does is a function of one number."""
    match v:
        case Value(Binary(), (x, c)) if c.type.size > 1 and fits(c, x) and (a := uniform(c)) is not None:
            return apply(v.op, x, same_dtype(np.array(a), c, c.name), name=v.name)
    return None


def dequantize_bias(v: Value, sweep: Sweep) -> Value | None:
    """x + dequantized i32 constant: the bias of a dense layer of a model that arrived quantized, as the numbers it stands for."""
    match v:
        case Value(Add(), (x, Value(Dequantize(), (Value(Const(data), type=TensorType(dtype=DType.i32, quant=Quantization() as q)),)) as c)):
            return apply(Add(), x, constant(q.dequantize(data).astype(c.type.dtype.numpy), c.name), name=v.name)
    return None


def add_and_mul(v: Value, sweep: Sweep) -> Value | None:
    """Subtraction, division and negation by constants as Add and Mul."""
    match v:
        case Value(Sub(), (x, c)) if (data := floats(c)) is not None:
            return apply(Add(), x, same_dtype(-data, c, c.name), name=v.name)
        case Value(Sub(), (c, x)) if floats(c) is not None:
            return apply(Add(), _scaled(x, -1.0, f"{v.name}.neg"), c, name=v.name)
        case Value(Div(), (x, c)) if (data := floats(c)) is not None and (inverse := _reciprocal(data)) is not None:
            return apply(Mul(), x, same_dtype(inverse, c, c.name), name=v.name)
        case Value(Neg(), (x,)) if x.type.dtype.is_float:
            return _scaled(x, -1.0, v.name)
    return None


def _reciprocal(data: Floats) -> Floats | None:
    with np.errstate(divide="ignore", over="ignore"):
        result: Floats = 1.0 / data
        return result if np.isfinite(result.astype(np.float32)).all() else None


def _scaled(x: Value, scale: float, name: str) -> Value:
    return apply(Mul(), x, same_dtype(np.array(scale), x, f"{name}.scale"), name=name)


def merge_constants(v: Value, sweep: Sweep) -> Value | None:
    """(x + a) + b = x + (a + b), (x * a) * b = x * (a * b); x + 0 = x * 1 = x.

    Not where x + a has other readers: a convolution takes it up for all of them, and what they do with it may be one function of it.
    """
    match v:
        case Value(Add(), (x, c)) if uniform(c) == 0 and fits(c, x):
            return x
        case Value(Mul(), (x, c)) if uniform(c) == 1 and fits(c, x):
            return x
        case Value(Add() | Mul() as op, (Value(op=inner, inputs=(x, a)) as y, b)) if type(inner) is type(op) and sweep.single_use(y):
            if (p := floats(a)) is not None and (q := floats(b)) is not None:
                merged = p + q if isinstance(op, Add) else p * q
                return apply(op, x, same_dtype(merged, a, a.name), name=v.name)
    return None


def clips(v: Value, sweep: Sweep) -> Value | None:
    """Maximum and minimum with one number as Clip, Clip of Clip as one, PRelu with one slope as LeakyRelu."""
    match v:
        case Value(Max(), (x, c)) if (a := uniform(c)) is not None and fits(c, x):
            return apply(Clip(a, inf), x, name=v.name)
        case Value(Min(), (x, c)) if (a := uniform(c)) is not None and fits(c, x):
            return apply(Clip(-inf, a), x, name=v.name)
        case Value(Clip(c, d), (Value(Clip(a, b), (x,)),)):
            return apply(Clip(min(max(a, c), d), min(max(b, c), d)), x, name=v.name)
        case Value(PRelu(), (x, c)) if (a := uniform(c)) is not None and fits(c, x):
            return apply(LeakyRelu(a), x, name=v.name)
    return None


def clip_early(v: Value, sweep: Sweep) -> Value | None:
    """clip(maxpool(x)) = maxpool(clip(x)), and so for concat and slice: behind a convolution a Clip costs nothing."""
    match v:
        case Value(Clip() as clip, (Value(MaxPool() | Concat() | Slice()) as moved,)) if sweep.single_use(moved):
            return replace(moved, inputs=tuple(apply(clip, i, name=f"{i.name}.clip") for i in moved.inputs), name=v.name)
    return None


def keep_dimensions(v: Value, sweep: Sweep) -> Value | None:
    """A reduction that drops axes as one that keeps them and a Reshape; so for Gather by a scalar."""
    match v:
        case Value(Reduce(keepdims=False) as op, (x,)):
            kept = apply(replace(op, keepdims=True), x, name=v.name)
        case Value(Gather() as op, (x, Value(Const(data)) as i)) if data.ndim == 0:
            kept = apply(op, x, constant(data.reshape(1), i.name), name=v.name)
        case _:
            return None
    return apply(Reshape(v.shape), kept, name=f"{v.name}.squeezed")


def global_pool(v: Value, sweep: Sweep) -> Value | None:
    """A mean over one window that covers the image is a mean over axes 1 and 2."""
    match v:
        case Value(AveragePool(kernel=kernel, pads=pads, dilations=(1, 1)), (x,)) if kernel == x.shape[1:3] and not any(map(any, pads)):
            return apply(Reduce(Reduction.mean, (1, 2)), x, name=v.name)
    return None


def reduce_of_reshape(v: Value, sweep: Sweep) -> Value | None:
    """reduce(reshape(x)) = reshape(reduce(x)) where the reduced axes are whole groups: the mean over HW is that over H and W."""
    match v:
        case Value(Reduce(kind, axes, True), (Value(Reshape(), (x,)) as r,)) if 0 not in x.shape:
            wide = {a for a in axes if r.shape[a] != 1}
            groups = [(a, b) for a, b in reshape_groups(x.shape, r.shape) if wide & set(b)]
            if any(set(b) - wide for _, b in groups):
                return None
            inner = apply(Reduce(kind, tuple(sorted(i for a, _ in groups for i in a))), x, name=v.name)
            return apply(Reshape(v.shape), inner, name=f"{v.name}.reshaped")
    return None


RULES: tuple[Rule, ...] = (
    constant_right,
    dequantize_bias,
    shrink_uniform,
    add_and_mul,
    merge_constants,
    clips,
    clip_early,
    keep_dimensions,
    global_pool,
    reduce_of_reshape,
)
