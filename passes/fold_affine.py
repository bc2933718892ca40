"""(w * x + b) * s + t = (s w) * x + (s b + t): batch normalization is part of the convolution (Jacob et al. 2018, section 3.2).

Any Mul or Add by a constant per channel behind a convolution is folded into it, also through what commutes with it: a
Clip at 0 for positive scales, pooling, concatenation (the vector split among the branches), pads, reshapes. Before a
convolution, w * (s x + t) + b = (w s) * x + (b + sum w t), but the shift only where no padding of zeros comes between,
or of bytes (`channel_of_ones`).
All in float64, rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isinf

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import (
    AveragePool,
    Cast,
    Concat,
    Const,
    Conv,
    MatMul,
    MaxPool,
    Op,
    Pad,
    PadMode,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Transpose,
)
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Mul
from qcompiler.ir.types import DType

from .channel_of_ones import is_shiftable, shifted_conv
from .constants import Floats, floats, is_weights, per_channel, same_dtype


def fold_affine(graph: Graph, declined: Declined | None = None) -> Graph:
    """Fold Mul and Add by constants into neighbouring convolutions."""
    return rewrite(graph, RULES, declined)


@dataclass(frozen=True)
class Affine:
    """x * scale + shift along the last axis; vectors of C elements, or of one for all channels."""

    scale: Floats
    shift: Floats

    @property
    def is_scale(self) -> bool:
        """Whether nothing is added."""
        return not self.shift.any()

    @property
    def is_shift(self) -> bool:
        """Whether nothing is scaled."""
        return bool((self.scale == 1).all())

    @property
    def is_positive(self) -> bool:
        """Whether every scale is above zero, so that order is kept."""
        return bool((self.scale > 0).all())

    @property
    def is_uniform(self) -> bool:
        """Whether all channels have the same map."""
        return self.scale.size == self.shift.size == 1

    def channels(self, start: int, stop: int) -> Affine:
        """The map of some channels."""
        return Affine(*(a if a.size == 1 else a[start:stop] for a in (self.scale, self.shift)))

    def repeated(self, times: int) -> Affine:
        """The map of a last axis that a reshape splits `times` fold: channel c of the result was channel c, c + C, c + 2C ..."""
        return Affine(*(a if a.size == 1 else np.tile(a, times) for a in (self.scale, self.shift)))

    def number(self, x: float) -> float:
        """The image of a number under a uniform map."""
        return x if isinf(x) else float(x * self.scale.flat[0] + self.shift.flat[0])


def affine_of(v: Value) -> tuple[Value, Affine] | None:
    """The operand and the map of a Mul or Add by a constant per channel."""
    match v:
        case Value(Mul(), (x, c)) if (scale := per_channel(c, x)) is not None:
            return x, Affine(scale, np.zeros(1))
        case Value(Add(), (x, c)) if (shift := per_channel(c, x)) is not None:
            return x, Affine(np.ones(1), shift)
    return None


# --- behind a convolution ---------------------------------------------------------------------------------------------


def fold_behind(v: Value, sweep: Sweep) -> Value | None:
    """An affine map is absorbed by what produces its operand."""
    found = affine_of(v)
    return None if found is None else absorb(found[0], found[1], v.name, sweep)


def absorb(x: Value, f: Affine, name: str, sweep: Sweep) -> Value | None:
    """A value equal to f(x) for which no operator was added, or None. Every value on the way must have no other reader."""
    if isinstance(x.op, Const):
        return _of_constant(x, f)
    if not isinstance(x.op, ABSORBING):
        return None
    if not sweep.single_use(x):
        return sweep.declined(x, "has several readers; the scale and shift of one of them stay separate")
    if isinstance(x.op, Conv):
        return into_conv(x, f, name, sweep)
    if isinstance(x.op, Concat):
        return _into_branches(x, f, name, sweep)
    moved = commuted(x, f)
    inner = absorb(x.inputs[0], moved[1], x.inputs[0].name, sweep) if moved is not None else None
    return None if moved is None or inner is None else replace(x, op=moved[0], inputs=(inner,), name=name)


ABSORBING = (Const, Conv, Concat, Clip, LeakyRelu, MaxPool, AveragePool, Reduce, Resize, Slice, Pad, Reshape, Transpose)


def into_conv(x: Value, f: Affine, name: str, sweep: Sweep) -> Value | None:
    """The convolution whose weights and bias hold `f`; weights of a model that arrived quantized are kept, and take a shift alone."""
    w = floats(x.inputs[1])
    b = floats(x.inputs[2]) if len(x.inputs) == 3 else np.zeros(x.shape[3])
    if b is None or (w is None and not (f.is_shift and is_weights(x.inputs[1]))):
        return sweep.declined(x, "weights are no float constants")
    weights = x.inputs[1] if w is None or f.is_shift else same_dtype(w * f.scale.reshape(-1, 1, 1, 1), x.inputs[1], x.inputs[1].name)
    bias = same_dtype(b * f.scale + f.shift, x.inputs[1], _bias_name(x))
    return apply(x.op, x.inputs[0], weights, bias, name=name)


def _of_constant(x: Value, f: Affine) -> Value | None:
    data = floats(x)
    return None if data is None else same_dtype(data * f.scale + f.shift, x, x.name)


def _into_branches(x: Value, f: Affine, name: str, sweep: Sweep) -> Value | None:
    if x.op != Concat(len(x.shape) - 1) and not f.is_uniform:
        return None
    stops = np.cumsum([i.shape[-1] for i in x.inputs])
    branches = [absorb(i, f.channels(int(stop) - i.shape[-1], int(stop)), i.name, sweep) for i, stop in zip(x.inputs, stops)]
    taken = [b for b in branches if b is not None]
    if len(taken) < len(branches):
        return sweep.declined(x, "not every joined branch can take over the scale and shift behind it")
    return replace(x, inputs=tuple(taken), name=name)


def commuted(x: Value, f: Affine) -> tuple[Op, Affine] | None:
    """g and h with f(op(y)) = g(h(y)), if there are such."""
    rank = len(x.shape)
    match x.op:
        case Clip(lo, hi) if f.is_positive and f.is_uniform:
            return Clip(f.number(lo), f.number(hi)), f
        case Clip(lo, hi) if f.is_positive and f.is_scale and {lo, hi} <= {-inf, 0.0, inf}:
            return x.op, f
        case LeakyRelu() if f.is_positive and f.is_scale:
            return x.op, f
        case MaxPool() if f.is_positive:
            return x.op, f
        case AveragePool(counted_pads=counted) if f.is_scale or not any(map(any, counted)):
            return x.op, f
        case Reduce(Reduction.mean, axes) if rank - 1 not in axes:
            return x.op, f
        case Reduce(Reduction.sum, axes) if rank - 1 not in axes and f.is_scale:
            return x.op, f
        case Resize(taps) if taps[-1] is None:
            return x.op, f
        case Slice(starts, stops) if f.is_uniform or (starts[-1], stops[-1]) == (0, x.inputs[0].shape[-1]):
            return x.op, f
        case Pad(mode=PadMode.constant, value=value) if f.is_uniform:
            return replace(x.op, value=f.number(value)), f
        case Pad(pads, PadMode.constant, 0.0) if f.is_scale and pads[-1] == (0, 0):
            return x.op, f
        case Reshape() if f.is_uniform:
            return x.op, f
        case Reshape() if x.inputs[0].shape[-1] % x.shape[-1] == 0:
            return x.op, f.repeated(x.inputs[0].shape[-1] // x.shape[-1])
        case Transpose(perm) if f.is_uniform or perm[-1] == rank - 1:
            return x.op, f
    return None


# --- before a convolution ---------------------------------------------------------------------------------------------


def fold_before(v: Value, sweep: Sweep) -> Value | None:
    """Conv of an affine map: the scale always, the shift where the convolution pads nothing."""
    if not isinstance(v.op, Conv) or (found := affine_of(v.inputs[0])) is None:
        return None
    x, f = found
    w = floats(v.inputs[1])
    b = floats(v.inputs[2]) if len(v.inputs) == 3 else np.zeros(v.shape[3])
    if w is None or b is None or not sweep.single_use(v.inputs[0]):
        return None
    if not f.is_scale and any(map(any, v.op.pads)):
        octets, whole = _composed(v.inputs[0])
        if is_shiftable(v) and _is_octets(octets):
            scale, shift = (np.broadcast_to(a, x.shape[3:]) for a in (whole.scale, whole.shift))
            return shifted_conv(v, octets, scale, shift, OCTETS)
        return sweep.declined(v.inputs[0], f"a shift before '{v.name}', which pads with zeros, stays separate")
    per_group = [np.broadcast_to(a, x.shape[3:]).reshape(v.op.groups, 1, 1, 1, -1) for a in (f.scale, f.shift)]
    grouped = w.reshape(v.op.groups, -1, *w.shape[1:])
    bias = b + (grouped * per_group[1]).sum((2, 3, 4)).reshape(-1)
    weights = v.inputs[1] if f.is_shift else same_dtype((grouped * per_group[0]).reshape(w.shape), v.inputs[1], v.inputs[1].name)
    return apply(v.op, x, weights, same_dtype(bias, v.inputs[1], _bias_name(v)), name=v.name)


OCTETS = 255.0


def _composed(v: Value) -> tuple[Value, Affine]:
    """The first operand, and the map, of a chain of Mul and Add by constants that ends in `v`."""
    if (found := affine_of(v)) is None:
        return v, Affine(np.ones(1), np.zeros(1))
    x, inner = _composed(found[0])
    return x, Affine(found[1].scale * inner.scale, found[1].scale * inner.shift + found[1].shift)


def _is_octets(x: Value) -> bool:
    """Whether `x` is made of bytes, whose quantization holds every number up to 255."""
    match x:
        case Value(Transpose(), (inner,)):
            return _is_octets(inner)
        case Value(Cast(), (inner,)):
            return inner.type.dtype is DType.u8
    return False


def _bias_name(v: Value) -> str:
    return v.inputs[2].name if len(v.inputs) == 3 else f"{v.name}.bias"


def fold_before_dense(v: Value, sweep: Sweep) -> Value | None:
    """(x * s) @ W = x @ (s W), where s may differ in every row of W: batch normalization before or after a flatten."""
    match v:
        case Value(MatMul(), (Value(Reshape() as flat, (y,)) as r, w)) if (rows := _row_vector(y, r)) is not None:
            if (data := floats(w)) is None or data.ndim != 2 or not (sweep.single_use(y) and sweep.single_use(r)):
                return None
            x = apply(flat, y.inputs[0], name=r.name)
            if isinstance(y.op, Mul):
                return apply(MatMul(), x, same_dtype(rows[:, None] * data, w, w.name), name=v.name)
            product = apply(MatMul(), x, w, name=f"{v.name}.product")
            return apply(Add(), product, same_dtype(rows @ data, w, f"{v.name}.bias"), name=v.name)
    return None


def _row_vector(y: Value, r: Value) -> Floats | None:
    """The constant that `y` multiplies by or adds, as one vector along the last axis of its reshape `r`."""
    if not isinstance(y.op, (Mul, Add)) or y.inputs[0].shape != y.shape or (c := floats(y.inputs[1])) is None:
        return None
    full = np.broadcast_to(c, y.shape).reshape(-1, r.shape[-1])
    return full[0] if bool((full == full[0]).all()) else None


RULES: tuple[Rule, ...] = (fold_behind, fold_before, fold_before_dense)
