"""Integers of two to four bits, many to a register: planes of fields, each of one, two or four bits.

    4 bits      one plane of fields of four bits: two registers of bytes in one
    3 bits      a plane of fields of two bits, four registers in one, and one of single bits, eight in one, for the highest
    2 bits      one plane of fields of two bits

What is stored of q is q + 2^(bits - 1), which is not negative. Register i of a run has field i mod (8 / width) of register i div (8 / width) of a
plane. Planes follow each other.

Integers that are multiples, m q of an m in 1 .. 4 for each channel and four weights along K (`passes/weight_grid.py`), are stored as q and two bits
for m - 1. Nothing says so but the integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.passes.weight_grid import CODED, FIELD, GROUP, NARROW, information

from .dsl import Kernel, Ptr, Val
from .instrs import vector

FIELDS = CODED // GROUP
"""Multipliers in a byte."""


@dataclass(frozen=True)
class Plane:
    """Fields of `width` bits, which are bits `place` and above of an integer."""

    width: int
    place: int

    @property
    def fields(self) -> int:
        """In a byte."""
        return 8 // self.width

    def registers(self, count: int) -> int:
        """That hold this plane of `count` registers of bytes."""
        return -(-count // self.fields)


def planes_of(bits: int) -> tuple[Plane, ...]:
    """From the lowest bits to the highest."""
    widths = [w for w in (4, 2, 1) if bits & w]
    return tuple(Plane(w, sum(widths[:i])) for i, w in enumerate(widths))


def registers(bits: int, count: int) -> int:
    """That hold integers of so many bits of `count` registers of bytes."""
    return sum(p.registers(count) for p in planes_of(bits))


def fields(bits: int) -> int:
    """Registers whose fields fill all registers of their planes."""
    return max(p.fields for p in planes_of(bits))


def pack(q: NDArray[np.int8], bits: int) -> NDArray[np.int8]:
    """Registers [..., count, bytes] of integers of so many bits, in planes: [..., registers(bits, count), bytes]."""
    positive = (q + (1 << (bits - 1))).astype(np.uint8)
    return np.concatenate(list(_packed(positive, bits)), -2).view(np.int8)


def _packed(positive: NDArray[np.uint8], bits: int) -> Iterator[NDArray[np.uint8]]:
    *outer, count, size = positive.shape
    for plane in planes_of(bits):
        field = positive >> plane.place & (1 << plane.width) - 1
        even = np.pad(field, (*[(0, 0)] * len(outer), (0, -count % plane.fields), (0, 0))).reshape(*outer, -1, plane.fields, size)
        shifts = plane.width * np.arange(plane.fields, dtype=np.uint8)
        yield np.bitwise_or.reduce(even << shifts[:, None], -2)


def load(k: Kernel, p: Ptr, bits: int, count: int) -> list[Val]:
    """The `count` registers of bytes that `pack` put at `p`, each q + 2^(bits - 1)."""
    size, found = k.target.vector_bytes, [list[Val]() for _ in range(count)]
    for plane in planes_of(bits):
        for n in range(plane.registers(count)):
            packed = k.load(p + n * size, 8)
            for i in range(n * plane.fields, min((n + 1) * plane.fields, count)):
                found[i].append(_field(k, packed, plane, i % plane.fields))
        p = p + plane.registers(count) * size
    return [fields[0].map(k.b.or_, fields[1]) if len(fields) > 1 else fields[0] for fields in found]


def _field(k: Kernel, packed: Val, plane: Plane, i: int) -> Val:
    """Field i at its place in the integers."""
    shift, mask = plane.width * i - plane.place, k.splat((1 << plane.width) - 1 << plane.place, 8)
    moved = packed if shift == 0 else packed.map(k.b.lshr, k.splat(shift, 8)) if shift > 0 else packed.shl(k.splat(-shift, 8))
    return moved.map(k.b.and_, mask)


def signed(k: Kernel, positive: Val, bits: int) -> Val:
    """q of what `load` gives."""
    return positive - k.splat(1 << (bits - 1), 8)


# --- multiples -------------------------------------------------------------------------------------------------------


def bits_of_multiples(w: NDArray[np.generic]) -> int | None:
    """The fewest bits of the integers that groups of the weights [O, kh, kw, C] are multiples of; None: of more than four."""
    bits = information(w, 8, 1)
    return bits if bits <= NARROW else None


def coded(m: NDArray[np.int64]) -> NDArray[np.int8]:
    """Multipliers [..., groups] in bytes, the first in the lowest bits: [..., groups / FIELDS], rounded up."""
    padded = np.pad(m - 1, (*[(0, 0)] * (m.ndim - 1), (0, -m.shape[-1] % FIELDS)))
    fields = padded.reshape(*m.shape[:-1], -1, FIELDS) << FIELD * np.arange(FIELDS)
    return np.asarray(fields.sum(-1), np.uint8).view(np.int8)


def multiply(k: Kernel, positive: Val, bits: int, codes: Val, groups: Sequence[int]) -> Val:
    """m q of what `load` gives; byte i belongs to group `groups[i]` of the byte codes[i]. Neighbours share theirs.

    Both bytes of a word at once: m (q + h) is less than 2^8, and m h, h = 2^(bits - 1), is taken from it.
    """
    assert groups[::2] == groups[1::2]
    words = k.reinterpret(codes, 16)
    shifts = Val(k, (vector(words.regs[0].type, [FIELD * g for g in groups[::2]]),), 16)
    m = words.map(k.b.lshr, shifts).map(k.b.and_, k.splat((1 << FIELD) - 1, 16)) + k.splat(1, 16)
    both, half = k.reinterpret(positive, 16) * m, m * k.splat(0x101 << (bits - 1), 16)
    return k.reinterpret(both, 8) - k.reinterpret(half, 8)
