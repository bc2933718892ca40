"""How the work of a launch is divided among threads: into which loop, and into how many pieces.

A kernel's split loops of n rounds are cut into `pieces` parts of equal size, the boundaries at n * i / pieces. Threads take pieces in order
as they become free. All of it is decided here, at compile time, for two and four threads alike; results cannot depend on it, because every
piece writes what it would have written alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

MOST_PIECES = 16
THREADS = (2, 4)
PIECE_COST = 150.0
"""Nanoseconds that a thread spends on taking a piece."""
BARRIER_COST = 700.0
"""Nanoseconds that it takes to begin a divided launch and to wait for its last piece."""
AT_LEAST = 0.75
"""A launch is divided where two threads take at most this much of the time of one."""

Loops = Sequence[tuple[int, float]]
"""Split loops that run one after another: (rounds, cost of all of them)."""


def most_balanced(axes: Mapping[str, Loops]) -> str:
    """The first of `axes` that keeps all threads about as busy as the best one does."""
    found = {name: busy(loops) for name, loops in axes.items()}
    best = max(found.values())
    return next(name for name, share in found.items() if share >= min(best, 0.95) - 0.02)


def busy(loops: Loops) -> float:
    """The share of the time in which threads work, at the best number of pieces."""
    most = min(MOST_PIECES, max(n for n, _ in loops))
    total = sum(cost for _, cost in loops)
    spans = (sum(total / (t * makespan(loops, p, t)) for t in THREADS) / len(THREADS) for p in range(1, most + 1))
    return max(spans)


def makespan(loops: Loops, pieces: int, threads: int, overhead: float = 0.0) -> float:
    """When the last of `threads` is done, if each takes the next piece when it is free."""
    ends = [0.0] * threads
    for p in range(pieces):
        first = ends.index(min(ends))
        ends[first] += overhead + sum(cost * ((n * (p + 1)) // pieces - n * p // pieces) / n for n, cost in loops)
    return max(ends)


@cache
def pieces(units: int, nanoseconds: float) -> int:
    """How many pieces for a loop of `units` rounds that take so long together; 1: it is not divided."""
    options = {p: [duration(units, nanoseconds, p, t) for t in THREADS] for p in range(2, min(MOST_PIECES, units) + 1)}
    best = min(options, key=lambda p: sum(options[p]), default=1)
    return best if best > 1 and options[best][0] <= AT_LEAST * nanoseconds else 1


def duration(units: int, nanoseconds: float, pieces: int, threads: int) -> float:
    """Of a divided launch."""
    return BARRIER_COST + makespan([(units, nanoseconds)], pieces, threads, PIECE_COST)
