"""Weights of at most four bits, two in a byte: registers a and b of one group of K lie as one register p.

A form that adds products up in 32 bits at once multiplies by p as it is. With signed bytes p = 16 b + a, a and b in [-7, 7]:

    A = sum x p = 16 sum x b + sum x a
    C = sum x (p << 4 mod 2^8) = 16 sum x a              the upper nibble is gone, the sign of the lower one is that of the byte
    sum x a = C >> 4,  sum x b = (A - sum x a) >> 4      exactly, as long as A and C fit in 32 bits

One shift for two registers of weights, and three instructions for two registers of results. The 16-bit sums of `Chained` forms have
no room for a factor of 16. There p is taken apart first: on x86, which has no shifts of bytes, it holds a + 8 and b + 8, from which 8 is
subtracted; elsewhere a and b modulo 16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .dot import Chained, Dot, Maddubs
from .dsl import Kernel, Ptr, Val, join

BITS, LARGEST = 4, 7
"""Of a nibble, and the greatest magnitude of two in one register."""
MOST_PRODUCTS = (1 << 31) // (255 * 119)
"""Products of u8 and at most 119 = 16 * 7 + 7 whose sum fits in 32 bits."""


def fit(w: NDArray[np.generic]) -> bool:
    """Whether weights [O, ...] may be stored so."""
    return bool(np.abs(w.astype(np.int16)).max(initial=0) <= LARGEST) and w[0].size < MOST_PRODUCTS


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
