"""Scales of channels pass through attention: those of v into the layer after it, those of q against those of k.

    softmax((q t)(k / t)^T) (v / s) (s W) = softmax(q k^T) v W        s and t > 0 per head and channel

s and t make the ranges of channels alike in each of the three tensors, which have one scale each:

    s = (r_v / max r_v)^(1/2)            t = (r_k / max r_k)^(1/4) / (r_q / max r_q)^(1/4)        r = max |x| of the channel

that is SmoothQuant's rule (Xiao et al. 2023, section 4), for q and k each taking half. They are folded into the dense layers before and after,
as in cross-layer equalization (`equalize`). Channels that a rotary embedding turns into each other share t.

Common factors of all channels are chosen so that q, k and v have the same greatest element: they may be slices of one tensor, with one scale.

Constants pass, too: softmax does not see what is added to all logits of a row, and its weights sum to one. So with c the middle of the range
of each channel, k and v are centered first:

    softmax(q (k - c_k)^T) = softmax(q k^T)            softmax(..) (v - c_v) W + c_v W = softmax(..) v W
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import interpret
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import Conv, Reshape, Slice
from qcompiler.ir.sequence import Attention, Rotate

from .calibrate.statistics import Statistics
from .constants import Floats, floats, is_dense, same_dtype, with_constants

BOUND = 16.0
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Where an operand of attention comes from: the convolution, and which of its output channels each [head, channel] is."""

    conv: Value
    ids: Ids
    rotation: Rotate | None


def equalize_attention(graph: Graph, statistics: Mapping[Value, Statistics], declined: Declined | None = None) -> Graph:
    """The same function with evener q, k and v; `statistics` of the stored values."""
    reasons = declined if declined is not None else Declined()
    factors = _Factors()
    for v in graph.order:
        if isinstance(v.op, Attention):
            sources = [source(graph, v, i) for i in v.inputs[:3]]
            if any(s is None for s in sources):
                reasons(v, "its channels are not equalized: an operand is not the result of a dense layer alone")
                continue
            q, k, values = (s for s in sources if s is not None)
            greatest = _balance_logits(factors, q, k, statistics)
            _even_values(factors, graph, v, values, statistics, greatest, reasons)
    return factors.applied(graph)


class _Factors:
    """What output and input channels of convolutions are to be multiplied by, after constants were taken from them."""

    def __init__(self) -> None:
        self.outputs: dict[Value, Floats] = {}
        self.inputs: dict[Value, Floats] = {}
        self.taken: dict[Value, Floats] = {}
        self.given: dict[Value, Floats] = {}

    def center(self, s: Source, center: Floats) -> None:
        """Take `center` [heads, channels] from the outputs."""
        self.taken.setdefault(s.conv, np.zeros(s.conv.shape[-1]))[s.ids.ravel()] += center.ravel()

    def give_inputs(self, conv: Value, constant: Floats) -> None:
        """Add `constant` [C] to what `conv` reads, before its inputs are multiplied."""
        self.given[conv] = self.given.get(conv, np.zeros(len(constant))) + constant

    def multiply_outputs(self, s: Source, factor: Floats) -> None:
        """`factor` [heads, channels]."""
        self.outputs.setdefault(s.conv, np.ones(s.conv.shape[-1]))[s.ids.ravel()] *= factor.ravel()

    def multiply_inputs(self, conv: Value, factor: Floats) -> None:
        """`factor` [C]."""
        self.inputs[conv] = self.inputs.get(conv, np.ones(len(factor))) * factor

    def applied(self, graph: Graph) -> Graph:
        """The graph with the convolutions' constants multiplied."""
        if not self.outputs and not self.inputs:
            return graph
        changed = self.outputs.keys() | self.inputs.keys() | self.taken.keys()
        return with_constants(graph, {v: self._constants(v) for v in changed})

    def _constants(self, v: Value) -> tuple[Value, ...]:
        w, *rest = (floats(c) for c in v.inputs[1:])
        assert w is not None
        bias = rest[0] if rest and rest[0] is not None else np.zeros(w.shape[0])
        out = self.outputs.get(v, np.ones(w.shape[0]))
        bias = bias - self.taken.get(v, 0.0) + (w * self.given.get(v, np.zeros(w.shape[3]))).sum((1, 2, 3))
        weights = w * out.reshape(-1, 1, 1, 1) * self.inputs.get(v, np.ones(w.shape[3]))
        name = v.inputs[2].name if rest else f"{v.name}.bias"
        return same_dtype(weights, v.inputs[1], v.inputs[1].name), same_dtype(bias * out, v.inputs[1], name)


def source(graph: Graph, attention: Value, operand: Value) -> Source | None:
    """The dense layer behind an operand, through reshapes, slices and a rotation; None where anything else reads it or is between."""
    chain, rotation = [operand], None
    while not isinstance(chain[-1].op, Conv):
        x = chain[-1]
        if not isinstance(x.op, (Reshape, Slice, Rotate)) or len(set(graph.uses[x])) != 1 or x in graph.outputs:
            return None
        rotation = x.op if isinstance(x.op, Rotate) else rotation
        chain.append(x.inputs[0])
    conv = chain[-1]
    if conv in graph.outputs or not is_dense(conv) or not _leads_only_to(graph, conv, attention):
        return None
    ids = np.broadcast_to(np.arange(conv.shape[-1]), conv.shape)
    for x in reversed(chain[:-1]):
        ids = ids if isinstance(x.op, Rotate) else interpret.compute(x, [ids])
    return Source(conv, np.asarray(ids[0, 0]), rotation)


def _leads_only_to(graph: Graph, v: Value, attention: Value) -> bool:
    return all(u is attention or (isinstance(u.op, (Reshape, Slice, Rotate)) and _leads_only_to(graph, u, attention)) for u in graph.uses[v])


def _range(s: Source, statistics: Mapping[Value, Statistics]) -> tuple[Floats, Floats] | None:
    """Least and greatest of each channel, [heads, channels]; None where they were not measured."""
    measured = statistics.get(s.conv)
    if measured is None or len(measured.channel_max) != s.conv.shape[-1]:
        return None
    return measured.channel_min[s.ids], measured.channel_max[s.ids]


def _relative(reach: Floats) -> Floats:
    return np.asarray(np.maximum(reach / max(reach.max(), 1e-30), 1e-6))


def _balance_logits(factors: _Factors, q: Source, k: Source, statistics: Mapping[Value, Statistics]) -> float | None:
    """Even out q against k; the greatest element of both afterwards, None where they were not measured."""
    range_q, range_k = _range(q, statistics), _range(k, statistics)
    if range_q is None or range_k is None:
        return None
    center = np.zeros_like(range_k[0]) if k.rotation is not None else (range_k[0] + range_k[1]) / 2
    factors.center(k, center)
    width_q, width_k = np.maximum(range_q[1], -range_q[0]), np.maximum(range_k[1] - center, center - range_k[0])
    of_q, of_k = _relative(width_q), _relative(width_k)
    shared = of_q.reshape(of_k.shape[0], -1, of_k.shape[1]).max(1)  # of the query heads that read one key head
    t = np.clip((of_k / shared) ** 0.25, 1 / BOUND, BOUND)
    for rotation in (q.rotation, k.rotation):
        if rotation is not None:
            t = np.sqrt(t * t[:, list(rotation.partners)])
    group = len(of_q) // len(t)
    greatest_q, greatest_k = (float((r * f).max()) for r, f in ((width_q, np.repeat(t, group, 0)), (width_k, 1 / t)))
    t = t * np.sqrt(greatest_k / greatest_q)
    factors.multiply_outputs(q, np.repeat(t, group, 0))
    factors.multiply_outputs(k, 1 / t)
    return float(np.sqrt(greatest_q * greatest_k))


def _even_values(
    factors: _Factors,
    graph: Graph,
    attention: Value,
    v: Source,
    statistics: Mapping[Value, Statistics],
    greatest: float | None,
    reasons: Declined,
) -> None:
    seen, layers = _range(v, statistics), layers_after(graph, attention)
    if seen is None or layers is None:
        reasons(attention, "its values' channels are not equalized: what reads it is no dense layer")
        return
    lo, hi = seen
    s = np.clip(_relative((hi - lo) / 2) ** 0.5, 1 / BOUND, 1.0)
    if greatest is not None:
        s = s * float(((hi - lo) / 2 / s).max()) / greatest
    factors.center(v, (lo + hi) / 2)
    factors.multiply_outputs(v, 1 / s)
    group = attention.shape[2] // len(s)
    scales, centers = (np.repeat(x, group, 0).ravel() for x in (s, (lo + hi) / 2))
    for layer, ids in layers:
        factors.multiply_inputs(layer, scales[ids])
        factors.give_inputs(layer, centers[ids])


def layers_after(graph: Graph, attention: Value) -> Sequence[tuple[Value, Ids]] | None:
    """The dense layers that read attention's result through reshapes, each with the head and channel (as one number) of its inputs."""
    found = defaultdict[Value, list[Ids]](list)
    pending = [(attention, np.broadcast_to(np.arange(np.prod(attention.shape[2:])).reshape(attention.shape[2:]), attention.shape))]
    while pending:
        x, ids = pending.pop()
        if x in graph.outputs:
            return None
        for u in graph.uses[x]:
            if isinstance(u.op, Reshape):
                pending.append((u, interpret.compute(u, [ids])))
            elif is_dense(u) and u.inputs[0] is x and (ids == ids[:1, :1, :1]).all():
                found[u].append(ids[0, 0, 0])
            else:
                return None
    return [(layer, each[0]) for layer, each in found.items()]
