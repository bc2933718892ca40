"""Weights to int8 per output channel, biases to int32, and the corrected bias.

    S_o = max |W_o| / 127            W_q = round(W / S_o)            b_q = round(b / (S_x S_o))

Below 7 bits S_o is smaller and the greatest weights are clipped (`least_error_scale`). A `Scheme` may ask for one scale, or for powers of two,
of which the next finer one is tried too.
Of at most 4 bits, weights are multiples of S_o by group, or shifted (`weight_grid`).

Rounding is to the nearest, or of second order where the covariance of the inputs is known (`round_weights`).

The channel's scale is raised by rule where that makes another part fail, never clipped in silence: where the bias would leave
30 bits, where the worst accumulator would leave 31, or where the requantization multiplier would leave its range (a dead
channel has no scale of its own). Such channels are reported.

Where a residual r is added to the accumulator, S_o is raised by less than one part in m so that m = S_r / (S_x S_o) is an integer:
then acc + m (r - z_r) is exact.

Bias correction (Nagel et al. 2019, "Data-Free Quantization", section 4.2; here with measured instead of assumed means):
rounding weights shifts the mean of the output by (W_q S - W) E[x]; the bias takes it back, and what storing x does (`stored_errors`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.types import Quantization
from qcompiler.numerics.requantize import FRACTION_BITS, MAX_RIGHT_SHIFT

from .round_weights import DAMPING, DAMPING_FEW_BITS, SWEEPS, round_weights
from .scheme import PLAIN, Scheme, next_power
from .weight_grid import NARROW, Grid, Grouping, even_grid, grouped_grid, row_of, shifted_grid

Array = NDArray[np.floating]
MAX_BIAS = 1 << 30
MAX_ACC = (1 << 31) - (1 << 30)
MAX_RESIDUAL_MULTIPLIER = (1 << 15) - 1
FRACTIONS = np.linspace(1.0, 0.4, 31)
"""Of the greatest weight, where narrow weights may be clipped."""
HALVES = np.array([1.0, 0.5, 0.25])
"""Of a power of two that reaches the greatest weight."""
WIDE = 7
"""From so many bits on, weights are not clipped, and rounding of second order looks at them a second time only once."""
RAISED = 1.25
"""A scale is reported as raised from this factor on."""


@dataclass(frozen=True)
class QuantizedWeights:
    """Integer weights [O, ...] and bias [O] with their scales; `raised` are the channels whose scale a rule raised."""

    weights: NDArray[np.int8]
    scale: NDArray[np.float64]
    bias: NDArray[np.int32]
    raised: tuple[int, ...]
    bits: int = 8
    """That the integers need."""


def quantize_weights(
    weights: NDArray[np.generic],
    bias: NDArray[np.generic] | None,
    x: Quantization,
    out: Quantization | None,
    mean: Array | None = None,
    residual: Quantization | None = None,
    covariance: NDArray[np.float64] | None = None,
    bits: int = 8,
    scheme: Scheme = PLAIN,
    stored_error: Array | None = None,
    grouping: Grouping = Grouping.none,
) -> QuantizedWeights:
    """Weights [O,kh,kw,C/groups] read by an operand of quantization `x`; `out` is the result's quantization where known.

    Where `mean`, E[x] per input channel [C], is given, the bias is corrected, and where `stored_error`, E[Q(x) - x], is, by that too;
    where `covariance` is (see `covariances`), rounding is of second order. `grouping` is that of few bits.
    """
    w = weights.astype(np.float64)
    b = np.zeros(w.shape[0]) if bias is None else bias.astype(np.float64)
    own = grid_of(w, bits, covariance, scheme, grouping)
    scale = _within(scheme, np.maximum(own.scale, _least_scale(w, b, x, out, scheme)))
    if residual is not None:
        unit = residual.scale[0] / x.scale[0]
        scale = unit / residual_multipliers(unit / scale, scheme)
    grid = replace(own, scale=scale)
    flat = w.reshape(len(w), -1) / scale[:, None]
    sweeps, damping = (SWEEPS, DAMPING_FEW_BITS) if bits < WIDE else (1, DAMPING)
    q = grid.nearest(flat).reshape(w.shape) if covariance is None else round_weights(w, grid, covariance, sweeps, damping)
    if mean is not None:
        b = b - _mean_shift(q * scale.reshape(-1, *[1] * (w.ndim - 1)) - w, mean)
    if stored_error is not None:
        b = b - _mean_shift(q * scale.reshape(-1, *[1] * (w.ndim - 1)), stored_error)
    raised = tuple(int(i) for i in np.flatnonzero((scale > own.scale * RAISED) & (own.scale > 0)))
    integers = np.rint(b / (x.scale[0] * scale)).astype(np.int32)
    return QuantizedWeights(q.astype(np.int8), scale, integers, raised, max(bits, grid.bits))


def grid_of(
    w: NDArray[np.float64], bits: int, covariance: NDArray[np.float64] | None, scheme: Scheme = PLAIN, grouping: Grouping = Grouping.none
) -> Grid:
    """What the weights [O,kh,kw,C/groups] may become."""
    flat, greatest = w.reshape(len(w), -1), (1 << (bits - 1)) - 1
    if bits <= NARROW and scheme == PLAIN:
        h = np.array(np.broadcast_to(input_variances(flat, covariance), flat.shape))
        if grouping is Grouping.shifted:
            return shifted_grid(flat, h, bits, row_of(w.shape))
        if grouping is Grouping.multiplied:
            return grouped_grid(flat, h, bits)
    return even_grid(least_error_scale(w, bits, covariance, scheme), flat.shape[1], greatest)


def input_variances(flat: NDArray[np.float64], covariance: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """h for rows [O, K], or ones."""
    if covariance is None:
        return np.ones((1, flat.shape[1]))
    h = np.diagonal(covariance, axis1=1, axis2=2)
    return np.repeat(h, len(flat) // len(h), 0)


def least_error_scale(w: NDArray[np.float64], bits: int, covariance: NDArray[np.float64] | None, scheme: Scheme = PLAIN) -> NDArray[np.float64]:
    """S per output channel [O]. At 7 bits and more that of the greatest weight; below, among powers of two, and where one scale serves all
    channels, clipping pays: the fraction of it that minimises

    sum_k h_k (w_k - S clip(round(w_k / S)))^2          h the variances of the inputs, or one
    """
    greatest = (1 << (bits - 1)) - 1
    flat = w.reshape(w.shape[0], -1)
    full = _within(scheme, np.abs(flat).max(1) / greatest)
    if (bits >= WIDE and scheme.per_channel and not scheme.power_of_two) or not full.any():
        return full
    h = input_variances(flat, covariance)
    tried = np.stack([full * f for f in (HALVES if scheme.power_of_two else FRACTIONS)])
    safe = np.where(tried > 0, tried, 1.0)
    errors = np.stack([(h * (flat - s[:, None] * np.clip(np.rint(flat / s[:, None]), -greatest, greatest)) ** 2).sum(1) for s in safe])
    if not scheme.per_channel:
        errors = np.broadcast_to(errors.sum(1, keepdims=True), errors.shape)
    return np.take_along_axis(tried, errors.argmin(0)[None], 0)[0]


def _within(scheme: Scheme, scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least scales that `scheme` allows and that are no finer."""
    common = scale if scheme.per_channel else np.full_like(scale, scale.max())
    return next_power(common) if scheme.power_of_two else common


def residual_multipliers(ratio: NDArray[np.float64], scheme: Scheme = PLAIN) -> NDArray[np.float64]:
    """m per channel: `ratio` = S_r / (S_x S_o) rounded down, so that S_o = S_r / (S_x m) is no finer than it was."""
    most = (MAX_RESIDUAL_MULTIPLIER + 1) // 2 if scheme.power_of_two else MAX_RESIDUAL_MULTIPLIER
    return np.clip(np.floor(ratio), 1, most)


def _least_scale(w: NDArray[np.float64], b: NDArray[np.float64], x: Quantization, out: Quantization | None, scheme: Scheme) -> NDArray[np.float64]:
    """The smallest scale per channel for which bias, accumulator and multiplier all stay in range. In schemes of 16 bits, accumulators are
    not ours; with one scale for all, channels that are dead need none of their own."""
    sx = x.scale[0]
    greatest = (1 << x.bits) - 1 if x.bits <= 8 else 1 << (x.bits - 1)
    reach = np.abs(w).reshape(w.shape[0], -1).sum(1) * greatest
    least = np.abs(b) / (sx * MAX_BIAS)
    if scheme.bits <= 8:
        least = np.maximum(least, (reach + np.abs(b) / sx) / MAX_ACC)
    dead = ~np.any(w.reshape(w.shape[0], -1), 1)
    if not scheme.per_channel and not dead.all():
        dead = np.zeros_like(dead)
    if out is None:
        return np.maximum(least, np.where(dead, 1.0 / sx, 0.0))
    # S_x S_w / S_y stays above the least multiplier; a dead channel gets 2^-8, that is eight bits below the output's step.
    step = out.scale[0] / sx
    return np.maximum(least, step * np.where(dead, 2.0**-8, 2.0 ** -(MAX_RIGHT_SHIFT + FRACTION_BITS)))


def _mean_shift(error: Array, mean: Array) -> Array:
    """E[(W_q S - W) x] per output channel: `error` [O, kh, kw, C/groups], `mean` [C]."""
    taps = error.sum((1, 2))
    groups = len(mean) // taps.shape[1]
    return np.asarray((taps * np.repeat(mean.reshape(groups, -1), len(taps) // groups, 0)).sum(1))
