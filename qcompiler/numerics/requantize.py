"""From an int32 accumulator to int8: the one requantization of the whole compiler.

With real multiplier ``M = S_x S_w / S_y``, written as ``M = q * 2^-15 * 2^-s * 2^-6`` with q in [2^14, 2^15):

    a = acc + half                      half = 2^(s-1) where s > 0, else 0
    t = sat16(a >> s)                   arithmetic shift; s < 0 shifts left by -s
    r = (t * q + 2^14) >> 15            the rounding multiply pmulhrsw / sqrdmulh / vqrdmulh / q15mulr_sat
    y = sat8(sat16(r + 64 z + 32) >> 6) z the zero point of y

Derivation. t is acc * 2^-s, rounded; r is acc * M * 2^6, that is y in units of 1/64; the last line rounds the six
fraction bits away. The rounding of t is worth at most q * 2^-16 < 1/2 unit of r, that of r 1/2 unit, and q's own
rounding 2^-15 relative, below 1/2 unit for |r| < 2^14: together less than 1.5/64 of an output step, so y differs from
the exactly rounded result only where that lies within 1.5/64 of a tie, and then by one. Saturations agree with those of
the exact result: |t| = 2^15 means |r| >= 2^14, that is |y - z| >= 256, beyond int8 whatever z is; saturating r + 64z + 32
means y beyond +-511. Compare gemmlowp's Q31 scheme (Jacob et al. 2018, section 2.2), three times the instructions.

**16 bits.** Residual streams, logits and network outputs may be 16 bits wide, with zero point 0: r itself is the result, with M = q * 2^-15 * 2^-s.
Its error is at most 1.5 units. Because t saturates where |r| may be as little as 2^14, scales are chosen so that real values reach 2^14
units and no more; beyond it is saturation between 2^14 and 2^15.

**Fine streams.** The r of a requantization to int8 may be kept beside y: 16 bits, zero point 0, scale S_y / 64, and |r| <= 255 * 64 < 2^14 for
all that y can hold. The last line alone turns it into y (`narrow`): the copy has the very bits that requantizing to int8 would have given.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import frexp

import numpy as np
from numpy.typing import NDArray

from .lanes import CheckedLanes, Self

FRACTION_BITS = 6
MAX_LEFT_SHIFT = 15
MAX_RIGHT_SHIFT = 31


@dataclass(frozen=True)
class Multiplier:
    """A real multiplier as (shift, q): q * 2^-(21 + shift), shift in [-15, 31], q in [2^14, 2^15)."""

    shift: int
    q: int

    @property
    def real(self) -> Fraction:
        """The exact value."""
        return Fraction(self.q) / Fraction(2) ** (15 + FRACTION_BITS + self.shift)


def multiplier(real: float, fraction_bits: int = FRACTION_BITS) -> Multiplier:
    """The nearest `Multiplier`; `fraction_bits` 0 for `requantize_wide`. One too small to move any int32 accumulator off zero
    becomes the smallest one.

    Raises OverflowError above 2^9 (2^15 without fraction bits), where a single accumulator step would leave the result's
    range, and ValueError unless positive.
    """
    if not (real > 0 and np.isfinite(real)):
        raise ValueError(f"a requantization multiplier is positive and finite, found {real}")
    mantissa, exponent = frexp(real)
    q = round(mantissa * (1 << 15))
    if q == 1 << 15:
        q, exponent = q >> 1, exponent + 1
    shift = -exponent - fraction_bits
    if shift > MAX_RIGHT_SHIFT:
        return Multiplier(MAX_RIGHT_SHIFT, 1 << 14)
    if shift < -MAX_LEFT_SHIFT:
        raise OverflowError(f"requantization multiplier {real} is above 2^{MAX_LEFT_SHIFT - fraction_bits}")
    return Multiplier(shift, q)


def rounding_half(shift: NDArray[np.integer]) -> NDArray[np.int64]:
    """2^(s-1) where s > 0, else 0: kernels fold it into the bias."""
    s = np.asarray(shift, np.int64)
    return np.where(s > 0, np.int64(1) << np.maximum(s - 1, 0), 0)


def output_offset(zero_point: int) -> int:
    """64 z + 32: the zero point in units of r, with the rounding half of the last shift; fits in 16 bits."""
    return (zero_point << FRACTION_BITS) + (1 << (FRACTION_BITS - 1))


def requantize_biased(a: Self, left: Self | None, right: Self | None, q: Self, offset: Self) -> Self:
    """The steps after the bias. `a` is 32 bits (half already added), `left`/`right` 32-bit shift amounts of which one
    is 0 in every lane (None: 0 everywhere), `q` and `offset` 16 bits. Result: 8 bits."""
    return narrow_biased(requantize_wide_biased(a, left, right, q), offset)


def narrow_biased(r: Self, offset: Self) -> Self:
    """The last line of `requantize_biased`: r of 16 bits, `offset` that of the zero point. Result: 8 bits."""
    biased = r.add_sat(offset)
    return biased.shr(biased.splat(FRACTION_BITS)).sat(8)


def narrow(r: NDArray[np.integer], zero_point: int) -> NDArray[np.int8]:
    """numpy reading of `narrow_biased`."""
    return narrow_biased(CheckedLanes(r, 16), CheckedLanes(output_offset(zero_point), 16)).values.astype(np.int8)


def requantize(acc: NDArray[np.integer], shift: NDArray[np.integer], q: NDArray[np.integer], zero_point: int) -> NDArray[np.int8]:
    """numpy reading with every width checked. `shift` and `q` broadcast against `acc`; raises WidthError on overflow."""
    s = np.asarray(shift, np.int64)
    a = CheckedLanes(acc, 32) + CheckedLanes(rounding_half(s), 32)
    left, right = CheckedLanes(np.maximum(-s, 0), 32), CheckedLanes(np.maximum(s, 0), 32)
    y = requantize_biased(a, left, right, CheckedLanes(q, 16), CheckedLanes(output_offset(zero_point), 16))
    return y.values.astype(np.int8)


def requantize_wide_biased(a: Self, left: Self | None, right: Self | None, q: Self) -> Self:
    """To 16 bits with zero point 0, operands as for `requantize_biased`: the same without its last line, r itself is the result."""
    shifted = a if left is None else a.shl(left)
    return (shifted if right is None else shifted.shr(right)).sat(16).mul_q15(q)


def requantize_wide(acc: NDArray[np.integer], shift: NDArray[np.integer], q: NDArray[np.integer]) -> NDArray[np.int16]:
    """numpy reading of `requantize_wide_biased`; multipliers are q * 2^-15 * 2^-shift, see `multiplier(real, fraction_bits=0)`."""
    s = np.asarray(shift, np.int64)
    a = CheckedLanes(acc, 32) + CheckedLanes(rounding_half(s), 32)
    left, right = CheckedLanes(np.maximum(-s, 0), 32), CheckedLanes(np.maximum(s, 0), 32)
    return requantize_wide_biased(a, left, right, CheckedLanes(q, 16)).values.astype(np.int16)
