"""Products and shifts of lanes that instruction sets spell differently."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.numerics.requantize import MAX_RIGHT_SHIFT

from . import instrs
from .dsl import Kernel, Val

Ints = NDArray[np.int64]


def unsigned_words(x: Val) -> Val:
    """x + 128 of 8-bit lanes in 32 bits, in the order of `sext(32)`: one pshufb per register."""
    k, (reg,) = x.k, (x ^ x.splat(-128)).regs
    zero = instrs.splat(reg.type, 0)
    lanes = reg.type.count
    picks = ([16 * part + 4 * j + i if byte == 0 else lanes for part in range(lanes // 16) for i in range(4) for byte in range(4)] for j in range(4))
    return k.reinterpret(Val(k, tuple(instrs.shuffle(k.b, reg, zero, p) for p in picks), 8), 32)


def product_of_words(x: Val, m: Val) -> Val:
    """x * m for 32-bit lanes that hold 16-bit numbers, m not negative."""
    k = x.k
    if k.target.arch == "aarch64":
        return x * m
    products = k.reinterpret(x, 16).map(lambda a, b: instrs.MADD[k.target.vector_bits](k, a, b), k.reinterpret(m, 16))
    return Val(k, products.regs, 32)


def weighted_pair(x: Val, m: Val, y: Val, n: Val) -> Val:
    """m * x + n * y: 16-bit lanes (m and n one register) to 32 bits, within 128-bit parts."""
    k = x.k
    if k.target.arch == "aarch64":
        return x.sext(32) * m.sext(32)[:1] + y.sext(32) * n.sext(32)[:1]
    weights = k.zip(m, n)[0].regs[0]
    halves = (half.regs[0] for i in range(len(x)) for half in k.zip(x[i : i + 1], y[i : i + 1]))
    return Val(k, tuple(instrs.MADD[k.target.vector_bits](k, h, weights) for h in halves), 32)


# --- right shifts by an amount per lane, where there is no such instruction (SSE) ----------------------------------------


def short(shift: Ints, q: Ints) -> bool:
    """Whether `shifted_right` serves all multipliers: 2 <= shift <= 16, or a channel is always zero."""
    return bool(np.all(((shift >= 2) & (shift <= 16)) | _always_zero(shift, q)))


def _always_zero(shift: Ints, q: Ints) -> NDArray[np.bool_]:
    """The smallest multiplier: t is 0 or -1, and (t * 2^14 + 2^14) >> 15 = 0 for both."""
    return (shift == MAX_RIGHT_SHIFT) & (q == 1 << 14)


def factors(shift: Ints) -> Ints:
    """2^(16 - shift) in the upper half of 32 bits; 0 where a channel is always zero."""
    return np.where(shift <= 16, (np.int64(1) << 16) << np.maximum(16 - shift, 0), 0)


def shifted_right(a: Val, f: Val) -> Val:
    """a >> s per lane, with a = h 2^16 + l, 0 <= l < 2^16, and f = 2^(16 - s), which lies in the upper half of its lanes:

    a >> s = h f + (l >> s) = h f + (l f >> 16)        pmaddwd by (0, f), pmulhuw by (f, 0)"""
    k: Kernel = a.k
    sixteen = instrs.splat(k.register_type(32), 16)
    low = f.map(lambda r: k.b.lshr(r, sixteen))
    words, upper, lower = (k.reinterpret(v, 16) for v in (a, f, low))
    high = Val(k, words.map(lambda x, y: instrs.MADD[128](k, x, y), upper).regs, 32)
    return high + k.reinterpret(words.map(lambda x, y: instrs.PMULHUW(k, x, y), lower), 32)
