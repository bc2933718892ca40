"""op(x) and op(x) are one value: common-subexpression elimination by value numbering (Cocke 1970)."""

from __future__ import annotations

from collections.abc import Hashable

from qcompiler.ir.graph import Declined, Graph, Value, substitute
from qcompiler.ir.ops import Const, Input

SMALL = 64
"""Constants of up to so many elements are compared by content, greater ones by identity of their arrays."""


def deduplicate(graph: Graph, declined: Declined | None = None) -> Graph:
    """Merge values that apply the same operator to the same operands, and equal constants."""
    seen: dict[Hashable, Value] = {}
    return substitute(graph, lambda v: seen.setdefault(_key(v), v))


def _key(v: Value) -> Hashable:
    match v.op:
        case Input():
            return v
        case Const(data):
            return ("const", v.type, data.tobytes() if data.size <= SMALL else id(data))
    return (v.op, v.inputs, v.type)
