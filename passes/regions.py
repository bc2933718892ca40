"""Regions: what lies between a value and one that it is computed from alone.

A region is recognized by what it computes, not by how an exporter spells it: it is run on numbers made for that purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Cast, Const

Floats = NDArray[np.float64]

DEPTH = 40
"""How far above a value its roots are looked for."""


@dataclass(frozen=True)
class Region:
    """The values computed from `root` alone, constants left out, operands first; the last is the result."""

    root: Value
    values: tuple[Value, ...]

    @property
    def constants(self) -> list[Value]:
        """The constants that the region reads."""
        return [i for v in self.values for i in v.inputs if isinstance(i.op, Const)]

    def run(self, x: Floats) -> Floats:
        """What the region makes of `x`, in float64; casts among floats are ignored."""
        env: dict[Value, NDArray[np.generic]] = {self.root: x}
        with np.errstate(all="ignore"):
            for v in self.values:
                arrays = [_number(i) if isinstance(i.op, Const) else env[i] for i in v.inputs]
                env[v] = arrays[0] if isinstance(v.op, Cast) else np.asarray(compute(v, arrays))
        return env[self.values[-1]].astype(np.float64, copy=False)


def _number(c: Value) -> NDArray[np.generic]:
    data: NDArray[np.generic] = c.op.data if isinstance(c.op, Const) else np.empty(0)
    return data.astype(np.float64) if data.dtype.kind == "f" else data


def tensors(v: Value) -> list[Value]:
    """The operands that are no constants."""
    return [i for i in v.inputs if not isinstance(i.op, Const)]


def all_roots(graph: Graph, inside: Callable[[Value], bool]) -> dict[Value, tuple[Value, ...]]:
    """For each value those that it is computed from alone by operators for which `inside` holds, the nearest first."""
    roots = dict[Value, tuple[Value, ...]]()
    for v in graph.order:
        above = [(i, *roots[i]) for i in tensors(v)] if inside(v) else []
        common = set(above[0]).intersection(*above[1:]) if above else set()
        roots[v] = tuple(r for r in above[0] if r in common)[:DEPTH] if above else ()
    return roots


def between(root: Value, v: Value) -> Region:
    """The region from `root` (without it) to `v`."""
    found = dict[Value, None]()

    def visit(u: Value) -> None:
        if u is not root and u not in found:
            for i in tensors(u):
                visit(i)
            found[u] = None

    visit(v)
    return Region(root, tuple(found))


Make = Callable[[Value], Value]
"""From the new root of a region, the value that stands for its result."""


def replace_regions(graph: Graph, found: Mapping[Value, tuple[Value, Make]]) -> Graph:
    """`graph` with each key of `found`, the result of a region, made anew from that region's root."""
    if not found:
        return graph
    new = dict[Value, Value]()
    for v in graph.order:
        new[v] = found[v][1](new[found[v][0]]) if v in found else _rebuilt(v, [new[i] for i in v.inputs])
    return Graph(graph.inputs, tuple(new[v] for v in graph.outputs), graph.output_names)


def _rebuilt(v: Value, inputs: Sequence[Value]) -> Value:
    return v if all(a is b for a, b in zip(inputs, v.inputs)) else replace(v, inputs=tuple(inputs))


def outermost(graph: Graph, match: Callable[[Value], tuple[Region, Make] | None]) -> dict[Value, tuple[Value, Make]]:
    """Regions that `match` accepts, results before what they are computed from, so that each is as large as can be."""
    found, taken = dict[Value, tuple[Value, Make]](), set[Value]()
    for v in reversed(graph.order):
        if v not in taken and (answer := match(v)) is not None:
            region, make = answer
            found[v] = (region.root, make)
            taken.update(_private(graph, region.values))
    return found


def _private(graph: Graph, values: Iterable[Value]) -> set[Value]:
    """Those of `values` that nobody else reads, and so are gone once their last reader is replaced."""
    inside = set(values)
    for v in reversed(tuple(values)[:-1]):
        if v in graph.outputs or not inside.issuperset(graph.uses[v]):
            inside.discard(v)
    return inside
