"""Tiles that measurements chose: what `Target.tuned` says of a problem, and what there is to measure.

    key     form, pixels, channels, depth        vpdpbusd 1: 1x49 pixels, 960 channels, depth 40 in runs of 40
    tiles   blocks * registers : rows x columns, unrolled, chains; one for each segment        3*4:1x6u2c1 1*1:1x14u1c2

Tiles say in which order a layer is computed and never what: results are sums of the same integers. What a table says of a problem is taken
only if it is one of the choices that the model of `tiles` has; the text of everything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qcompiler.errors import UsageError

from .conv import Segment
from .tiles import Problem, choose_segments, cycles, divisions, segment_cost, tiles_of

FORM = re.compile(r"(\d+)\*(\d+):(\d+)x(\d+)u(\d+)c(\d+)")


def key_of(p: Problem) -> str:
    """The problem as a table names it: all that legal tiles depend on, but for the target."""
    packed = ", weights of four bits" if p.nibbles else ""
    form = f"{type(p.dot).__name__.lower()} {p.dot.steps:g}"
    return f"{form}: {p.rows}x{p.columns} pixels, {p.channels} channels, depth {p.depth} in runs of {p.run}{packed}"


def text_of(segments: tuple[Segment, ...]) -> str:
    """The tiles of a division as text."""
    return " ".join(f"{s.blocks}*{s.count}:{s.rows}x{s.columns}u{s.unroll}c{s.chains}" for s in segments)


def segments_of(p: Problem) -> tuple[Segment, ...]:
    """The division for `p`: what the target's table says, else what the model promises."""
    key = key_of(p)
    text = next((text for name, text in p.target.tuned if name == key), None)
    return choose_segments(p) if text is None else _parsed(text, p)


def _parsed(text: str, p: Problem) -> tuple[Segment, ...]:
    found = [FORM.fullmatch(part) for part in text.split()]
    numbers = [tuple(map(int, m.groups())) for m in found if m]
    segments = tuple(Segment(blocks, count, rows, columns, unroll, chains) for blocks, count, rows, columns, unroll, chains in numbers)
    blocks = [(s.blocks, s.count) for s in segments]
    if len(segments) < len(found) or blocks not in map(list, divisions(p)) or any(s not in tiles_of(p, s.blocks, s.count) for s in segments):
        raise UsageError(
            f"expected tiles that fit '{key_of(p)}', such as '{text_of(choose_segments(p))}', found '{text}' in the table of tiles; delete this entry"
        )
    return segments


def candidates(p: Problem, most: int) -> tuple[tuple[Segment, ...], ...]:
    """The `most` divisions that the model finds cheapest, the best first."""
    found = sorted(set(_candidates(p, most)), key=lambda s: (cycles(p, s), text_of(s)))
    best = choose_segments(p)
    return (best, *(s for s in found if s != best))[:most]


def _candidates(p: Problem, most: int) -> Iterator[tuple[Segment, ...]]:
    """Of each division: every one of the best tiles of its first segment, which has most channels, with the best of the others."""
    for blocks in divisions(p):
        first, *others = [sorted(tiles_of(p, *b), key=lambda s: (segment_cost(p, s), text_of((s,)))) for b in blocks]
        for s in first[:most]:
            yield (s, *(o[0] for o in others))
