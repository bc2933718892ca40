"""Which bytes a piece of a divided launch reads and writes: what decides whether the next launch must wait for all pieces, or only for its own.

A launch whose threads share a loop over positions (pixels or rows in channels-last memory) computes those of [bound(p), bound(p + 1)) in piece
p. Operands are walked with equal steps, so that what a piece touches lies in one interval of bytes of each.

Piece i of launch B may follow piece i of launch A at once, while other pieces of A still run on other threads, if for all i, j

    what of writes(A, j) reads(B, i) has    lies within writes(A, i)      nothing is read that another thread has yet to write
    writes(B, i)                            meets neither reads(A, j) nor writes(A, j)

Tiles that are moved back inside write some bytes of another piece a second time, but the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .launch import Address, Argument
from .split import bound


@dataclass(frozen=True)
class Extent:
    """Bytes [first, end) of a buffer."""

    place: Address
    first: int
    end: int

    @classmethod
    def of(cls, walk: Walk, first: int, last: int) -> Extent:
        """Of positions [first, last)."""
        return cls(walk.at, walk.at.offset + first * walk.step, walk.at.offset + (last - 1) * walk.step + walk.nbytes)

    def meets(self, other: Extent) -> bool:
        """Whether the two have a byte in common."""
        return self.place.buffer == other.place.buffer and self.first < other.end and other.first < self.end

    def common(self, other: Extent) -> Extent:
        """The bytes that both have, where they meet."""
        return Extent(self.place, max(self.first, other.first), min(self.end, other.end))

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

    def positions(self, piece: int, pieces: int) -> tuple[int, int]:
        """Those of all loops."""
        parts = [p for loop in self.loops for p in [loop.part(piece, pieces)] if p[0] < p[1]]
        return min((first for first, _ in parts), default=0), max((last for _, last in parts), default=0)

    def read_by(self, piece: int, pieces: int) -> list[Extent]:
        """What it reads, but for constants."""
        first, last = self.positions(piece, pieces)
        return [Extent.of(walk, first, last) for walk in self.reads] if first < last else []

    def written_by(self, piece: int, pieces: int) -> list[Extent]:
        """What it writes."""
        first, last = self.positions(piece, pieces)
        return [Extent.of(self.writes, first, last)] if first < last else []


def reach(loops: Sequence[Loop], reads: Sequence[tuple[Argument, int, int]], writes: tuple[Argument, int, int]) -> Reach | None:
    """Of operands as (argument, step, bytes); None where the result is no place in memory. Constants are not counted as read."""
    walks = tuple(Walk(at, step, nbytes) for at, step, nbytes in reads if isinstance(at, Address))
    at, step, nbytes = writes
    return Reach(tuple(loops), walks, Walk(at, step, nbytes)) if isinstance(at, Address) else None


def follows(before: Reach, after: Reach, pieces: int) -> bool:
    """Whether piece i of `after` may follow piece i of `before` without waiting for the others."""
    numbers = range(pieces)
    read, written = [before.read_by(i, pieces) for i in numbers], [before.written_by(i, pieces) for i in numbers]
    everything = [e for w in written for e in w]
    touched = [e for r in read for e in r] + everything
    if any(w.meets(e) for i in numbers for w in after.written_by(i, pieces) for e in touched):
        return False
    needed = ((r.common(e), written[i]) for i in numbers for r in after.read_by(i, pieces) for e in everything if r.meets(e))
    return all(any(r.within(own) for own in mine) for r, mine in needed)
