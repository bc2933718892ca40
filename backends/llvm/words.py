"""Bundles of 16-bit lanes in memory: where each lies, and loads and stores of them.

What `sat(16)` leaves of a block of `count` registers of int32 is not in memory order (see `dsl`): half h of part l of register r holds four
neighbouring channels of pixel p, quad j, where p count + j = 2 r + h. In memory, quads follow each other as (p, l, j). With one part per
register both are the same; else quads change places, 64 bits at a time. Values of 8 bits get their order by `sat(8)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from . import instrs
from .dsl import Kernel, Ptr, Val
from .target import Target


@cache
def memory_order(parts: int, count: int, registers: int) -> tuple[int, ...]:
    """Which quad of a bundle of 16-bit `registers` is at each place in memory."""

    def quad(place: int) -> int:
        pixel, rest = divmod(place, count * parts)
        part, j = divmod(rest, count)
        register, half = divmod(pixel * count + j, 2)
        return register * 2 * parts + 2 * part + half

    return tuple(quad(m) for m in range(2 * parts * registers))


def to_memory(k: Kernel, y: Val, count: int) -> Val:
    """The registers of `y` (one or two of 16-bit lanes, as `sat` leaves them) in memory order."""
    return _rearranged(k, y, memory_order(k.target.parts, count, len(y)))


def from_memory(k: Kernel, y: Val, count: int) -> Val:
    """The inverse of `to_memory`."""
    order = memory_order(k.target.parts, count, len(y))
    return _rearranged(k, y, tuple(order.index(i) for i in range(len(order))))


def _rearranged(k: Kernel, y: Val, order: Sequence[int]) -> Val:
    """64-bit lanes in the `order`, picked from all registers of `y`."""
    if list(order) == sorted(order):
        return y
    quads, size = k.reinterpret(y, 64).regs, 2 * k.target.parts
    regs = (instrs.shuffle(k.b, quads[0], quads[-1], list(order[i : i + size])) for i in range(0, len(order), size))
    return k.reinterpret(Val(k, tuple(regs), 64), y.bits)


def store_span(k: Kernel, p: Ptr, value: Val, start: int, nbytes: int) -> None:
    """`nbytes` bytes of all registers of `value`, one after the other, from byte `start` on; never writes outside."""
    for at, register, inside, here in pieces(k.target, start, nbytes):
        k.store(p + at, value[register : register + 1], here, inside)


def pieces(target: Target, start: int, nbytes: int) -> Iterator[tuple[int, int, int, int]]:
    """(bytes before, register, first byte in it, bytes) of a span that begins `start` bytes into the first register."""
    at = 0
    while at < nbytes:
        register, inside = divmod(start + at, target.vector_bytes)
        here = min(nbytes - at, target.vector_bytes - inside)
        yield at, register, inside, here
        at += here
