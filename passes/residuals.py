"""Residual additions in the accumulator: which convolutions take the other operand of the addition after them.

    y = conv(x, w) + r        acc + m_o (r - z_r)        m_o = S_r / (S_x S_w[o]), an integer by choice of S_w (`quantize_weights`)

Nothing is rounded between the convolution and the addition: one requantization and its error less than if the convolution's
result were stored, and fewer instructions.

Fine streams. What is passed on by one addition after the other collects a rounding error at each. So the operand r of such an
addition is also kept as what a requantization has before its last shift: 16 bits, steps of S_r / 64 (`numerics.requantize`). Convolutions read
the copy of 8 bits, which costs that shift; the addition reads the fine one:

    acc + ((m_o r_fine) >> 6)

It pays where r is rounded at about the steps of the sum y that it goes into: rounding r adds S_r^2 / 12 to the S_y^2 / 12 that readers of
the sum bear in any case. Where r is `FINER` times finer than the sum, 8 bits are fine enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv
from qcompiler.ir.pointwise import Add, Clip
from qcompiler.ir.types import Quantization
from qcompiler.numerics.requantize import FRACTION_BITS

LEAST_MULTIPLIER = 8
"""Below this, rounding m down would coarsen the weights by more than an eighth: storing the result is better."""
FINER = 2.0
"""An operand so much finer than the sum adds less than a quarter to the variance of its rounding."""


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


def fine_quantization(q: Quantization) -> Quantization:
    """That of a fine stream beside its copy `q`: |r| <= 255 * 64 < 2^14, so that no requantization saturates before the copy does."""
    return Quantization.per_tensor(q.scale[0] / (1 << FRACTION_BITS), 0, 16)


def fine_streams(graph: Graph, added: Mapping[Value, Residual], quant: Mapping[Value, Quantization]) -> frozenset[Value]:
    """The operands of the additions in accumulators (`added`, by their convolutions) that are worth 16 bits."""
    hosted = {r.addition for r in added.values()}
    return frozenset(r.other for r in added.values() if _can_be_fine(graph, r.other, hosted, quant) and _is_felt(graph, r, quant))


def _can_be_fine(graph: Graph, v: Value, hosted: set[Value], quant: Mapping[Value, Quantization]) -> bool:
    """Whether `v` is rounded from the accumulator of a convolution to an ordinary quantization of 8 bits or fewer."""
    inner = v.inputs[0] if isinstance(v.op, Clip) and graph.only_use(v.inputs[0]) is not None else v
    q = quant.get(v)
    made = isinstance(inner.op, Conv) or inner in hosted
    return made and v not in graph.outputs and q is not None and q.bits <= 8 and q.levels is None


def _is_felt(graph: Graph, r: Residual, quant: Mapping[Value, Quantization]) -> bool:
    """Whether rounding the operand shows beside rounding the sum."""
    user = graph.only_use(r.addition)
    total = quant.get(user if user is not None and isinstance(user.op, Clip) else r.addition)
    return total is not None and (total.bits > 8 or quant[r.other].scale[0] * FINER > total.scale[0])
