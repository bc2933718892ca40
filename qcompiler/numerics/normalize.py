"""LayerNorm and RMSNorm over D integers, in integers.

With x the integers of a row (scale S and, for RMSNorm, zero point z; both cancel but for epsilon):

    c_i = (x_i << F) - round(2^F sum x / D)          RMSNorm: (x_i - z) << F
    V   = sum c_i^2 + E                              E = D epsilon (2^F / S)^2, at least 1; V < 2^62
    e   = ceil(p / 2) - 15                           p the number of bits of V: |c_i| <= sqrt(V) < 2^(e + 15)
    t_i = sat16(round(c_i 2^-e))
    rho = max { r < 2^15 : r^2 m <= 2^58 }           m = floor(V 2^(-2e)), in [2^28, 2^30): rho is 2^14 / sqrt(m 2^-30), rounded down
    u_i = (t_i rho + 2^14) >> 15                     the unit vector c / sqrt(V) in units of 2^-14
    y_i = sat((u_i g_i + b_i) >> k)                  g_i = gamma_i sqrt(D) / S_y 2^(k-14), b_i = (beta_i / S_y + z_y) 2^k + 2^(k-1)

|c_i| <= sqrt(V) is what makes 16 bits enough for t whatever the row holds: no outlier saturates, and a row of small numbers uses all
bits. k is the greatest for which g fits in 16 bits and b in 30, so that |u g + b| < 2^31.

**Error.** Let u* be the real number that u stands for, 2^14 (x_i - mean) / sqrt(sum (x_j - mean)^2 + D epsilon / S^2).

- The mean is off by at most 1/2 in units of c, which adds at most D / 4 to V; E is off by at most 1 (unless it is bounded). So
  |2^14 c / sqrt(V) - u*| <= 2^13 / sqrt(V) + |u*| (D / 4 + 1) / V, where RMSNorm has no mean: |u*| / V.
- t is off by 1/2, times rho 2^-15 < 1. Only +2^15 is off by more: it saturates, but then m > 2^30 - 2^15 and rho 2^-15 = 1/2. u is rounded: 1/2.
- rho is below sqrt(2^58 / m) by at most 1 of at least 2^14; m <= V 2^(-2e) is short of it by less than 2^-28 relative.

Together |u - u*| <= 1 + 2^-14 |u| + 2^13 / sqrt(V) + |u*| (D / 4 + 1) / V; one unit is 2^-14 sqrt(D) standard deviations, 0.0012 for D = 384. Then
|y - y*| <= 1/2 + |u - u*| |g| 2^-k + (|u| + 1/2) 2^-k: the last shift, what came before, and g and b rounded. Compare I-BERT (Kim et al.
2021, section 3.5), whose Newton iteration for the square root works on the variance in 32 bits.

In one pass over the row: sum c_i^2 = 2^2F sum x_i^2 - 2 mu 2^F sum x_i + D mu^2, with c_i = (x_i << F) - mu.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp, sqrt

import numpy as np
from numpy.typing import NDArray

from .lanes import CheckedLanes, Self

Ints = NDArray[np.int64]

UNIT_BITS = 14
MAX_CHANNELS = 1 << 14
GREATEST_SHIFT = 30


def fraction_bits(bits: int) -> int:
    """F for operands of 8 or 16 bits."""
    return 8 if bits <= 8 else 2


def epsilon_term(epsilon: float, channels: int, scale: float, bits: int) -> int:
    """E for an operand of `scale`; bounded, since a greater one makes the result zero anyway."""
    return max(1, min(round(channels * epsilon * (2.0 ** fraction_bits(bits) / scale) ** 2), 1 << 58))


@dataclass(frozen=True)
class Affine:
    """g [D], b [D] and k."""

    g: Ints
    b: Ints
    shift: int


def affine(gamma: NDArray[np.floating], beta: NDArray[np.floating], scale: float, zero_point: int) -> Affine:
    """The constants for a result of this quantization. OverflowError where it is too fine for gamma or beta."""
    real_g = gamma.astype(np.float64) * sqrt(len(gamma)) / scale * 2.0**-UNIT_BITS
    real_b = beta.astype(np.float64) / scale + zero_point
    shift = min(_room(real_g, 15), _room(real_b, 29), GREATEST_SHIFT)
    if shift < 1:
        raise OverflowError(f"a normalization's result of scale {scale} is too fine for factors up to {np.abs(gamma).max()}")
    g, b = (np.rint(r * 2.0**shift).astype(np.int64) for r in (real_g, real_b))
    return Affine(np.clip(g, -(1 << 15), (1 << 15) - 1), b + (1 << (shift - 1)), shift)


def _room(values: NDArray[np.float64], bits: int) -> int:
    """The greatest k with |values| 2^k < 2^bits."""
    reach = float(np.abs(values).max(initial=0.0))
    return GREATEST_SHIFT if reach == 0 else bits - frexp(reach)[1]


def normalize(x: NDArray[np.integer], constants: Affine, epsilon: int, centered: bool, zero_point: int, bits: int, out_bits: int) -> Ints:
    """Rows of the last axis of x (`bits` wide, `zero_point` used where not `centered`); `epsilon` as `epsilon_term` gives it."""
    c = centered_rows(x, centered, zero_point, bits)
    v = (c * c).sum(-1, keepdims=True) + epsilon
    e = exponent(v)
    return normalize_lanes(
        CheckedLanes(c, 32),
        CheckedLanes(np.maximum(-e, 0), 32),
        CheckedLanes(np.where(e > 0, 1 << np.maximum(e - 1, 0), 0), 32),
        CheckedLanes(np.maximum(e, 0), 32),
        CheckedLanes(reciprocal_root(scaled_down(v, 2 * e)), 16),
        CheckedLanes(constants.g, 16),
        CheckedLanes(constants.b, 32),
        constants.shift,
        out_bits,
    ).values


def centered_rows(x: NDArray[np.integer], centered: bool, zero_point: int, bits: int) -> Ints:
    """c, of the shape of x."""
    wide, f, d = x.astype(np.int64), fraction_bits(bits), x.shape[-1]
    if not centered:
        return (wide - zero_point) << f
    return (wide << f) - ((wide.sum(-1, keepdims=True) << (f + 1)) + d) // (2 * d)


def exponent(v: Ints) -> Ints:
    """e: the least with V < 2^(2e + 30)."""
    p = np.array([int(n).bit_length() for n in v.ravel()], np.int64).reshape(v.shape)
    return (p + 1) // 2 - 15


def scaled_down(v: Ints, by: Ints) -> Ints:
    """floor(v 2^-by), `by` of either sign."""
    return (v << np.maximum(-by, 0)) >> np.maximum(by, 0)


def reciprocal_root(m: Ints) -> Ints:
    """The greatest r < 2^15 with r^2 m <= 2^58, for m in [2^28, 2^30): bit by bit, from 2^14 on."""
    r = np.full(m.shape, 1 << 14, np.int64)
    for bit in range(13, -1, -1):
        tried = r + (1 << bit)
        r = np.where(tried * tried * m <= 1 << 58, tried, r)
    return r


ROOT_PARTS = 192
ROOT_SHIFT = 22
ROOT_FRACTION = 12


def root_table() -> Ints:
    """[192, 2]: of each interval of 2^22 numbers m, 2^12 times 2^29 / sqrt(m) at its start (rounded up), and its fall to the end (down).

    The chord lies above the convex function, by at most 2^44 / 8 * 3/4 2^29 m^(-5/2) <= 3/4 where m >= 2^28, and its rounding is worth
    less than 2^-10: rounded down it is the greatest r with r^2 m <= 2^58, or one more.
    """
    start = np.arange(ROOT_PARTS // 3, ROOT_PARTS // 3 + ROOT_PARTS + 1) * 2.0**ROOT_SHIFT
    real = 2.0 ** (2 * UNIT_BITS + 1 + ROOT_FRACTION) / np.sqrt(start)
    return np.stack([np.ceil(real[:-1]), np.floor(real[:-1] - real[1:])], 1).astype(np.int64)


def reciprocal_root_by_table(m: Ints) -> Ints:
    """`reciprocal_root` in fewer steps, as kernels do it."""
    base, fall = np.moveaxis(root_table()[(m >> ROOT_SHIFT) - ROOT_PARTS // 3], -1, 0)
    chord = (base - ((fall * (m & ((1 << ROOT_SHIFT) - 1))) >> ROOT_SHIFT)) >> ROOT_FRACTION
    r = np.minimum(chord, (1 << 15) - 1)
    return r - (r * r * m > 1 << 58)


def normalize_lanes(c: Self, left: Self, half: Self, right: Self, rho: Self, g: Self, b: Self, shift: int, out_bits: int) -> Self:
    """The steps per element. c, `left`, `half`, `right` and b are 32 bits, rho and g 16; the row's shift e is `right` - `left`."""
    t = (c.shl(left) + half).shr(right).sat(16)
    y = t.mul_q15(rho).mul_wide(g) + b
    return y.shr(y.splat(shift)).sat(out_bits)
