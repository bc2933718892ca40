"""Products of two activations, in the exact form that each instruction set has for them.

Neither operand is known at compile time, so no sum of 16 bits can be proven (`chains`): what has no dot product of four bytes
widens further. One operand, x, is broadcast from memory `group` elements at a time; the other, w, lies packed in registers with
`group` elements per 32-bit lane, made of **chunks**: 16 bytes, which hold four neighbouring lanes.

- **vpdpbusd** u8 x s8: queries are taken as q + 128, exponentials are unsigned as they are.
- **words** pmaddwd: both sides are widened to 16 bits, zero points already taken off.
- **udot** sdot for queries and keys, udot for exponentials and values + 128.
- **umull** the same with products of 16 bits, each pair of which is added into the accumulator by itself. In a chunk, the first
  pairs of all four lanes come before the second ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Kernel, Ptr, Val
from qcompiler.backends.llvm.target import Target
from qcompiler.passes.layouts import Space

from .rows import load_row

CHUNK = 16
XOperand = tuple[Any, ...]


@dataclass(frozen=True)
class Form:
    """Elements of `bits`; `query_offset` and `value_offset` are what is added to queries and values as they are packed."""

    bits: int = 8
    group: int = 4
    query_offset: int = 0
    value_offset: int = 0

    def x(self, k: Kernel, p: Ptr) -> XOperand:
        """The group at `p` for all lanes."""
        return k.reinterpret(k.broadcast(p, 32), self.bits).regs

    def operand(self, k: Kernel, r: Any) -> XOperand:
        """A register as it is."""
        return (r,)

    def scores(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        """acc + queries * keys."""
        raise NotImplementedError

    def mix(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        """acc + exponentials * values."""
        return self.scores(k, acc, x, w)

    def chunk(self, k: Kernel, quad: Val) -> Val:
        """A chunk from four lanes one after the other."""
        return quad

    def total(self, k: Kernel, acc: Val, e: Val) -> Val:
        """acc + the sum of unsigned bytes, spread over the lanes."""
        return Val(k, (self.mix(k, acc.regs[0], self.operand(k, e.regs[0]), k.splat(1, 8).regs[0]),), 32)

    def exponentials(self, k: Kernel, e: Val) -> Val:
        """Unsigned bytes as `x` wants them in memory."""
        return e

    def exponential_offset(self, target: Target, group: int) -> int:
        """Where the group of the exponentials of a block lies."""
        return group * 4


class Vpdpbusd(Form):
    """u8 x s8."""

    def scores(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.VPDPBUSD[k.target.vector_bits](k, acc, x[0], w)


class Words(Form):
    """s16 x s16."""

    def scores(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        wide = k.b.bitcast(w, k.register_type(16))
        return k.b.add(acc, instrs.MADD[k.target.vector_bits](k, x[0], wide))

    def total(self, k: Kernel, acc: Val, e: Val) -> Val:
        one = k.splat(1, 16).regs
        for r in self.exponentials(k, e).regs:
            acc = Val(k, (self.scores(k, acc.regs[0], (r,), one[0]),), 32)
        return acc

    def exponentials(self, k: Kernel, e: Val) -> Val:
        """Within 128-bit parts: the low halves of all parts, then the high ones."""
        halves = [k.reinterpret(half, 16).regs[0] for half in k.zip(e, k.splat(0, 8))]
        return Val(k, tuple(halves), 16)

    def exponential_offset(self, target: Target, group: int) -> int:
        part, at = divmod(2 * group, 16)
        return (at // 8) * target.vector_bytes + part * 16 + at % 8 * 2


class Udot(Form):
    """s8 x s8, and u8 x u8."""

    def scores(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.SDOT(k, acc, w, x[0])

    def mix(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.UDOT(k, acc, w, x[0])


class Umull(Form):
    """The same by pairs; an x operand is (first pair, second pair), of 8 bytes each."""

    def x(self, k: Kernel, p: Ptr) -> XOperand:
        return tuple(self._half(k, k.reinterpret(k.broadcast(p + at, 16), 8).regs[0], 0) for at in (0, 2))

    def operand(self, k: Kernel, r: Any) -> XOperand:
        return self._half(k, r, 0), self._half(k, r, 1)

    def _half(self, k: Kernel, r: Any, which: int) -> Any:
        return instrs.pick(k.b, r, list(range(8 * which, 8 * which + 8)))

    def scores(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        for which, pair in enumerate(x):
            acc = k.b.add(acc, instrs.SADDLP(k, instrs.SMULL(k, self._half(k, w, which), pair)))
        return acc

    def mix(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        for which, pair in enumerate(x):
            acc = k.b.add(acc, instrs.UADDLP(k, instrs.UMULL(k, self._half(k, w, which), pair)))
        return acc

    def chunk(self, k: Kernel, quad: Val) -> Val:
        return k.reinterpret(k.permute(k.reinterpret(quad, 16), [0, 2, 4, 6, 1, 3, 5, 7]), 8)


FORMS: dict[str, Form] = {
    "vpdpbusd": Vpdpbusd(query_offset=128),
    "maddubs": Words(bits=16, group=2),
    "sdot": Udot(value_offset=128),
    "smull": Umull(value_offset=128),
}


def form_of(target: Target) -> Form:
    """The form of `target`."""
    return FORMS[target.dot]


# --- packing ---------------------------------------------------------------------------------------------------------


def prepare_row(k: Kernel, form: Form, source: Ptr, n: int, space: Space, to: Ptr, offset: int = 0, zero: Val | None = None) -> None:
    """n int8 elements at `source` as elements of the form at `to`, whole registers, zeros behind them: x + offset (0 or 128) in 8 bits,
    x - zero in 16."""
    per = k.target.vector_bytes * 8 // form.bits
    for start in range(0, n, per):
        here = min(per, n - start)
        x = load_row(k, source + start, here, space)
        if offset:
            x = x ^ x.splat(-128)
        if form.bits == 16:
            x = Val(k, (instrs.widen(k.b, instrs.pick(k.b, x.regs[0], list(range(per))), 16),), 16)
            x = x if zero is None else x - zero
        k.store(to + start * form.bits // 8, first_lanes(k, x, here))


def first_lanes(k: Kernel, x: Val, n: int) -> Val:
    """The first n lanes of a register, zeros in the others."""
    (r,) = x.regs
    picks = [i if i < n else r.type.count for i in range(r.type.count)]
    return x if n == r.type.count else Val(k, (instrs.shuffle(k.b, r, instrs.splat(r.type, 0), picks),), x.bits)


def prepared_bytes(target: Target, form: Form, n: int) -> int:
    """Of a row of n elements: whole registers."""
    return -(-n * form.bits // 8 // target.vector_bytes) * target.vector_bytes


def key_chunks(k: Kernel, form: Form, rows: Sequence[Ptr]) -> list[Val]:
    """Four consecutive chunks of groups from 16 bytes of each of four keys; `k` writes in 128 bits."""
    r = [k.load(p, 32) for p in rows]
    even, odd = k.zip(r[0], r[2]), k.zip(r[1], r[3])
    quads = [*k.zip(even[0], odd[0]), *k.zip(even[1], odd[1])]
    return [form.chunk(k, k.reinterpret(q, 8)) for q in quads]


def value_chunks(k: Kernel, form: Form, rows: Sequence[Ptr]) -> list[Val]:
    """Chunks of channels 0-3, 4-7, 8-11 and 12-15 from the first 16 elements of each of `group` values; `k` writes in 128 bits."""
    if form.bits == 16:
        halves = ((k.load(rows[0] + at, 16), k.load(rows[1] + at, 16)) for at in (0, CHUNK))
        return [k.reinterpret(q, 8) for pair in halves for q in k.zip(*pair)]
    r = [k.load(p, 8) for p in rows]
    first, second = ([k.reinterpret(half, 16) for half in k.zip(*r[i : i + 2])] for i in (0, 2))
    quads = [q for pair in zip(first, second) for q in k.zip(*pair)]
    return [form.chunk(k, k.reinterpret(q, 8)) for q in quads]


# --- order -----------------------------------------------------------------------------------------------------------


def word_order(target: Target, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Which of the `count * lanes` keys of a block each 16-bit lane of its two registers holds; -1: none.

    Lane s of part l of register a is element s % 4 of 32-bit register j = 2 a + s / 4, so it holds key 4 count l + 4 j + s % 4.
    """
    register, part, lane = np.meshgrid(np.arange(2), np.arange(target.parts), np.arange(8), indexing="ij")
    j = 2 * register + lane // 4
    return np.where(j < count, 4 * count * part + 4 * j + lane % 4, -1).reshape(-1)
