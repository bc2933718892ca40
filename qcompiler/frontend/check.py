"""Refuses constants and shapes that no integer program can stand for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv, ConvTranspose, MatMul, Op
from qcompiler.ir.pointwise import Mul

_SCALED_BY: tuple[type[Op], ...] = (Conv, ConvTranspose, MatMul, Mul)
"""Operators to which an infinite constant is damage; to others (a mask, a bound) it may be meant."""


def check_values(graph: Graph) -> None:
    """Raises ModelError for a value without elements, and a constant that holds NaN, or infinity where weights are expected."""
    for v in graph.order:
        if v.type.size == 0 and (v.inputs or v in graph.outputs):
            raise ModelError(f"value '{v.name}' {v.type} has no elements; check the shapes of the model's inputs (--shape)")
        if isinstance(v.op, Const) and v.type.dtype.is_float:
            _check(v, graph.uses[v])


def _check(v: Value, users: tuple[Value, ...]) -> None:
    data = _distinct(v.op.data) if isinstance(v.op, Const) else np.empty(0)
    if np.isfinite(data).all():
        return
    bad = int((~np.isfinite(data)).sum())
    if np.isnan(data).any():
        raise ModelError(f"constant '{v.name}' holds NaN ({bad} of {data.size} elements); train or export the model again")
    user = next((u for u in users if isinstance(u.op, _SCALED_BY)), None)
    if user is not None:
        raise ModelError(f"weights '{v.name}' of '{user.name}' hold infinity ({bad} of {data.size} elements); train or export the model again")


def _distinct(data: NDArray[np.generic]) -> NDArray[np.generic]:
    """A part that has all elements of a broadcast array: generated weights of 400 MB are one number."""
    return data[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in data.strides)]
