"""Questions that rewrite rules ask about constant operands, answered in float64, and graphs with other constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv, Dequantize, constant

Floats = NDArray[np.float64]


def floats(v: Value) -> Floats | None:
    """A floating-point constant as float64, or None."""
    if not isinstance(v.op, Const) or not v.type.dtype.is_float or v.type.quant is not None:
        return None
    return v.op.data.astype(np.float64)


def uniform(v: Value) -> float | None:
    """The number that every element of a floating-point constant equals, or None."""
    if not isinstance(v.op, Const) or not v.type.dtype.is_float or v.type.size == 0:
        return None
    first = v.op.data.flat[0]
    return float(first) if v.type.size == 1 or bool((v.op.data == first).all()) else None


def fits(c: Value, x: Value) -> bool:
    """Whether `c` broadcasts against `x` without growing it."""
    return len(c.shape) <= len(x.shape) and all(a in (1, b) for a, b in zip(c.shape[::-1], x.shape[::-1]))


def per_channel(c: Value, x: Value) -> Floats | None:
    """The constant `c` as a vector along the last axis of `x` (one element: the same for all), where that is all it is."""
    if not fits(c, x) or any(d != 1 for d in c.shape[:-1]):
        return None
    data = floats(c)
    return None if data is None or not data.size else data.reshape(-1)[: 1 if (data == data.flat[0]).all() else None]


def is_weights(v: Value) -> bool:
    """Whether `v` is a constant, or the dequantized constant of a model that arrived quantized."""
    return isinstance(v.op, Const) or (isinstance(v.op, Dequantize) and isinstance(v.inputs[0].op, Const))


def same_dtype(data: Floats, like: Value, name: str) -> Value:
    """`data` as a constant of the element type of `like`."""
    return constant(data.astype(like.type.dtype.numpy), name)


def is_dense(v: Value) -> bool:
    """Whether `v` is a convolution with constants that mixes all channels and pads nothing: padding is with zeros, whatever becomes of channels."""
    if not isinstance(v.op, Conv) or any(floats(c) is None for c in v.inputs[1:]):
        return False
    return v.op.groups == 1 and not any(side for pad in v.op.pads for side in pad)


def with_constants(graph: Graph, change: Mapping[Value, tuple[Value, ...]]) -> Graph:
    """The graph in which the values in `change` have these operands behind their first."""
    new = dict[Value, Value]()
    for v in graph.order:
        inputs = tuple(new[i] for i in v.inputs)
        inputs = (inputs[0], *change[v]) if v in change else inputs
        new[v] = v if inputs == v.inputs else replace(v, inputs=inputs)
    return Graph(graph.inputs, tuple(new[v] for v in graph.outputs), graph.output_names)
