"""Which float values will be stored as int8, and which of them must share one scale.

A value is *stored* unless a Clip that alone reads it bounds it in its producer's requantization. Stored values that only
move elements (reshape, max pooling, concatenation ...) share the quantization of what they move, so that moving costs no
arithmetic and loses nothing. Sharing is an equivalence: its classes are the connected components of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import networkx as nx

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import (
    AveragePool,
    Concat,
    Const,
    Conv,
    ConvTranspose,
    CountSteps,
    Dequantize,
    Expand,
    Gather,
    MatMul,
    MaxPool,
    Pad,
    Quantize,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
)
from qcompiler.ir.pointwise import Add, Clip, Max, Min, Mul, Sub
from qcompiler.ir.sequence import Rotate

MOVEMENT = (Transpose, Reshape, Expand, Tile, Concat, Slice, Pad, Gather, MaxPool)
ACCUMULATING = (Conv, ConvTranspose, MatMul, AveragePool, Add, Sub, Mul, Rotate)


def is_movement(v: Value) -> bool:
    """Whether every element of `v` is an element of an operand (or padding): no arithmetic, quantization kept."""
    match v.op:
        case Resize():
            return v.op.nearest
        case Reduce(kind=Reduction.max | Reduction.min):
            return True
    return isinstance(v.op, MOVEMENT)


def is_accumulating(v: Value) -> bool:
    """Whether the integer form of `v` is an int32 accumulator with a Requantize, which can also clamp."""
    match v.op:
        case Resize():
            return not v.op.nearest
        case Reduce(kind=Reduction.sum | Reduction.mean):
            return True
    return isinstance(v.op, ACCUMULATING)


def absorbed_by_clip(graph: Graph, v: Value) -> bool:
    """Whether `v` is an accumulator read by one Clip alone, which becomes the bounds of its requantization."""
    user = graph.only_use(v)
    return is_accumulating(v) and user is not None and isinstance(user.op, Clip)


def is_stored(graph: Graph, v: Value) -> bool:
    """Whether `v` is a float activation that needs a quantization of its own or shared; constants are not activations,
    and what is read by a Quantize alone has one already; of an input that is counted in steps these are stored."""
    if not v.type.dtype.is_float or isinstance(v.op, (Const, Dequantize, Quantize)):
        return False
    users = graph.uses[v]
    given = bool(users) and all(isinstance(u.op, (Quantize, CountSteps)) for u in users) and v not in graph.outputs
    return not given and not absorbed_by_clip(graph, v)


def storage_points(graph: Graph) -> list[Value]:
    """The stored values in execution order."""
    return [v for v in graph.order if is_stored(graph, v)]


def sharing_groups(
    graph: Graph, apart: Callable[[Value, Value], bool] = lambda v, operand: False, together: Iterable[tuple[Value, Value]] = ()
) -> list[list[Value]]:
    """The stored values in groups that share one quantization, in execution order, each group led by its first value.

    A value and an operand of it that are to be kept `apart` share only by way of others; pairs of `together` share besides.
    """
    points = storage_points(graph)
    position = {v: i for i, v in enumerate(points)}
    sharing = nx.Graph()
    sharing.add_nodes_from(points)
    sharing.add_edges_from((v, other) for v in points for other in _shares_with(v) if other in position and not apart(v, other))
    sharing.add_edges_from(together)
    groups = [sorted(c, key=position.__getitem__) for c in nx.connected_components(sharing)]
    return sorted(groups, key=lambda g: position[g[0]])


def _shares_with(v: Value) -> Iterator[Value]:
    if is_movement(v):
        yield from v.inputs if isinstance(v.op, Concat) else v.inputs[:1]
    elif isinstance(v.op, (Max, Min)):
        yield from v.inputs
