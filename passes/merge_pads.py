"""conv(pad_0(x)) = conv'(x), and so for pools: zero padding becomes part of the sliding window.

Average pooling counts such padding in its divisor. Max pooling pads with what never wins, so the merge is exact where
the padding value is no greater than any element and every window sees at least one element.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import AveragePool, Concat, Conv, MaxPool, Pad, PadMode, Pads, Reshape, Softmax, Transpose
from qcompiler.ir.pointwise import Clip, HardSigmoid, Sigmoid


def merge_pads(graph: Graph, declined: Declined | None = None) -> Graph:
    """Merge `Pad` into the convolutions and pools that read it."""
    return rewrite(graph, RULES, declined)


def merge_pad(v: Value, sweep: Sweep) -> Value | None:
    """Conv, AveragePool or MaxPool of a Pad, without the Pad."""
    if not (isinstance(v.op, (Conv, AveragePool, MaxPool)) and isinstance(v.inputs[0].op, Pad)):
        return None
    p = v.inputs[0].op
    if p.mode != PadMode.constant or any(map(any, (p.pads[0], p.pads[3]))) or any(n < 0 for pair in p.pads for n in pair):
        return sweep.declined(v.inputs[0], f"{p.mode.name} padding {p.pads} cannot become part of a window")
    match v.op:
        case MaxPool() if not _never_wins(v.op, p, v.inputs[0].inputs[0]):
            return sweep.declined(v.inputs[0], f"padding with {p.value} could win a maximum")
        case Conv() | AveragePool() if p.value != 0:
            return sweep.declined(v.inputs[0], f"padding with {p.value} instead of 0")
    merged = _with_pads(v.op, (p.pads[1], p.pads[2]))
    return apply(merged, v.inputs[0].inputs[0], *v.inputs[1:], name=v.name)


def _with_pads(op: Conv | AveragePool | MaxPool, extra: Pads) -> Conv | AveragePool | MaxPool:
    if isinstance(op, AveragePool):
        return replace(op, pads=_sum(op.pads, extra), counted_pads=_sum(op.counted_pads, extra))
    return replace(op, pads=_sum(op.pads, extra))


def _sum(a: Pads, b: Pads) -> Pads:
    return tuple((p + r, q + s) for (p, q), (r, s) in zip(a, b))


def _never_wins(op: MaxPool, p: Pad, x: Value) -> bool:
    merged = _sum(op.pads, (p.pads[1], p.pads[2]))
    reach = [d * (k - 1) for d, k in zip(op.dilations, op.kernel)]
    dense = all(d == 1 or not any(pair) for d, pair in zip(op.dilations, merged))
    return p.value <= lower_bound(x) and dense and all(max(pair) <= r for pair, r in zip(merged, reach))


def lower_bound(v: Value) -> float:
    """A number that no element of `v` is below."""
    match v:
        case Value(Clip(lo)):
            return lo
        case Value(Sigmoid() | HardSigmoid() | Softmax(log=False)):
            return 0.0
        case Value(MaxPool() | Transpose() | Reshape() | Concat()):
            return min(lower_bound(i) for i in v.inputs)
    return -inf


RULES: tuple[Rule, ...] = (merge_pad,)
