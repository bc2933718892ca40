"""Integers of two to four bits, many to a register: planes of fields, each of one, two or four bits.

    4 bits      one plane of fields of four bits: two registers of bytes in one
    3 bits      a plane of fields of two bits, four registers in one, and one of single bits, eight in one, for the highest
    2 bits      one plane of fields of two bits

What is stored of an integer is what it has above the least one, which is not negative. Register i of a run has field i mod (8 / width) of register
i div (8 / width) of a plane. Planes follow each other.

Integers that are multiples, m q of an m in +-1 .. +-4 for each channel and four weights along K (`passes/weight_grid.py`), are stored as +-q, from
the least on that the sign of m leaves them, two bits for |m| - 1 and one for the sign. Nothing says so but the integers. A channel's bytes of
multipliers follow K, one with the signs of eight groups before two with their magnitudes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.passes.weight_grid import CODED, FIELD, GROUP, NARROW, SIGNED, ends_of, information

from .dsl import Kernel, Ptr, Val
from .instrs import vector

FIELDS = CODED // GROUP
"""Magnitudes of multipliers in a byte."""
SHARED = SIGNED // CODED
"""Such bytes that follow one of signs."""


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


def pack(positive: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Registers [..., count, bytes] of integers of so many bits, none of them negative, in planes: [..., registers(bits, count), bytes]."""
    return np.concatenate(list(_packed(positive, bits)), -2).view(np.int8)


def _packed(positive: NDArray[np.uint8], bits: int) -> Iterator[NDArray[np.uint8]]:
    *outer, count, size = positive.shape
    for plane in planes_of(bits):
        field = positive >> plane.place & (1 << plane.width) - 1
        even = np.pad(field, (*[(0, 0)] * len(outer), (0, -count % plane.fields), (0, 0))).reshape(*outer, -1, plane.fields, size)
        shifts = plane.width * np.arange(plane.fields, dtype=np.uint8)
        yield np.bitwise_or.reduce(even << shifts[:, None], -2)


def load(k: Kernel, p: Ptr, bits: int, count: int) -> list[Val]:
    """The `count` registers of bytes that `pack` put at `p`."""
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


# --- multiples -------------------------------------------------------------------------------------------------------


def bits_of_multiples(w: NDArray[np.generic]) -> int | None:
    """The fewest bits of the integers that groups of the weights [O, kh, kw, C] are multiples of; None: of more than four."""
    bits = information(w, 8, 1)
    return bits if bits <= NARROW else None


def coded(m: NDArray[np.int64]) -> NDArray[np.int8]:
    """Multipliers [..., groups] in bytes, the first in the lowest bits: [..., bytes_of_multipliers]."""
    magnitudes, signs = _fields(np.abs(m) - 1, FIELD), _fields(m < 0, 1)
    return np.insert(magnitudes, range(0, magnitudes.shape[-1], SHARED), signs, -1).view(np.int8)


def _fields(values: NDArray[np.generic], width: int) -> NDArray[np.uint8]:
    """[..., groups] in fields of so many bits: [..., bytes]."""
    count = 8 // width
    padded = np.pad(values.astype(np.int64), (*[(0, 0)] * (values.ndim - 1), (0, -values.shape[-1] % count)))
    return np.asarray((padded.reshape(*values.shape[:-1], -1, count) << width * np.arange(count)).sum(-1), np.uint8)


def places_of(first: int) -> tuple[int, int]:
    """Which of a channel's bytes of multipliers have the sign and the magnitude of the weight at `first` along K."""
    return first // SIGNED * (SHARED + 1), first // CODED + first // SIGNED + 1


def positive(w: NDArray[np.int8], m: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    """What is stored of multiples `w` of `m`, by integers of so many bits."""
    low, high = ends_of(bits)
    return np.asarray(w // np.abs(m) - np.where(m < 0, -high, low), np.uint8)


def multiply(k: Kernel, stored: Val, bits: int, signs: Val, magnitudes: Val, groups: Sequence[int]) -> Val:
    """m q of what `load` gives; byte i belongs to group `groups[i]` of those that share the byte signs[i]. Neighbours share theirs.

    |m| (stored + least), both bytes of a word at once: neither |m| stored nor -|m| least, which is taken from it, reaches 2^8.
    """
    assert groups[::2] == groups[1::2]
    words = k.reinterpret(magnitudes, 16)
    shifts = Val(k, (vector(words.regs[0].type, [FIELD * (g % FIELDS) for g in groups[::2]]),), 16)
    m = words.map(k.b.lshr, shifts).map(k.b.and_, k.splat((1 << FIELD) - 1, 16)) + k.splat(1, 16)
    both, beyond = k.reinterpret(stored, 16) * m, k.reinterpret(_least(k, bits, signs, groups), 16) * m
    return k.reinterpret(both, 8) - k.reinterpret(beyond, 8)


def _least(k: Kernel, bits: int, signs: Val, groups: Sequence[int]) -> Val:
    """What stored integers are less by."""
    low, high = ends_of(bits)
    own = Val(k, (vector(signs.regs[0].type, [1 << g for g in groups]),), 8)
    negative = signs.map(k.b.and_, own).map(lambda s, z: k.b.icmp_signed("!=", s, z), k.splat(0, 8))
    return negative.map(k.b.select, k.splat(high, 8), k.splat(-low, 8))
