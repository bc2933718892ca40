"""Attention over int8 queries, keys and values, in integers; no probability is ever rounded to 8 bits.

    a    = sum_d (q_d - z_q)(k_d - z_k)                 exact in 32 bits
    x    = sat16'(requantize16(a) + bias)               logits in units of 1/40, `numerics.requantize.requantize_wide`
    e_m  = table[min(max x - x_m, 255)], 0 where masked exponentials in [0, 255]
    s    = max(sum e_m, 1)
    acc  = sum_m e_m (v_m - z_v)                        exact in 32 bits up to 33,000 positions
    y    = requantize(acc, shift_s, q_s, z_y)           S_v / (S_y s) as a multiplier of the row, `row_multiplier`

sat16' saturates to [-(2^15 - 1), 2^15 - 1], where `requantize_wide` stays anyway: -2^15 marks hidden positions in kernels.
exp is taken of differences to the row's maximum, so logits need no calibrated range: 255 steps of 1/40 reach exp(-6.4), below
half of 1/255, and 16 bits of logits reach +-800. Division by the sum is postponed until after the product with the values (Milakov &
Gimelshein 2018, "Online normalizer calculation for softmax"), where it costs one multiplier per row.

The table is 255 exp(-d / 40), or that rounded to the 2^b levels of a logarithmic quantizer with base sqrt 2 (Li et al. 2023, RepQ-ViT,
section 3.3): there the levels are read from the table instead of being shifted, which is exact and needs no second scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .requantize import MAX_RIGHT_SHIFT, Multiplier, multiplier, requantize, requantize_wide

Ints = NDArray[np.int64]

UNITS_PER_NAT = 40
LEVELS = 256
MAX_POSITIONS = 33_000
MASKED = -(1 << 15)
"""A bias of this or less hides the position."""


def exp_table(bits: int | None = None, logarithmic: bool = True) -> NDArray[np.uint8]:
    """[256]: round(255 exp(-d / 40)); with `bits`, only 2^bits levels of it.

    `logarithmic`: the nearest, in the logarithm, of 2^(-j/2), j = 0 .. 2^bits - 1; else the nearest of evenly spaced ones.
    """
    nats = np.arange(LEVELS) / UNITS_PER_NAT
    if bits is None:
        return np.rint(255 * np.exp(-nats)).astype(np.uint8)
    if logarithmic:
        step = np.log(2.0) / 2
        return np.rint(255 * np.exp(-np.minimum(np.rint(nats / step), (1 << bits) - 1) * step)).astype(np.uint8)
    unit = 255 / ((1 << bits) - 1)
    return np.rint(np.rint(255 * np.exp(-nats) / unit) * unit).astype(np.uint8)


def logit_multiplier(scale: float) -> Multiplier:
    """For `requantize_wide` from products of unit `scale` (S_q S_k times the attention's own factor) to 1/40."""
    return multiplier(scale * UNITS_PER_NAT, fraction_bits=0)


def value_multiplier(values: float, result: float) -> Multiplier:
    """S_v / S_y as `row_multiplier` takes it. OverflowError above 2^7: it is at least S_v / (S_y 255) that is applied."""
    made = multiplier(values / result)
    if made.shift < -14:
        raise OverflowError(f"attention's result of scale {result} is too fine for values of scale {values}")
    return made


@dataclass(frozen=True)
class Constants:
    """What `attention` needs beside its operands."""

    logits: Multiplier
    values: Multiplier
    table: NDArray[np.uint8]
    zero_points: tuple[int, int, int, int]
    """Of q, k, v and the result."""


def row_multiplier(s: Ints, base: Multiplier) -> tuple[Ints, Ints]:
    """(shift, q) of base / s, truncated in 46 bits and rounded to 15, s in [1, 2^23]:

    R = floor(q_b 2^31 / s), p its number of bits;  q = round(R 2^(15-p)), shift = shift_b + 46 - p, at most 31.
    """
    r = (np.int64(base.q) << 31) // s
    p = np.array([int(n).bit_length() for n in r.ravel()], np.int64).reshape(r.shape)
    q = (r + (np.int64(1) << (p - 16))) >> (p - 15)
    carried = q >> 15
    return np.minimum(base.shift + 46 - p - carried, MAX_RIGHT_SHIFT), q >> carried


def attention(
    q: NDArray[np.int8],
    k: NDArray[np.int8],
    v: NDArray[np.int8],
    constants: Constants,
    causal: bool = False,
    bias: NDArray[np.integer] | None = None,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """q [B,N,H,D], k [B,M,G,D], v [B,M,G,E], bias and mask that broadcast to [B,H,N,M]; result [B,N,H,E]. H is a multiple of G.

    A bias of `MASKED` hides its position, as a false mask does.
    """
    zq, zk, zv, zy = constants.zero_points
    group = q.shape[2] // k.shape[2]
    wide_q = q.astype(np.float64).transpose(0, 2, 1, 3) - zq
    wide_k, wide_v = (np.repeat(x.astype(np.float64) - z, group, 2).transpose(0, 2, 1, 3) for x, z in ((k, zk), (v, zv)))
    a = (wide_q @ wide_k.transpose(0, 1, 3, 2)).astype(np.int64)
    x = requantize_wide(a, np.array(constants.logits.shift), np.array(constants.logits.q)).astype(np.int64)
    seen = np.ones(x.shape, bool)
    if causal:
        n, m = x.shape[2:]
        seen &= np.arange(m)[None, :] <= np.arange(n)[:, None] + (m - n)
    if bias is not None:
        seen &= bias > MASKED
        x = np.clip(x + bias, MASKED + 1, (1 << 15) - 1)
    if mask is not None:
        seen &= mask
    e = exponentials(x, seen, constants.table)
    acc = (e.astype(np.float64) @ wide_v).astype(np.int64)
    shift, multipliers = row_multiplier(np.maximum(e.sum(-1, keepdims=True), 1), constants.values)
    return requantize(acc, shift, multipliers, zy).transpose(0, 2, 1, 3)


def exponentials(x: Ints, seen: NDArray[np.bool_], table: NDArray[np.uint8]) -> Ints:
    """e along the last axis of the logits x; the maximum is that of what is `seen`."""
    top = np.where(seen, x, -(1 << 15)).max(-1, keepdims=True)
    return np.where(seen, table.astype(np.int64)[np.clip(top - x, 0, LEVELS - 1)], 0)
