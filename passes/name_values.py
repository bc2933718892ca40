"""name(u) != name(v) for u != v: every value gets a name of its own, for reports and for the symbols of the program."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Declined, Graph, Value, substitute


def name_values(graph: Graph, declined: Declined | None = None) -> Graph:
    """Number the later ones of values with equal names; graph inputs keep theirs."""
    taken = {v.name for v in graph.inputs}

    def named(v: Value) -> Value:
        if v in graph.inputs:
            return v
        name, n = v.name, 1
        while name in taken:
            n += 1
            name = f"{v.name}.{n}"
        taken.add(name)
        return v if name == v.name else replace(v, name=name)

    return substitute(graph, named)
