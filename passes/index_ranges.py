"""Which integers a graph may be fed, from what it does with them.

    interval(v) = intersection over all that read v, or v moved about, of
        [-V, V - 1]     indices into an axis of V elements (ONNX counts negative ones from the end)
        [-128, 127]     turned into numbers: what an `IntCast` keeps
        [0, 1]          turned into numbers here and into booleans there, or into numbers that hide where they are far below zero: a mask
        everything      turned into booleans only

The compiled program checks its inputs against these before it computes anything, so that no index ever reads outside of its table;
indices that come from elsewhere are proven at compile time (`index_problem`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.integer import IntAttention, IntCast, Lookup
from qcompiler.ir.ops import ArgMax, Cast, Concat, Const, Expand, Gather, Input, Op, Reshape, Slice, Tile, Transpose
from qcompiler.ir.sequence import Attention
from qcompiler.ir.types import DType

Interval = tuple[int, int]
NUMBERS: Interval = (-128, 127)
MASK: Interval = (0, 1)
INDICES = (DType.i32, DType.i64)
_MOVES = (Concat, Expand, Reshape, Slice, Tile, Transpose)


def input_interval(graph: Graph, v: Value) -> Interval | None:
    """The integers that the graph input `v` may hold; None where every one will do, or where it holds real numbers."""
    if v.type.dtype not in INDICES or v.type.quant is not None:
        return None
    readers = list(_readers(graph, v))
    bounds = [(-n, n - 1) for n in (_indexed(u, i) for u, i in readers) if n]
    casts = [u for u, _ in readers if isinstance(u.op, (Cast, IntCast))]
    truths = [_only_truth(graph, u) for u in casts]
    if any(isinstance(u.op, (Cast, IntCast)) and u.op.binary for u in casts):
        bounds.append(MASK)
    if not all(truths):
        bounds.append(MASK if any(truths) else NUMBERS)
    return (max(lo for lo, _ in bounds), min(hi for _, hi in bounds)) if bounds else None


def _readers(graph: Graph, v: Value) -> Iterator[tuple[Value, Value]]:
    """(reader, operand) of all that does more with `v` than to move its elements about."""
    pending, seen = [v], {v}
    while pending:
        i = pending.pop()
        for user in graph.uses[i]:
            if not _keeps_elements(user, i):
                yield user, i
            elif user not in seen:
                seen.add(user)
                pending.append(user)


def _keeps_elements(user: Value, i: Value) -> bool:
    """Whether the elements of `user` are some of those of its operand `i`, and of others."""
    if isinstance(user.op, Gather):
        return user.inputs[0] is i and user.inputs[1] is not i
    return isinstance(user.op, _MOVES) or (isinstance(user.op, Cast) and user.op.dtype in INDICES)


def _indexed(user: Value, i: Value) -> int:
    """The number of elements that `i` counts in `user`, 0 where it is no index."""
    return user.inputs[0].shape[user.op.axis] if isinstance(user.op, Gather) and user.inputs[1] is i else 0


def _only_truth(graph: Graph, cast: Value) -> bool:
    """Whether all that matters of `cast` is which of its elements are zero."""
    if isinstance(cast.op, Cast) and cast.op.dtype is DType.bool:
        return True
    return all(_is_mask(user, i) for user, i in _readers(graph, cast)) and cast not in graph.outputs


def _is_mask(user: Value, i: Value) -> bool:
    if isinstance(user.op, Cast):
        return user.op.dtype is DType.bool
    if isinstance(user.op, Lookup) and isinstance(user.inputs[1].op, Const):
        others = np.delete(user.inputs[1].op.data, 128, -1)
        return bool((others == others[..., :1]).all())
    return isinstance(user.op, (Attention, IntAttention)) and user.op.mask and user.inputs[-1] is i and i not in user.inputs[:-1]


def indexed_rows(graph: Graph, v: Value) -> int:
    """The length of the shortest axis that the graph input `v` counts in; 0 where it is no index."""
    return min((n for n in (_indexed(u, i) for u, i in _readers(graph, v)) if n), default=0)


def out_of_range(graph: Graph, v: Value, data: NDArray[Any]) -> str | None:
    """What is wrong with `data` as the graph input `v`: expected, found and where; None if nothing is."""
    interval = input_interval(graph, v)
    if interval is None or not data.size or (data.min() >= interval[0] and data.max() <= interval[1]):
        return None
    place = tuple(int(i) for i in np.argwhere((data < interval[0]) | (data > interval[1]))[0])
    return f"expected integers in [{interval[0]}, {interval[1]}], found {data[place]} at {list(place)}"


def index_problem(index: Value, size: int) -> str | None:
    """What keeps us from knowing that `index` counts within `size` elements; None where it does: program inputs are checked when it
    runs, and all else here."""
    for root in _roots(index):
        low, high = _interval(root.op, root) or (-size, size - 1)
        if not isinstance(root.op, (Input, Const, ArgMax)):
            return f"{type(root.op).__name__} '{root.name}' makes indices that are not known to lie in [{-size}, {size - 1}]"
        if low < -size or high >= size:
            return f"'{root.name}' holds indices in [{low}, {high}], expected [{-size}, {size - 1}]"
    return None


def _interval(op: Op, v: Value) -> Interval | None:
    match op:
        case Const() if op.data.size:
            return int(np.min(op.data)), int(np.max(op.data))
        case ArgMax(axis=axis):
            return 0, v.inputs[0].shape[axis] - 1
    return None


def _roots(v: Value) -> Iterator[Value]:
    """Where the elements of `v` come from."""
    pending, seen = [v], {v}
    while pending:
        i = pending.pop()
        sources = i.inputs if isinstance(i.op, _MOVES) else i.inputs[:1] if isinstance(i.op, (Gather, Cast)) else ()
        if not sources:
            yield i
        pending += [s for s in sources if s not in seen]
        seen.update(sources)
