"""Values through which all of a network passes on its way to the first output: where two forms of it can be compared on the way.

    v is a stage   iff every path from an input to the output contains v        the output's dominators

(Lowry & Medlock 1969, "Object code optimization"; Cooper, Harvey & Kennedy 2001, "A Simple, Fast Dominance Algorithm", as networkx has it). Sums that
close a residual block are stages, what lies between a split and its sum or concatenation is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from qcompiler.ir.graph import Graph, Value

SOURCE = "source"
"""A node before all inputs."""


def stages(graph: Graph) -> list[Value]:
    """Those of floating point, in execution order, without inputs and the output itself."""
    paths = nx.DiGraph((SOURCE, v) for v in graph.inputs)
    for v in graph.order:
        paths.add_edges_from((i, v) for i in v.inputs if i in paths)
    if graph.outputs[0] not in paths:
        return []
    found = _above(graph.outputs[0], nx.immediate_dominators(paths, SOURCE))
    return [v for v in found if v.inputs and v.type.dtype.is_float][::-1]


def _above(v: Value, dominator: dict[Value | str, Value | str]) -> Iterator[Value]:
    above = dominator[v]
    while isinstance(above, Value):
        yield above
        above = dominator[above]
