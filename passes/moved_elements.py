"""Which element of its source each element of a moved tensor is: movement is run on the numbers 0, 1, 2 ..."""

from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import Value, apply
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Concat, Const, Expand, Gather, Reshape, Tile, Transpose

MOVING = (Reshape, Transpose, Expand, Tile, Gather, Concat)
LARGEST = 1 << 26


def repeated_heads(x: Value) -> Value | None:
    """The value [B,M,G,D] whose heads are each repeated H / G times in `x` [B,M,H,D]; None where there is none."""
    chain = _chain(x)
    source = chain[-1].inputs[0] if chain else x
    if not chain or source.type.size >= x.type.size or x.type.size % source.type.size or x.type.size > LARGEST:
        return None
    times = x.type.size // source.type.size
    if x.shape[2] % times:
        return None
    numbers = np.arange(source.type.size).reshape(source.shape)
    moved = numbers
    for v in reversed(chain):
        moved = np.asarray(compute(v, [i.op.data if isinstance(i.op, Const) else moved for i in v.inputs]))
    shared = moved[:, :, ::times]
    if not np.array_equal(np.repeat(shared, times, axis=2), moved):
        return None
    return _gathered(source, numbers, shared, f"{x.name}.shared")


def _chain(x: Value) -> list[Value]:
    """The movement between `x` and the last value before anything is repeated, `x` first."""
    chain, shortest = list[Value](), 0
    while isinstance(x.op, MOVING):
        moved = {i for i in x.inputs if not isinstance(i.op, Const)}
        if len(moved) != 1:
            break
        chain.append(x)
        source = moved.pop()
        if source.type.size < x.type.size:
            shortest = len(chain)
        x = source
    return chain[:shortest]


def _gathered(source: Value, numbers: np.ndarray, wanted: np.ndarray, name: str) -> Value | None:
    """`source` as a tensor of the elements `wanted`, by a reshape and a transposition."""
    if np.array_equal(numbers.reshape(-1), wanted.reshape(-1)):
        return source if source.shape == wanted.shape else apply(Reshape(wanted.shape), source, name=name)
    b, m, g, d = wanted.shape
    for shape, perm in (((b, g, m, d), (0, 2, 1, 3)), ((b, g, d, m), (0, 3, 1, 2)), ((m, b, g, d), (1, 0, 2, 3))):
        if np.array_equal(numbers.reshape(shape).transpose(perm), wanted):
            full = source if source.shape == shape else apply(Reshape(shape), source, name=f"{name}.split")
            return apply(Transpose(perm), full, name=name)
    return None
