"""Clip(lo, hi) -> Clip(lo, inf) where the data stays far below hi.

The range of an int8 value saturates at the greatest value seen, so a bound that is never reached says nothing that the
quantization would not say by itself. Without it the clip is a Relu, which commutes with positive scales: `equalize` may pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from qcompiler.ir.graph import Graph, Sweep, Value, rewrite
from qcompiler.ir.pointwise import Clip

from .calibrate.statistics import Statistics

REACH = 0.75
"""A bound counts as never reached where the greatest value seen is below this part of it."""


def relax_clips(graph: Graph, statistics: Mapping[Value, Statistics]) -> Graph:
    """The graph with upper bounds removed that no sample came near; `statistics` are those of the stored values."""
    greatest = {v.name: s.max for v, s in statistics.items() if isinstance(v.op, Clip)}

    def relax(v: Value, sweep: Sweep) -> Value | None:
        match v:
            case Value(op=Clip(lo, hi)) if lo >= 0 and 0 < hi < inf and greatest.get(v.name, hi) < REACH * hi:
                return replace(v, op=Clip(lo, inf))
        return None

    return rewrite(graph, [relax])
