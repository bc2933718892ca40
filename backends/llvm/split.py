"""How the work of a launch is divided among threads: into which loop, and into how many pieces.

A kernel's split loops of n rounds are cut into `pieces` parts of about equal size, with boundaries at (n + 1) i / pieces
(`dsl.Span`). Threads take pieces in order as they become free. All of it is decided here, at compile time, for two and four threads alike;
results cannot depend on it, because every piece writes what it would have written alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import pairwise
from math import prod

from .dsl import Index, Kernel

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
Shared = tuple[int, int]
"""Which of nested loops threads share, [first, last): several are walked as one."""


@contextmanager
def grid(k: Kernel, sizes: Sequence[int], shared: Shared | None) -> Iterator[tuple[Index | int, ...]]:
    """Nested loops of `sizes` rounds, outermost first; within them the index of each. Threads share those of `shared`, as one loop of all
    their rounds where they are several: 7 rows of 7 tiles are 24 and 25 of 49 then, instead of 3 and 4 of 7."""
    joined = shared is not None and k.span is not None and not k.span.inside and sum(n > 1 for n in sizes[slice(*shared)]) > 1
    bounds = [n for n in range(len(sizes) + 1) if not (joined and shared and shared[0] < n < shared[1])]
    split = None if shared is None else shared[0] if joined else max(range(*shared), key=sizes.__getitem__)
    index = list[Index | int]()
    with ExitStack() as loops:
        for first, last in pairwise(bounds):
            i = loops.enter_context(k.split(prod(sizes[first:last]), first == split))
            index += _digits(k, i, sizes[first:last])
        yield tuple(index)


def _digits(k: Kernel, index: Index | int, sizes: Sequence[int]) -> list[Index | int]:
    """The index on each axis, of an index into them all."""
    *outer, n = sizes
    if isinstance(index, int) or not outer:
        return [*[0] * len(outer), index]
    rest = index if n == 1 else Index(k, k.b.udiv(index.ir, k.i64(n)))
    return [*_digits(k, rest, outer), 0 if n == 1 else Index(k, k.b.urem(index.ir, k.i64(n)))]


def joint(sizes: Sequence[Sequence[int]], costs: Sequence[float], shared: Shared) -> Loops:
    """The shared loops of nests of `sizes` that run one after another."""
    return [(prod(s[slice(*shared)]), cost) for s, cost in zip(sizes, costs, strict=True)]


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
        ends[first] += overhead + sum(cost * (bound(n, p + 1, pieces) - bound(n, p, pieces)) / n for n, cost in loops)
    return max(ends)


def bound(n: int, piece: int, pieces: int) -> int:
    """The first of n rounds that belongs to `piece`."""
    return min(n, (n + 1) * piece // pieces)


@cache
def pieces(units: int, nanoseconds: float) -> int:
    """How many pieces for a loop of `units` rounds that take so long together; 1: it is not divided."""
    options = {p: [duration(units, nanoseconds, p, t) for t in THREADS] for p in range(2, min(MOST_PIECES, units) + 1)}
    best = min(options, key=lambda p: sum(options[p]), default=1)
    return best if best > 1 and options[best][0] <= AT_LEAST * nanoseconds else 1


def duration(units: int, nanoseconds: float, pieces: int, threads: int) -> float:
    """Of a divided launch."""
    return BARRIER_COST + makespan([(units, nanoseconds)], pieces, threads, PIECE_COST)
