"""Inputs whose channels have levels of their own (`input_levels`) enter the program as the numbers of those levels.

    x_c = step_c (k_c - zero_c)              conv(x, w) = conv(k - 128, w') + ...,    w'_c = step_c w_c

What remains is a shift of sum_c w'_c (128 - zero_c) for every tap of the window (`channel_of_ones`). Where zero is the same
level in all channels, it is the zero point, and nothing remains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.ops import CountSteps, Input, Transpose

from .channel_of_ones import is_shiftable, shifted_conv
from .input_levels import LEVELS, Levels

ONE = 127.0
"""The greatest number that is stored in steps of one."""
MIDDLE = LEVELS // 2


def count_steps(graph: Graph, levels: Mapping[str, Levels], declined: Declined) -> Graph:
    """The same function of the same inputs; `levels` by the names of inputs."""
    for v in graph.inputs:
        found = levels.get(v.name)
        if found is not None and found.axis is not None:
            graph = _counted(graph, v, found, declined)
    return graph


def _counted(graph: Graph, v: Value, levels: Levels, declined: Declined) -> Graph:
    convolutions = _convolutions(graph, v, levels)
    if convolutions is None:
        declined(v, "its channels have levels of their own, but something else than convolutions of a few channels reads them: one step for all")
        return graph
    zero = levels.common_zero
    shift = tuple(z - MIDDLE if zero is None else 0.0 for z in levels.zero)
    assert levels.axis is not None
    counted = apply(CountSteps(levels.step, shift, levels.axis, 0 if zero is None else zero - MIDDLE), v, name=f"{v.name}.steps")
    new: dict[Value, Value] = {}
    for u in graph.order:
        inputs = tuple(new[i] for i in u.inputs)
        new[u] = u if inputs == u.inputs else replace(u, inputs=inputs)
        if u in convolutions:
            new[u] = _reading_steps(u, convolutions[u], counted)
    return Graph(graph.inputs, tuple(new[u] for u in graph.outputs), graph.output_names)


def _convolutions(graph: Graph, v: Value, levels: Levels) -> dict[Value, Value] | None:
    """The convolutions that read `v`, each with its operand, `v` itself or transposed so that channels are last; None where others do."""
    found = dict[Value, Value]()
    for u in graph.uses[v]:
        moved = isinstance(u.op, Transpose) and u.op.perm[-1] == levels.axis
        for reader, x in [(r, u) for r in graph.uses[u]] if moved else [(u, v)]:
            last = moved or levels.axis == v.type.rank - 1
            if not (last and is_shiftable(reader)) or reader.inputs[0] is not x:
                return None
            found[reader] = x
    return found if found and v not in graph.outputs else None


def _reading_steps(u: Value, x: Value, counted: Value) -> Value:
    """Convolution `u` of `x`, an input or its transpose, as one of the steps."""
    assert isinstance(counted.op, CountSteps)
    step, shift = (a.astype(np.float64).ravel() for a in counted.op.along(counted.type.rank))
    y = counted if isinstance(x.op, Input) else apply(x.op, counted, name=x.name)
    return shifted_conv(u, y, step, -step * shift, ONE)
