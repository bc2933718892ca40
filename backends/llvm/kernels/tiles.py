"""Which tile: how many pixels times how many registers of channels are computed at once.

A small model of a core: it retires `WIDTH` instructions, two loads and one or two multiplies per cycle; a dot product takes
`LATENCY` cycles before its accumulator can be used again. Of all tiles whose accumulators, weights and scratch fit in the registers the cheapest
in total cycles wins, edges that are computed twice included. Arm cores have hardly more room than their multipliers fill: there
instructions are counted, `NARROW` per cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import Chained, Dot
from qcompiler.backends.llvm.target import Target

from .conv import Segment

WIDTH = 5.0
NARROW = 2.0
"""Instructions per cycle of an Arm core."""
TABLE = 5.0
"""Instructions that walking chains takes for each group."""
FINISH, STORE, NARROW_OVERHEAD = 22.0, 2.0, 24.0
"""Instructions, on Arm, from four registers of results to one of bytes, to store a pixel of it, and of a tile besides."""
LATENCY = 5
EPILOGUE = 5.0
"""Instructions per register of results."""
SHIFTS = 9
"""Shifts and packs of an epilogue, from four registers to one."""
TILE_OVERHEAD = 12.0
FIRST_LEVEL = 24 << 10
"""Bytes of weights that stay in the first-level cache beside x, from tile to tile."""
SECOND_LEVEL = 12
"""Bytes per cycle that may be asked of the second-level cache: half of what cores with two dot products per cycle get from it."""
MAX_DOTS = 56
"""Dot products written out in one loop body."""


@dataclass(frozen=True)
class Problem:
    """What the choice depends on."""

    target: Target
    rows: int
    columns: int
    channels: int
    depth: int
    run: int
    dot: Dot
    nibbles: bool = False
    """Whether two registers of weights lie in one: blocks have at least two."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Registers that a block may have."""
        smallest = 2 if self.nibbles else 1
        return tuple(c for c in (4, 2, 1) if c == smallest or (c > smallest and self.operands(c) > 0))

    def operands(self, count: int) -> int:
        """How many x operands of a tile the registers allow."""
        dot = self.dot
        return int((self.target.registers - dot.scratch - count * dot.weights) // (count * dot.spread + dot.held))


@cache
def choose_segments(p: Problem) -> tuple[Segment, ...]:
    """The cheapest division of the channels into blocks, each with its best tile."""
    return min((tuple(_tiled(p, *b) for b in blocks) for blocks in divisions(p)), key=lambda found: cycles(p, found))


def cycles(p: Problem, segments: Iterable[Segment]) -> float:
    """What the model expects of a division."""
    return sum(segment_cost(p, s) for s in segments)


def divisions(p: Problem) -> Iterator[tuple[tuple[int, int], ...]]:
    """(blocks, registers of a block) of each segment, for every way to divide the channels."""
    vectors = -(-p.channels // p.target.lanes)
    for count in p.counts:
        for rest in (True, False):
            yield tuple(_blocks(p, vectors, count, rest))


def _blocks(p: Problem, vectors: int, count: int, padded: bool) -> Iterator[tuple[int, int]]:
    """(blocks, count): as many of `count` as are wholly filled, then the rest in one padded block or in smaller ones."""
    full = p.channels // (p.target.lanes * count)
    if full:
        yield full, count
    left = vectors - full * count
    while left:
        size = next(c for c in p.counts[::-1] if c >= left) if padded else next((c for c in p.counts if c <= left), p.counts[-1])
        yield 1, size
        left = max(0, left - size)


def _tiled(p: Problem, blocks: int, count: int) -> Segment:
    return min((s for s in tiles_of(p, blocks, count)), key=lambda s: segment_cost(p, s))


def tiles_of(p: Problem, blocks: int, count: int) -> Iterator[Segment]:
    """Every tile whose accumulators fit in the registers."""
    most = p.dot.pixels * max(1, p.operands(count))
    for rows in range(1, min(p.rows, most) + 1):
        for columns in range(1, min(p.columns, most // rows) + 1):
            yield _unrolled(p, Segment(blocks, count, rows, columns), most * count)


def _unrolled(p: Problem, s: Segment, registers: int) -> Segment:
    """Unrolled as far as the weights of all groups fit in the registers too: LLVM's scheduler likes to load them all at once. Chains, of
    groups in an order of their own, are as long as they are, and none waits for another's sum."""
    if isinstance(p.dot, Chained):
        return s
    dots = s.rows * s.columns * s.count
    if p.dot.wide > 1:
        return replace(s, unroll=min(p.dot.wide, p.run), chains=1)
    unroll = max(u for u in range(1, 9) if p.run % u == 0 and (u == 1 or (u * dots <= MAX_DOTS and dots + (u - 1) * s.count <= registers)))
    chains = max(c for c in range(1, unroll + 1) if c == 1 or (c * dots <= registers and (c - 1) * dots < 2 * LATENCY))
    return replace(s, unroll=unroll, chains=chains)


def segment_cost(p: Problem, s: Segment) -> float:
    """What the model expects of a segment, in cycles."""
    tiles = -(-p.rows // s.rows) * -(-p.columns // s.columns)
    if p.target.arch == "aarch64":
        return s.blocks * tiles * _tile_instructions(p, s) / NARROW
    pixels = s.rows * s.columns
    results = pixels * s.count
    joined = -(-pixels // (4 // s.count))
    finish = joined * _joined_cycles(p.target, s.count) + results * s.chains / WIDTH + TILE_OVERHEAD
    return s.blocks * tiles * (p.depth * _group_cycles(p, s) + finish)


def _tile_instructions(p: Problem, s: Segment) -> float:
    """Of a tile on Arm, where registers of weights are loaded in pairs."""
    dot, pixels = p.dot, s.rows * s.columns
    operands, registers = -(-pixels // dot.pixels), s.count * dot.spread
    unpacked = registers * (nibbles.unpacking(dot) if p.nibbles else dot.widening)
    walking = TABLE if isinstance(dot, Chained) else 4.0 / s.unroll
    group = operands * (registers * dot.steps + dot.prepare + 1 / min(dot.wide, s.unroll)) + registers / 2 + unpacked + walking
    finish = pixels * (s.count * dot.finishing + STORE) + -(-pixels // (4 // s.count)) * FINISH
    return p.depth * group + finish + NARROW_OVERHEAD


def _joined_cycles(target: Target, count: int) -> float:
    """From four registers of results to one of bytes in memory. With 512 bits shifts and shuffles take a cycle each and nothing overlaps
    them: nine for the arithmetic, then one to order the pixels and one for each but the first to take it out."""
    if target.vector_bits < 512:
        return 4 * EPILOGUE / WIDTH
    return SHIFTS + (0 if count == 4 else 4 // count)


def _group_cycles(p: Problem, s: Segment) -> float:
    dot, target, pixels = p.dot, p.target, s.rows * s.columns
    dots, loads = pixels * s.count, pixels + s.count
    multiplies = 1.0 if target.vector_bits == 512 else 2.0
    unpacked = s.count * (nibbles.unpacking(dot) if p.nibbles else dot.widening)
    # chains look up where each group lies, and what is loaded waits for that: as much as tiles of 1 to 12 pixels by 1 to 4 registers took on Zen 3
    walking = 2.0 + pixels / 2 + s.count if isinstance(dot, Chained) else 2.0 / s.unroll
    instructions = dots * dot.steps + pixels * dot.prepare + loads + unpacked + walking
    weights = s.count * target.vector_bytes // (2 if p.nibbles else dot.itemsize)
    streamed = weights / SECOND_LEVEL if weights * p.depth > FIRST_LEVEL else 0.0
    latency = 0.0 if isinstance(dot, Chained) else LATENCY / s.chains
    return max(dots * dot.multiplies / multiplies, loads / 2, instructions / WIDTH, latency, streamed)
