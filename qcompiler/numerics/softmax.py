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
