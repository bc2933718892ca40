"""The function of one number that a pointwise operator computes, for tables and for what its operand's precision is worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import interpret
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import Input
from qcompiler.ir.pointwise import Clip, Unary
from qcompiler.ir.types import float_type

Floats = NDArray[np.float64]


def images(f: Value, reals: Floats) -> Floats:
    """The results of the unary float value `f` on the numbers `reals`, computed in float32; undefined ones are NaN."""
    argument = Value(Input(float_type(reals.size)), (), float_type(reals.size), f"{f.name}.argument")
    with np.errstate(all="ignore"):
        results = interpret.compute(apply(f.op, argument, name=f.name), [reals.astype(np.float32)], np)
    return np.asarray(results).astype(np.float64)


def sole_function(graph: Graph, v: Value) -> Callable[[Floats], Floats] | None:
    """The function through which alone `v` is seen: that of the unary operator that is its only reader."""
    user = graph.only_use(v)
    if v in graph.outputs or user is None or not isinstance(user.op, Unary) or isinstance(user.op, Clip):
        return None
    return lambda reals: images(user, reals)
