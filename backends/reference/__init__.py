"""The reference: an integer graph, operator by operator, in numpy. Obviously right comes before fast.

Every backend must give these bits. Accumulators are computed exactly (in float64, whose 53 bits hold every partial sum,
or in int64) and checked to fit in int32, so a wrong overflow proof shows here as an error instead of as wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Input

from .operators import compute

Array = NDArray[np.generic]


def run(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name for one set of inputs by name. KeyError where an input is missing."""
    results = run_values(graph, feeds, graph.outputs)
    return {name: results[v] for name, v in zip(graph.output_names, graph.outputs)}


def run_values(graph: Graph, feeds: Mapping[str, Array], wanted: Sequence[Value]) -> dict[Value, Array]:
    """The arrays of the `wanted` values. A quantized value may be fed in place of computing it, by its name."""
    keep, results = set(wanted), dict[Value, Array]()
    pending = {v: len(users) for v, users in graph.uses.items()}
    for v in graph.order:
        results[v] = feeds[v.name] if v.name in feeds and _is_boundary(v) else compute(v, [results[i] for i in v.inputs])
        for i in v.inputs:
            pending[i] -= 1
            if not pending[i] and i not in keep:
                results[i] = _FREED
    return {v: results[v] for v in wanted}


_FREED = np.empty(0)


def _is_boundary(v: Value) -> bool:
    return isinstance(v.op, Input)
