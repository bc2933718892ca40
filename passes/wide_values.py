"""Which values are stored in 16 bits: the outputs of the network, the residual streams of transformers, what is rotated, and what some
layers read (`wide_readers`).

    x_{l+1} = x_l + f(Normalize(x_l))

Rounding the stream to 8 bits at every addition would add up over the depth, and its few channels of great values (Sun et al. 2024,
"Massive Activations in Large Language Models") would leave two or three bits to all others. Nothing multiplies a stream: it is
read by additions and normalizations alone, so 16 bits cost no dot product. Outputs are wide because answers would otherwise tie. Queries and
keys before rotary embedding are wide because they would be rounded twice otherwise: its products are of 16 bits anyway.

A value may be wide where whatever computes it ends in a requantization (or a normalization, or a table of embeddings), and where
all that read it are additions, normalizations, rotations, layers that were chosen to, or movement of which the same is true.
"""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import ArgMax, AveragePool, Concat, Const, Conv, Gather, MaxPool, Reduce, Reduction, Reshape, Slice, Transpose
from qcompiler.ir.pointwise import Add, Clip
from qcompiler.ir.sequence import Normalize, Rotate

from .storage_points import absorbed_by_clip, is_accumulating, is_stored, sharing_groups

MOVED = (Reshape, Slice, Concat, Transpose, MaxPool)
"""Movement that 16-bit values may take."""


def wide_values(graph: Graph, readers: frozenset[Value] = frozenset()) -> frozenset[Value]:
    """The stored values that get 16 bits; `readers` are the layers that are to read them."""
    groups = sharing_groups(graph)
    group_of = {v: tuple(g) for g in groups for v in g}
    able = {v for g in groups if why_narrow(graph, g, readers) is None for v in g}
    wide = {v for v in able if any(_wants_width(graph, m, readers) for m in group_of[v])}
    while grown := {v for v in able - wide if _is_stream(graph, v, wide)}:
        wide |= {m for v in grown for m in group_of[v]}
    return frozenset(wide)


def why_narrow(graph: Graph, group: Iterable[Value], readers: frozenset[Value] = frozenset()) -> str | None:
    """What keeps the values of a group at 8 bits, if anything; `readers` read 16 besides what does in any case."""
    for v in group:
        if not (_is_requantized(graph, v) or isinstance(v.op, (Normalize, *MOVED)) or _is_embedding(v)):
            return f"{type(v.op).__name__} '{v.name}' gives 8 bits"
        if other := next((u for u in graph.uses[v] if not (_reads_wide(u) or u in readers)), None):
            return f"{type(other.op).__name__} '{other.name}' reads '{v.name}' in 8 bits"
    return None


def readers_of(graph: Graph, group: Iterable[Value]) -> list[Value]:
    """What reads the values of a group, but for movement within it, in execution order."""
    members = dict.fromkeys(group)
    return list(dict.fromkeys(u for v in members for u in graph.uses[v] if u not in members))


def reads_words(v: Value) -> bool:
    """Whether `v` is a layer whose kernel multiplies, or adds up, 16 bits."""
    if isinstance(v.op, Reduce):
        return v.op.kind in (Reduction.sum, Reduction.mean)
    return isinstance(v.op, (Conv, AveragePool))


def _is_requantized(graph: Graph, v: Value) -> bool:
    inner = v.inputs[0] if isinstance(v.op, Clip) else v
    return is_accumulating(inner) and (inner is v or absorbed_by_clip(graph, inner))


def _is_embedding(v: Value) -> bool:
    return isinstance(v.op, Gather) and isinstance(v.inputs[0].op, Const)


def _reads_wide(user: Value) -> bool:
    return isinstance(user.op, (Add, ArgMax, Normalize, Rotate, *MOVED))


def _wants_width(graph: Graph, v: Value, readers: frozenset[Value]) -> bool:
    return v in graph.outputs or any(isinstance(u.op, (ArgMax, Normalize, Rotate)) or u in readers for u in graph.uses[v])


def _is_stream(graph: Graph, v: Value, wide: set[Value]) -> bool:
    """Whether `v` is a sum, or a normalization, that goes into another wide sum."""
    return isinstance(v.op, (Add, Normalize)) and any(isinstance(u.op, Add) and u in wide for u in graph.uses[v])


def streams(graph: Graph, wide: frozenset[Value]) -> list[tuple[Value, Value]]:
    """(sum, operand) pairs of wide values: they share a scale, so that the addition needs no arithmetic but itself."""
    return [(v, i) for v in graph.order if isinstance(v.op, Add) and v in wide for i in v.inputs if i in wide and is_stored(graph, i)]
