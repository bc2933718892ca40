"""Weights of at most four bits, two in a byte: registers a and b of one group of K lie as one register p.

A form that adds products up in 32 bits at once multiplies by p as it is. With signed bytes p = 16 b + a, a and b in [-7, 7]:

    A = sum x p = 16 sum x b + sum x a
    C = sum x (p << 4 mod 2^8) = 16 sum x a              the upper nibble is gone, the sign of the lower one is that of the byte
    sum x a = C >> 4,  sum x b = (A - sum x a) >> 4      exactly, as long as A and C fit in 32 bits

One shift for two registers of weights, and three instructions for two registers of results. The 16-bit sums of `Chained` forms have
no room for a factor of 16. There p is taken apart first: on x86, which has no shifts of bytes, it holds a + 8 and b + 8, from which 8 is
subtracted; elsewhere a and b modulo 16.

Integers that are multiples, m q of an m in 1 .. 4 for each channel and four weights along K (`passes/weight_grid.py`), are stored as the nibbles of q
and two bits for m - 1. Nothing says so but the integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.passes.weight_grid import CODED, FIELD, GROUP, may_have_groups, multipliers_of

from .dot import Chained, Dot, Maddubs
from .dsl import Kernel, Ptr, Val, join
from .instrs import vector

BITS, LARGEST = 4, 7
"""Of a nibble, and the greatest magnitude of two in one register."""
FIELDS = CODED // GROUP
"""Multipliers in a byte."""
MOST_PRODUCTS = (1 << 31) // (255 * 119)
"""Products of u8 and at most 119 = 16 * 7 + 7 whose sum fits in 32 bits."""


def fit(w: NDArray[np.generic]) -> bool:
    """Whether weights [O, ...] may be stored so."""
    return bool(np.abs(w.astype(np.int16)).max(initial=0) <= LARGEST) and w[0].size < MOST_PRODUCTS


def fit_multiples(w: NDArray[np.generic]) -> bool:
    """Whether weights [O, kh, kw, C] are nibbles times a number for each group."""
    return may_have_groups(w.shape) and bool(multipliers_of(w.reshape(len(w), -1), BITS).all())


def coded(m: NDArray[np.int64]) -> NDArray[np.int8]:
    """Multipliers [..., groups] in bytes, the first in the lowest bits: [..., groups / FIELDS], rounded up."""
    padded = np.pad(m - 1, (*[(0, 0)] * (m.ndim - 1), (0, -m.shape[-1] % FIELDS)))
    fields = padded.reshape(*m.shape[:-1], -1, FIELDS) << FIELD * np.arange(FIELDS)
    return np.asarray(fields.sum(-1), np.uint8).view(np.int8)


def multiply(k: Kernel, q: Val, codes: Val, groups: Sequence[int]) -> Val:
    """m q of a register of nibbles that were taken apart: byte i belongs to group `groups[i]` of the byte codes[i]."""
    shifts = Val(k, (vector(codes.regs[0].type, [FIELD * g for g in groups]),), 8)
    less_one = codes.map(k.b.lshr, shifts).map(k.b.and_, k.splat((1 << FIELD) - 1, 8))
    return q + q * less_one


def pack_bytes(w: NDArray[np.int8]) -> NDArray[np.int8]:
    """Registers [2 n, bytes] in pairs [n, bytes], for `load_bytes`."""
    a, b = w[::2].astype(np.int16) + 8, w[1::2].astype(np.int16) + 8
    return (b << 4 | a).astype(np.uint8).view(np.int8)


def load_bytes(k: Kernel, p: Ptr) -> tuple[Val, Val]:
    """The two registers of weights that lie in the one at `p`."""
    pair, four, low, eight = k.load(p, 8), k.splat(4, 8), k.splat(15, 8), k.splat(8, 8)
    return pair.map(k.b.and_, low) - eight, pair.map(k.b.lshr, four) - eight


def pack(w: NDArray[np.int8], dot: Dot) -> NDArray[np.int8]:
    """Registers [..., 2 n, bytes] in pairs: [..., n, bytes]."""
    a, b = w[..., ::2, :].astype(np.int16), w[..., 1::2, :].astype(np.int16)
    if not isinstance(dot, Chained):
        p = 16 * b + a
    else:
        bias = _bias(dot)
        p = ((b + bias & 15) << 4) | (a + bias & 15)
    return p.astype(np.uint8).view(np.int8)


def load(k: Kernel, dot: Dot, p: Ptr, count: int) -> Val:
    """What `dot` multiplies by for `count` registers, of which half as many lie at `p`."""
    four, pairs = k.splat(4, 8), [Val(k, (r,), 8) for r in k.load(p, 8, count // 2).regs]
    if not isinstance(dot, Chained):
        return join([half for pair in pairs for half in (pair.shl(four), pair)])
    if bias := _bias(dot):
        low, eight = k.splat(15, 8), k.splat(bias, 8)
        return join([half - eight for pair in pairs for half in (pair.map(k.b.and_, low), pair.map(k.b.lshr, four))])
    return join([half.shr(four) for pair in pairs for half in (pair.shl(four), pair)])


def sums(k: Kernel, dot: Dot, accumulated: Val) -> Val:
    """The sums of products from what was accumulated."""
    if isinstance(dot, Chained):
        return accumulated
    four = k.splat(4, 32)
    found = list[Val]()
    for c, a in zip(accumulated.regs[::2], accumulated.regs[1::2], strict=True):
        first = Val(k, (c,), 32).shr(four)
        found += [first, (Val(k, (a,), 32) - first).shr(four)]
    return join(found)


def unpacking(dot: Dot) -> float:
    """Instructions that `load` takes for a register of weights."""
    return 2.5 if isinstance(dot, Maddubs) else 1.5 if isinstance(dot, Chained) else 1.0


def _bias(dot: Dot) -> int:
    """What is added to a weight before it is put into a nibble."""
    return 8 if isinstance(dot, Maddubs) else 0
