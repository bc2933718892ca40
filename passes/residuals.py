"""Residual additions in the accumulator: which convolutions take the other operand of the addition after them.

    y = conv(x, w) + r        acc + m_o (r - z_r)        m_o = S_r / (S_x S_w[o]), an integer by choice of S_w (`quantize_weights`)

Nothing is rounded between the convolution and the addition: one requantization and its error less than if the convolution's
result were stored, and fewer instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv
from qcompiler.ir.pointwise import Add
from qcompiler.ir.types import Quantization

LEAST_MULTIPLIER = 8
"""Below this, rounding m down would coarsen the weights by more than an eighth: storing the result is better."""


@dataclass(frozen=True)
class Residual:
    """`addition` = convolution + `other`."""

    addition: Value
    other: Value


def residuals(graph: Graph) -> dict[Value, Residual]:
    """Convolutions of constant weights read by one addition alone; of two that meet there, the one computed last."""
    found: dict[Value, Residual] = {}
    for v in graph.order:
        if isinstance(v.op, Add) and len(set(v.inputs)) == 2:
            hosts = [(x, other) for x, other in (v.inputs, v.inputs[::-1]) if _takes(graph, x, other)]
            if hosts:
                x, other = max(hosts, key=lambda pair: graph.order.index(pair[0]))
                found[x] = Residual(v, other)
    return found


def _takes(graph: Graph, x: Value, other: Value) -> bool:
    return (
        isinstance(x.op, Conv)
        and graph.only_use(x) is not None
        and isinstance(x.inputs[1].op, Const)
        and not isinstance(other.op, Const)
        and x.shape == other.shape
    )


def is_exact(v: Value, x: Quantization, other: Quantization) -> bool:
    """Whether every live channel of convolution `v` has a multiplier of at least `LEAST_MULTIPLIER`."""
    assert isinstance(v.inputs[1].op, Const)
    w = v.inputs[1].op.data.astype(np.float64)
    greatest = np.abs(w).reshape(w.shape[0], -1).max(1)
    return bool((other.scale[0] * 127 >= LEAST_MULTIPLIER * x.scale[0] * greatest).all())
