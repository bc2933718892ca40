"""Transposed convolution = convolution + depth to space (Shi et al. 2016, "Is the deconvolution layer the same ...").

Output o = q s + phi along an axis with stride s, padding p and dilation d gets tap t from input i = (o + p - d t) / s
where that is whole: i = q + n(phi, t), the same offset n for every q. So each phase phi is an ordinary convolution at
stride 1 with the taps of that phase at places n; all s_h s_w phases share one kernel size, zeros between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Const, Conv, ConvTranspose, Dequantize, Reshape, Slice, Transpose, constant

from .constants import Floats, floats, is_weights

Weights = NDArray[np.generic]


def subpixel(graph: Graph, declined: Declined | None = None) -> Graph:
    """Write every ConvTranspose as Conv, Reshape, Transpose, Reshape and Slice."""
    return rewrite(graph, RULES, declined)


@dataclass(frozen=True)
class Phases:
    """One axis: (phase, tap, offset) of every tap, the padding, and the number of outputs in each phase."""

    taps: tuple[tuple[int, int, int], ...]
    pads: tuple[int, int]
    kernel: int
    count: int

    @staticmethod
    def of(op: ConvTranspose, axis: int, size: int, kernel: int, out: int) -> Phases:
        """The phases of `axis` (0 is H) for `size` inputs and `out` outputs."""
        s, d, p = op.strides[axis], op.dilations[axis], op.pads[axis][0]
        found = [(phase, t, (phase + p - d * t) // s) for phase in range(s) for t in range(kernel) if (phase + p - d * t) % s == 0]
        low, high = (choose(0, *(n for _, _, n in found)) for choose in (min, max))
        before, after = -low, max(-(-out // s) + high - size, 0)
        window = high - low + 1
        return Phases(tuple((a, t, n - low) for a, t, n in found), (before, after), window, size + before + after - window + 1)


def to_subpixel(v: Value, sweep: Sweep) -> Value | None:
    """ConvTranspose with constant weights as a convolution to s_h s_w times the channels, spread over space."""
    match v:
        case Value(ConvTranspose() as op, (x, weights, *bias)) if is_weights(weights):
            h, wd = (Phases.of(op, a, x.shape[1 + a], weights.shape[1 + a], v.shape[1 + a]) for a in range(2))
            filters = _filters_of(op, weights, h, wd)
            conv = apply(Conv(pads=(h.pads, wd.pads), groups=op.groups), x, filters, *(_biases(op, b) for b in bias), name=v.name)
            full = _depth_to_space(conv, op, v.shape[3])
            return apply(Slice((0,) * 4, v.shape, (1,) * 4), full, name=f"{v.name}.cropped")
        case Value(ConvTranspose()):
            return sweep.declined(v, "weights are no constant")
    return None


def _filters_of(op: ConvTranspose, weights: Value, h: Phases, wd: Phases) -> Value:
    """The filters of constant weights, or of dequantized ones with their scales: one for all, or one per output channel."""
    if isinstance(weights.op, Const):
        return constant(_filters(op, weights.op.data, h, wd), weights.name)
    (stored,) = weights.inputs
    quant = stored.type.quant
    if not isinstance(stored.op, Const) or quant is None or quant.axis not in (None, 3):
        raise ValueError(f"weights '{weights.name}' have scales along axis {None if quant is None else quant.axis}; expected output channels")
    data = _filters(op, stored.op.data.astype(np.int64) - quant.broadcast(4)[1], h, wd)
    if quant.axis is not None:
        times = op.groups * op.strides[0] * op.strides[1]
        quant = replace(quant, scale=quant.scale * times, zero_point=quant.zero_point * times, axis=0)
    made = (data.astype(np.int64) + quant.broadcast(4)[1]).astype(stored.op.data.dtype)
    return apply(Dequantize(), constant(made, stored.name, replace(stored.type, shape=made.shape, quant=quant)), name=weights.name)


def _filters(op: ConvTranspose, w: Weights, h: Phases, wd: Phases) -> Weights:
    """w [C, kh, kw, O/groups] as [groups * s_h * s_w * O/groups, window_h, window_w, C/groups]; taps that a phase lacks are 0."""
    grouped = w.reshape(op.groups, -1, *w.shape[1:])
    full = np.zeros((op.groups, *op.strides, w.shape[3], h.kernel, wd.kernel, grouped.shape[1]), w.dtype)
    for (a, t, n), (b, u, m) in _pairs(h, wd):
        full[:, a, b, :, n, m, :] = grouped[:, :, t, u, :].transpose(0, 2, 1)
    return full.reshape(-1, *full.shape[4:])


def _pairs(h: Phases, w: Phases) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    return ((i, j) for i in h.taps for j in w.taps)


def _biases(op: ConvTranspose, b: Value) -> Value:
    """The bias [O], once for each phase."""
    data = floats(b) if isinstance(b.op, Const) or not is_weights(b) else dequantized(b)
    if data is None:
        raise ValueError(f"bias '{b.name}' is no constant")
    grouped = data.astype(b.type.dtype.numpy).reshape(op.groups, 1, 1, -1)
    return constant(np.broadcast_to(grouped, (op.groups, *op.strides, grouped.shape[3])).reshape(-1), b.name)


def dequantized(b: Value) -> Floats | None:
    """The numbers that a dequantized constant stands for."""
    (stored,) = b.inputs
    return stored.type.quant.dequantize(stored.op.data) if isinstance(stored.op, Const) and stored.type.quant is not None else None


def _depth_to_space(conv: Value, op: ConvTranspose, channels: int) -> Value:
    """[N, H, W, (groups, s_h, s_w, C)] to [N, H s_h, W s_w, groups C]."""
    n, h, w, _ = conv.shape
    sh, sw = op.strides
    groups = (op.groups,) if op.groups > 1 else ()
    perm = (0, 1, 4, 2, 5, 3, 6) if groups else (0, 1, 3, 2, 4, 5)
    split = apply(Reshape((n, h, w, *groups, sh, sw, channels // op.groups)), conv, name=f"{conv.name}.phases")
    spread = apply(Transpose(perm), split, name=f"{conv.name}.spread")
    return apply(Reshape((n, h * sh, w * sw, channels)), spread, name=f"{conv.name}.space")


RULES: tuple[Rule, ...] = (to_subpixel,)
