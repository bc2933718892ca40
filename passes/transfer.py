"""What was found of the values of a graph, for the same network in another form: imported for another sequence length, say.

Values correspond where they have the same name. Names come from the model, and passes derive theirs from these, so forms that differ in
extents alone have the same. Where a pass decides by extents, a value may be missing: then nothing is known of it, and that is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Graph, Value

T = TypeVar("T")


def transferred(known: Mapping[Value, T], graph: Graph, other: Graph, wanted: Iterable[Value] = ()) -> dict[Value, T]:
    """What is `known` of values of `graph`, of the values of the same names of `other`; UnsupportedModel where one that is `wanted` is missing."""
    names = {v.name: found for v, found in known.items()}
    repeated = {name for g in (graph, other) for name, count in Counter(v.name for v in g.order).items() if count > 1}
    found = {v: names[v.name] for v in other.order if v.name in names and v.name not in repeated}
    if missing := [v for v in wanted if v not in found]:
        raise UnsupportedModel([_explained(missing[0], graph, other)])
    return found


def _explained(v: Value, graph: Graph, other: Graph) -> str:
    lengths, others = (", ".join(f"'{i.name}' {list(i.shape)}" for i in g.inputs) for g in (graph, other))
    return f"for {others} the network takes another form than for {lengths}: {v.op} '{v.name}' has no counterpart; compile these shapes apart"
