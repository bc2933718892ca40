"""x_c / s_c between layers, with s_c from the ranges that the channels really take: cross-layer equalization.

For f with f(s x) = s f(x), s > 0 per channel, convolutions around f compute the same after output channel c of every
convolution before it is divided by s_c and input channel c of every convolution after it is multiplied (Nagel et al. 2019,
"Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1). There s balances weights. Weights
quantized per output channel do not need that, activations with one scale per tensor do; so s follows measured ranges, as
SmoothQuant does for transformers (Xiao et al. 2023, section 4):

    s_c = (max_v r_vc / R_v)^alpha      r_vc = max |x_c| of value v, R_v = max_c r_vc, over all measured v that share s

alpha = 1 would give every channel the whole range and leave all unevenness to the rows of the next weights; 1/2 divides it.
Values that share s (pointwise operators, pooling, residual additions) are the connected components of a graph; a component that
reaches a graph input or output, or an operator that does not commute with s, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

import networkx as nx
import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import AveragePool, Const, Conv, Input, MaxPool, Pad, PadMode, Reduce, Reduction, Reshape, Resize
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Sub

from .calibrate.statistics import Statistics
from .constants import Floats, floats, same_dtype

ALPHA = 0.5
BOUND = 16.0
"""No channel is scaled by more than this."""


@dataclass
class Layer:
    """Weights [O,kh,kw,C/groups] and bias [O] of a convolution, being scaled."""

    weights: Floats
    bias: Floats | None
    groups: int

    def scale_outputs(self, s: Floats) -> None:
        """Multiply output channel i by s_i."""
        self.weights = self.weights * s.reshape(-1, 1, 1, 1)
        self.bias = None if self.bias is None else self.bias * s

    def scale_inputs(self, s: Floats) -> None:
        """Multiply the weights on input channel i by s_i."""
        grouped = self.weights.reshape(self.groups, -1, *self.weights.shape[1:])
        self.weights = (grouped * s.reshape(self.groups, 1, 1, 1, -1)).reshape(self.weights.shape)


def equalize(graph: Graph, statistics: Mapping[Value, Statistics], declined: Declined | None = None) -> Graph:
    """The same function with evener activations; `statistics` are those of the stored values, some samples suffice."""
    layers = {v: layer for v in graph.order if (layer := _layer(v)) is not None}
    declined = declined if declined is not None else Declined()
    changed: dict[Value, Layer] = {}
    for shared in _sharing(graph, layers):
        why = next((w for v in shared if (w := _why_fixed(v, graph, layers)) is not None), None)
        s = channel_scales([statistics[v] for v in shared if v in statistics])
        if why is not None:
            declined(shared[0], f"channels are not equalized: {why}")
        elif s is not None:
            changed |= _scale(shared, s, graph, layers)
    return _with_layers(graph, changed) if changed else graph


def channel_scales(measured: list[Statistics]) -> Floats | None:
    """s_c, in [1/BOUND, 1]; dead channels keep 1. None where nothing is measured, or nothing uneven."""
    ranges = [np.maximum(np.abs(m.channel_min), np.abs(m.channel_max)) for m in measured]
    relative = [r / r.max() for r in ranges if r.max() > 0]
    if not relative or len({len(r) for r in relative}) > 1:
        return None
    reach = np.max(relative, axis=0)
    s = np.clip(np.where(reach > 0, reach, 1.0) ** ALPHA, 1 / BOUND, 1.0)
    return None if np.allclose(s, s[0]) else s


def _layer(v: Value) -> Layer | None:
    if not isinstance(v.op, Conv) or any(floats(i) is None for i in v.inputs[1:]):
        return None
    weights, *bias = (floats(i) for i in v.inputs[1:])
    return None if weights is None else Layer(weights, bias[0] if bias else None, v.op.groups)


def _sharing(graph: Graph, layers: Mapping[Value, Layer]) -> Iterator[list[Value]]:
    """Activations in groups that must be scaled alike, in execution order; only groups that a convolution writes."""
    sharing = nx.Graph()
    sharing.add_nodes_from(v for v in graph.order if _is_activation(v))
    sharing.add_edges_from((v, i) for v in graph.order if commutes(v) for i in v.inputs)
    position = {v: n for n, v in enumerate(graph.order)}
    for group in nx.connected_components(sharing):
        if any(v in layers for v in group):
            yield sorted(group, key=position.__getitem__)


def _is_activation(v: Value) -> bool:
    return v.type.dtype.is_float and not isinstance(v.op, Const)


def commutes(v: Value) -> bool:
    """Whether `v` = f(x) with f(s x) = s f(x) for every s > 0 per channel of the last axis."""
    match v.op:
        case Clip(lo, hi):
            return {lo, hi} <= {-inf, 0.0, inf}
        case LeakyRelu() | MaxPool() | AveragePool():
            return True
        case Add() | Sub():
            return all(i.shape == v.shape for i in v.inputs)
        case Resize(taps):
            return taps[-1] is None
        case Reduce(Reduction.mean | Reduction.max | Reduction.sum, axes):
            return v.inputs[0].type.rank - 1 not in axes
        case Pad(pads, PadMode.constant, 0.0):
            return pads[-1] == (0, 0)
        case Reshape(shape):
            return shape[-1:] == v.inputs[0].shape[-1:]
    return False


def _why_fixed(v: Value, graph: Graph, layers: Mapping[Value, Layer]) -> str | None:
    """Why the scale of `v` cannot change, or None."""
    if isinstance(v.op, Input) or v in graph.outputs:
        return f"'{v.name}' is an input or output of the network"
    if isinstance(v.op, Const) or not (v in layers or commutes(v)):
        return f"{type(v.op).__name__} '{v.name}' does not commute with scales"
    readers = [u for u in graph.uses[v] if not commutes(u) and not (u in layers and u.inputs[0] is v)]
    return f"its reader {type(readers[0].op).__name__} '{readers[0].name}' does not commute with scales" if readers else None


def _scale(shared: list[Value], s: Floats, graph: Graph, layers: Mapping[Value, Layer]) -> dict[Value, Layer]:
    """Divide the channels of every shared value by `s`; the layers that changed."""
    writers = [v for v in shared if v in layers]
    readers = [u for v in shared for u in graph.uses[v] if u in layers]
    for v in writers:
        layers[v].scale_outputs(1 / s)
    for u in readers:
        layers[u].scale_inputs(s)
    return {v: layers[v] for v in (*writers, *readers)}


def _with_layers(graph: Graph, changed: Mapping[Value, Layer]) -> Graph:
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
