"""W1_i / s_i, b1_i / s_i, W2_i * s_i with s_i = sqrt(r1_i / r2_i): cross-layer equalization (Nagel et al. 2019,
"Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1).

For f with f(s x) = s f(x), s > 0, the two convolutions around f compute the same after channel i of the first is divided
by s_i and input channel i of the second multiplied: r1_i and r2_i, the greatest weights of that channel, become
equal. Chains (pointwise, depthwise, pointwise) are swept until nothing moves.

Weights are quantized per output channel, so for the first convolution any s_i is free; what is gained is that the rows
of the second, and the channels of the activation between, fill one range. Factors are bounded, since r is only
a proxy of the range of an activation, and dead channels are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import AveragePool, Conv, MaxPool, Pad, PadMode, Reduce, Reduction, Reshape
from qcompiler.ir.pointwise import Clip, LeakyRelu

from .constants import Floats, floats, same_dtype

BOUND = 16.0
"""No channel is scaled by more than this, or by less than its inverse."""
SETTLED = 1e-3
SWEEPS = 50


@dataclass
class Layer:
    """Weights [O,kh,kw,C/groups] and bias [O] of a convolution, being scaled."""

    weights: Floats
    bias: Floats | None
    groups: int

    def output_ranges(self) -> Floats:
        """max |w| of each output channel."""
        ranges: Floats = np.abs(self.weights).max(axis=(1, 2, 3))
        return ranges

    def input_ranges(self) -> Floats:
        """max |w| of each input channel."""
        ranges: Floats = np.abs(self._grouped()).max(axis=(1, 2, 3)).reshape(-1)
        return ranges

    def scale_outputs(self, s: Floats) -> None:
        """Multiply output channel i by s_i."""
        self.weights = self.weights * s.reshape(-1, 1, 1, 1)
        self.bias = None if self.bias is None else self.bias * s

    def scale_inputs(self, s: Floats) -> None:
        """Multiply the weights on input channel i by s_i."""
        self.weights = (self._grouped() * s.reshape(self.groups, 1, 1, 1, -1)).reshape(self.weights.shape)

    def _grouped(self) -> Floats:
        return self.weights.reshape(self.groups, -1, *self.weights.shape[1:])


def equalize(graph: Graph, declined: Declined | None = None) -> Graph:
    """Equalize the weight ranges of every two convolutions with nothing but positively homogeneous operators between."""
    layers = {v: layer for v in graph.order if (layer := _layer(v)) is not None}
    pairs = list(_pairs(graph, layers, declined if declined is not None else Declined()))
    total = [np.ones(first.shape[3]) for first, _ in pairs]
    for _ in range(SWEEPS):
        steps = [_equalize_pair(layers[a], layers[b], t) for (a, b), t in zip(pairs, total)]
        if max(steps, default=0.0) < SETTLED:
            break
    changed = {v: layers[v] for pair in pairs for v in pair}
    return _with_layers(graph, changed) if changed else graph


def _layer(v: Value) -> Layer | None:
    if not isinstance(v.op, Conv) or any(floats(i) is None for i in v.inputs[1:]):
        return None
    weights, *bias = (floats(i) for i in v.inputs[1:])
    return None if weights is None else Layer(weights, bias[0] if bias else None, v.op.groups)


def _pairs(graph: Graph, layers: dict[Value, Layer], declined: Declined) -> Iterator[tuple[Value, Value]]:
    """The convolutions with the one that alone reads each, through what commutes with positive scales."""
    for first in layers:
        v, second = first, graph.only_use(first)
        while second is not None and _is_homogeneous(v, second):
            v, second = second, graph.only_use(second)
        if second is None:
            continue
        if isinstance(second.op, Clip):
            declined(second, f"not equalized: a clip at ({second.op.lo:g}, {second.op.hi:g}) does not commute with scales per channel")
        elif second in layers and second.inputs[0] is v:
            yield first, second


def _is_homogeneous(x: Value, v: Value) -> bool:
    """Whether `v` = f(x) with f(s x) = s f(x) for every s > 0 per channel."""
    match v.op:
        case Clip(lo, hi):
            return {lo, hi} <= {-inf, 0.0, inf}
        case LeakyRelu() | MaxPool() | AveragePool():
            return True
        case Reduce(Reduction.mean | Reduction.max | Reduction.sum, axes):
            return len(x.shape) - 1 not in axes
        case Pad(pads, PadMode.constant, 0.0):
            return pads[-1] == (0, 0)
        case Reshape(shape):
            return shape[-1:] == x.shape[-1:]
    return False


def _equalize_pair(first: Layer, second: Layer, total: Floats) -> float:
    """One step for one pair; `total` keeps the product of its factors. Returns the greatest relative change."""
    r1, r2 = first.output_ranges(), second.input_ranges()
    alive = (r1 > 0) & (r2 > 0)
    s = np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0))
    s = np.clip(total * s, 1 / BOUND, BOUND) / total
    total *= s
    first.scale_outputs(1 / s)
    second.scale_inputs(s)
    return float(np.abs(s - 1).max())


def _with_layers(graph: Graph, changed: dict[Value, Layer]) -> Graph:
    """The graph with the scaled constants in place of the old ones."""
    new = dict[Value, Value]()
    for v in graph.order:
        inputs = tuple(new[i] for i in v.inputs)
        if v in changed:
            inputs = (inputs[0], *_constants(v, changed[v]))
        new[v] = v if inputs == v.inputs else Value(v.op, inputs, v.type, v.name)
    return Graph(graph.inputs, tuple(new[v] for v in graph.outputs), graph.output_names)


def _constants(v: Value, layer: Layer) -> tuple[Value, ...]:
    arrays = (layer.weights,) if layer.bias is None else (layer.weights, layer.bias)
    return tuple(same_dtype(a, old, old.name) for a, old in zip(arrays, v.inputs[1:]))
