"""Softmax and its logarithm on int8 logits, in integers.

    e_i = table[255 + x_i - max x]      table[k] = round(2^15 exp(S_x (k - 255)))
    s   = sum e_i                       exact in 32 bits up to 65,535 elements
    p_i = floor((512 e_i + s) / (2 s))  the probability in units of 1/256, rounded half up, then saturated to 255

The difference x_i - max lies in [-255, 0], so exp is a table of 256 entries and no polynomial is needed. The result is
stored as int8 with scale 1/256 and zero point -128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXP_ONE = 1 << 15
MAX_ELEMENTS = (1 << 16) - 1


def exp_table(scale: float) -> NDArray[np.int32]:
    """256 entries: entry k is round(2^15 exp(scale * (k - 255))), for k = 255 + x - max x."""
    return np.rint(EXP_ONE * np.exp(scale * (np.arange(256) - 255.0))).astype(np.int32)


def softmax(x: NDArray[np.int8], table: NDArray[np.int32], axis: int) -> NDArray[np.int8]:
    """Probabilities along `axis` as int8 of scale 1/256 and zero point -128. At most 65,535 elements along the axis."""
    wide = x.astype(np.int64)
    e = table.astype(np.int64)[255 + wide - wide.max(axis, keepdims=True)]
    s = e.sum(axis, keepdims=True)
    return (np.minimum((512 * e + s) // (2 * s), 255) - 128).astype(np.int8)


LOG_FRACTION_BITS = 12


def log_tables(scale: float, out_scale: float) -> NDArray[np.int32]:
    """Constants of `log_softmax` in one array [514]: exp table, log table, ln 2, input scale; the last three in units of
    out_scale / 2^12. OverflowError where the input scale is more than 2^11 times the output's."""
    unit = 2.0**LOG_FRACTION_BITS / out_scale
    if scale * unit * 255 >= 1 << 30:
        raise OverflowError(f"log-softmax from scale {scale} to {out_scale}: expected a ratio below 2^10")
    log = np.log1p((np.arange(256) + 0.5) / 256) * unit
    tail = np.array([np.log(2.0), scale]) * unit
    return np.concatenate([exp_table(scale), np.rint(np.concatenate([log, tail])).astype(np.int32)])


def log_softmax(x: NDArray[np.int8], tables: NDArray[np.int32], axis: int, zero_point: int) -> NDArray[np.int8]:
    """Logarithm of softmax along `axis`: (x_i - max x) S_x - ln(s / 2^15), in the output's quantization.

    With s = 2^(15+e) (1 + f), ln(s / 2^15) = e ln 2 + ln(1 + f), the last by a table on the eight leading bits of f
    (error below 2^-9). All of it in units of out_scale / 2^12, rounded once at the end.
    """
    t = tables.astype(np.int64)
    difference = x.astype(np.int64) - x.max(axis, keepdims=True)
    s = t[255 + difference].sum(axis, keepdims=True)
    e = np.frexp(s.astype(np.float64))[1] - 1 - 15  # floor(log2 s) - 15; kernels count leading zeros
    f = (s >> (e + 15 - 8)) & 255
    y = difference * t[513] - (e * t[512] + t[256 + f]) + (1 << (LOG_FRACTION_BITS - 1))
    return np.clip((y >> LOG_FRACTION_BITS) + zero_point, -128, 127).astype(np.int8)
