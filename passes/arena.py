"""Offsets in one arena for buffers that live during an interval of steps: greedy by size.

Pisarchyk & Lee, "Efficient memory management for deep neural net inference" (2020): take buffers from the largest to the
smallest and give each the lowest offset at which it meets no already placed buffer that lives at the same time. The sum
of the bytes live at one moment is a lower bound (`live_bytes`) that this order mostly reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

ALIGNMENT = 64
SLACK = 64


@dataclass(frozen=True)
class Block:
    """A buffer: its first and last action (inclusive), its size in bytes, slack included, and its place in the arena."""

    name: str
    first: int
    last: int
    size: int
    offset: int = 0

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.size

    def meets(self, other: Block) -> bool:
        """Whether the two live at a common moment."""
        return self.first <= other.last and other.first <= self.last


def padded_size(nbytes: int) -> int:
    """Bytes that a buffer of `nbytes` takes: slack behind it, then up to the alignment."""
    return -(-(nbytes + SLACK) // ALIGNMENT) * ALIGNMENT


def lowest_offset(size: int, others: Iterable[Block]) -> int:
    """The lowest offset at which `size` bytes meet none of `others`."""
    offset = 0
    for other in sorted(others, key=lambda b: b.offset):
        if offset + size <= other.offset:
            break
        offset = max(offset, other.end)
    return offset


def place(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """`blocks` with their offsets, in the given order: the best of placing by size, by size times lifetime and by first use."""
    sort_keys = [
        [-b.size for b in blocks],
        [-b.size * (b.last - b.first + 1) for b in blocks],
        [b.first for b in blocks],
    ]
    orders = (sorted(range(len(blocks)), key=keys.__getitem__) for keys in sort_keys)
    return min((_place_in(order, blocks) for order in orders), key=arena_size)


def _place_in(order: Sequence[int], blocks: Sequence[Block]) -> tuple[Block, ...]:
    placed = dict[int, Block]()
    for n in order:
        b = blocks[n]
        offset = lowest_offset(b.size, (p for p in placed.values() if p.meets(b)))
        placed[n] = replace(b, offset=offset)
    return tuple(placed[n] for n in range(len(blocks)))


def arena_size(blocks: Iterable[Block]) -> int:
    """Bytes of an arena that holds the placed `blocks`."""
    return max((b.end for b in blocks), default=0)


def live_bytes(blocks: Sequence[Block]) -> int:
    """The greatest sum of sizes live at one moment: no placement is smaller."""
    return max((sum(o.size for o in blocks if o.first <= b.first <= o.last) for b in blocks), default=0)
