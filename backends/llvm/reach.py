"""Which bytes a piece of a divided launch reads and writes: what decides whether the next launch must wait for all pieces, or only for its own.

A launch whose threads share a loop over positions (pixels or rows in channels-last memory) computes those of [bound(p), bound(p + 1)) in piece
p. Operands are walked with equal steps, so that what a piece touches lies in one interval of bytes of each.

Piece i of launch B may follow piece i of launch A at once, while other pieces of A still run on other threads, if for all i, j

    what of writes(A, j) reads(B, i) has    is finished by A, i      nothing is read that another thread has yet to write
    writes(B, i)                            meets neither reads(A, j) nor writes(A, j)

Tiles that are moved back inside write some bytes of another piece a second time, but the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.passes.layouts import Buffer

from .launch import Address, Argument
from .split import bound


@dataclass(frozen=True)
class Extent:
    """Bytes [first, end) of a buffer."""

    buffer: Buffer
    first: int
    end: int

    @classmethod
    def of(cls, walk: Walk, first: int, last: int) -> Extent:
        """Of positions [first, last)."""
        return cls(walk.at.buffer, walk.at.offset + first * walk.step, walk.at.offset + (last - 1) * walk.step + walk.nbytes)

    def meets(self, other: Extent) -> bool:
        """Whether the two have a byte in common."""
        return self.buffer == other.buffer and self.first < other.end and other.first < self.end

    def common(self, other: Extent) -> Extent:
        """The bytes that both have, where they meet."""
        return Extent(self.buffer, max(self.first, other.first), min(self.end, other.end))

    def within(self, other: Extent) -> bool:
        """Whether all bytes are the other's, too."""
        return other.first <= self.first and self.end <= other.end


@dataclass(frozen=True)
class Walk:
    """An operand: the address of position 0, the bytes from one position to the next, and those that one position touches."""

    at: Address
    step: int
    nbytes: int


@dataclass(frozen=True)
class Loop:
    """A split loop of `rounds`, each of `size` positions; the last is moved back to end at `positions`."""

    rounds: int
    size: int
    positions: int

    def part(self, piece: int, pieces: int) -> tuple[int, int]:
        """The positions [first, last) of a piece; none where they are equal."""
        first, last = (bound(self.rounds, p, pieces) for p in (piece, piece + 1))
        if first == last:
            return 0, 0
        return min(first * self.size, self.positions - self.size), min(last * self.size, self.positions)


@dataclass(frozen=True)
class Reach:
    """What the pieces of a launch touch."""

    loops: tuple[Loop, ...]
    reads: tuple[Walk, ...]
    writes: Walk

    def touched(self, piece: int, pieces: int) -> list[Extent]:
        """All bytes that it reads or writes, but for constants."""
        return [e for walk in (*self.reads, self.writes) for e in _extent(walk, self._any(piece, pieces))]

    def read(self, piece: int, pieces: int) -> list[Extent]:
        """What it reads, but for constants."""
        return [e for walk in self.reads for e in _extent(walk, self._any(piece, pieces))]

    def written(self, piece: int, pieces: int) -> list[Extent]:
        """What it writes something of."""
        return _extent(self.writes, self._any(piece, pieces))

    def finished(self, piece: int, pieces: int) -> list[Extent]:
        """What it writes all of: loops compute different channels, and may be cut at different positions."""
        parts = [loop.part(piece, pieces) for loop in self.loops]
        return _extent(self.writes, (max(first for first, _ in parts), min(last for _, last in parts)))

    def _any(self, piece: int, pieces: int) -> tuple[int, int]:
        """From the first position of any loop to the last."""
        parts = [p for loop in self.loops for p in [loop.part(piece, pieces)] if p[0] < p[1]]
        return min((first for first, _ in parts), default=0), max((last for _, last in parts), default=0)


def _extent(walk: Walk, positions: tuple[int, int]) -> list[Extent]:
    return [Extent.of(walk, *positions)] if positions[0] < positions[1] else []


def reach(loops: Sequence[Loop], reads: Sequence[tuple[Argument, int, int]], writes: tuple[Argument, int, int]) -> Reach | None:
    """Of operands as (argument, step, bytes); None where the result is no place in memory. Constants are not counted as read."""
    walks = tuple(Walk(at, step, nbytes) for at, step, nbytes in reads if isinstance(at, Address))
    at, step, nbytes = writes
    return Reach(tuple(loops), walks, Walk(at, step, nbytes)) if isinstance(at, Address) else None


def follows(before: Reach, after: Reach, pieces: int) -> bool:
    """Whether piece i of `after` may follow piece i of `before` without waiting for the others."""
    numbers = range(pieces)
    touched = [e for i in numbers for e in before.touched(i, pieces)]
    if any(w.meets(e) for i in numbers for w in after.written(i, pieces) for e in touched):
        return False
    written = [e for i in numbers for e in before.written(i, pieces)]
    needed = ((r.common(e), before.finished(i, pieces)) for i in numbers for r in after.read(i, pieces) for e in written if r.meets(e))
    return all(any(r.within(own) for own in mine) for r, mine in needed)
