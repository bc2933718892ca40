"""g(x) = op_n(.. op_1(x) ..): a region of pointwise operators that reads one tensor is one function of one number.

Whatever it spells (SiLU, hard-swish, GELU by erf or tanh, Mish ...), the integer stage makes it one table of 256 entries.
A region is all that lies between a value and one it depends on alone, if nobody outside reads what is between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.ops import Cast, Const, Input, Where, constant
from qcompiler.ir.pointwise import Binary, Clip, Map, Unary
from qcompiler.ir.types import DType, float_type

LEVELS = 256
"""Length of the placeholder that bodies are written for."""


@dataclass(frozen=True)
class Region:
    """The values computed from `root` alone, in order; the last is the result."""

    root: Value
    values: tuple[Value, ...]


def map_unary(graph: Graph, declined: Declined | None = None) -> Graph:
    """Replace every maximal region of pointwise operators on one tensor by a `Map`."""
    regions = _disjoint_regions(graph)
    if not regions:
        return graph
    new = dict[Value, Value]()
    for v in graph.order:
        new[v] = _mapped(regions[v], new) if v in regions else _rebuilt(v, new)
    return Graph(graph.inputs, tuple(new[v] for v in graph.outputs), graph.output_names)


def _rebuilt(v: Value, new: Mapping[Value, Value]) -> Value:
    inputs = tuple(new[i] for i in v.inputs)
    return v if inputs == v.inputs else replace(v, inputs=inputs)


def _disjoint_regions(graph: Graph) -> dict[Value, Region]:
    """The regions by their results, readers first, so that each is as large as can be."""
    roots = _all_roots(graph)
    regions, taken = dict[Value, Region](), set[Value]()
    for v in reversed(graph.order):
        if v not in taken and (region := _largest(graph, v, roots[v])) is not None:
            regions[v] = region
            taken.update(region.values)
    return regions


def _all_roots(graph: Graph) -> dict[Value, tuple[Value, ...]]:
    """For each value those that it is a pointwise function of alone, the nearest first."""
    roots = dict[Value, tuple[Value, ...]]()
    for v in graph.order:
        above = [(i, *roots[i]) for i in _tensors(v)] if _is_pointwise(v) else []
        roots[v] = tuple(r for r in above[0] if all(r in other for other in above)) if above else ()
    return roots


def _is_pointwise(v: Value) -> bool:
    return isinstance(v.op, (Unary, Binary, Where, Cast)) and all(t.shape == v.shape for t in _tensors(v))


def _tensors(v: Value) -> list[Value]:
    """The operands that are no numbers."""
    return [i for i in v.inputs if not (isinstance(i.op, Const) and i.type.size == 1)]


def _largest(graph: Graph, v: Value, roots: tuple[Value, ...]) -> Region | None:
    if v.type.dtype is not DType.f32:
        return None
    regions = (Region(r, _between(r, v)) for r in reversed(roots) if r.type.dtype is DType.f32 and not isinstance(r.op, Const))
    return next((r for r in regions if _worthwhile(r) and _closed(graph, r)), None)


def _between(root: Value, v: Value) -> tuple[Value, ...]:
    """The values from `root` (without it) to `v`, constants left out, operands first."""
    found = dict[Value, None]()

    def visit(u: Value) -> None:
        if u is not root and u not in found:
            for i in _tensors(u):
                visit(i)
            found[u] = None

    visit(v)
    return tuple(found)


def _worthwhile(region: Region) -> bool:
    """Not a single operator that is unary anyway, and not one that starts with a Clip, which is free behind a convolution."""
    first = [v for v in region.values if region.root in v.inputs]
    if len(first) == 1 and isinstance(first[0].op, Clip):
        return False
    return len(region.values) > 1 or not isinstance(region.values[0].op, Unary)


def _closed(graph: Graph, region: Region) -> bool:
    inside = set(region.values)
    return all(u not in graph.outputs and inside.issuperset(graph.uses[u]) for u in region.values[:-1])


def _mapped(region: Region, new: Mapping[Value, Value]) -> Value:
    placeholder = apply(Input(float_type(LEVELS)), name="x")
    body = {region.root: placeholder}
    for v in region.values:
        body[v] = apply(v.op, *(body[i] if i in body else _number(i) for i in v.inputs), name=v.name)
    result = region.values[-1]
    op = Map(Graph((placeholder,), (body[result],), ("y",)), _label(region.root, result))
    return apply(op, new[region.root], name=result.name)


def _number(c: Value) -> Value:
    return constant(c.op.data.reshape(()), c.name) if isinstance(c.op, Const) else c


def _label(root: Value, v: Value) -> str:
    """The operators as nested calls, without the root and numbers: ``mul(sigmoid)``."""
    inner = [_label(root, i) for i in _tensors(v) if i is not root]
    name = type(v.op).__name__.lower()
    return f"{name}({', '.join(inner)})" if inner else name
