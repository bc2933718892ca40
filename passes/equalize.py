"""x_c / s_c between layers, with s_c from the ranges that the channels really take: cross-layer equalization.

For f with f(s x) = s f(x), s > 0 per channel, convolutions around f compute the same after output channel c of every
convolution before it is divided by s_c and input channel c of every convolution after it is multiplied (Nagel et al. 2019,
"Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1). There s balances weights. Weights
quantized per output channel do not need that, activations with one scale per tensor do; so s follows measured ranges, as
SmoothQuant does for transformers (Xiao et al. 2023, section 4):

    s_c = (max_v r_vc / R_v)^alpha      r_vc = max |x_c| of value v, R_v = max_c r_vc, over all measured v that share channel c

alpha = 1 would give every channel the whole range and leave all unevenness to the rows of the next weights; less divides it, in half where one
scale serves all output channels of the weights, or where weights have few bits and so feel their rows' unevenness more. Products (gates, SwiGLU)
have tails so heavy that alpha = 1 is better for them: rounding the weights hardly shows beside rounding the product. Where only convolutions with
one channel in each group read a value, alpha = 1 costs nothing if their weights have a scale for each channel, which takes up s exactly.
Channels of different values that must share one s (through pointwise operators, pooling, residual additions, concatenation) are the
connected components of a graph of channels. A component that reaches a graph input or output, or an operator that does not commute
with s, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import AveragePool, Concat, Const, Conv, Input, MaxPool, Pad, PadMode, Reduce, Reduction, Reshape, Resize, Slice
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Mul, Sub

from .calibrate.statistics import Statistics
from .constants import Floats, floats, same_dtype, with_constants

ALPHA, BOUND = 0.75, 16.0
ALPHA_ONE_SCALE = 0.5
ALPHA_FEW_BITS = 0.5
ALPHA_WHOLE, BOUND_WHOLE = 1.0, 64.0  # of products, and of what nothing adds up
"""No channel is scaled by more than this."""


Ints = NDArray[np.int64]


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


def equalize(
    graph: Graph, statistics: Mapping[Value, Statistics], declined: Declined | None = None, per_channel: bool = True, few_bits: bool = False
) -> Graph:
    """The same function with evener activations; `statistics` are those of the stored values, some samples suffice.

    `per_channel`: weights will have a scale for each output channel; `few_bits`: some of them fewer than seven.
    """
    layers = {v: layer for v in graph.order if (layer := _layer(v)) is not None}
    classes = channel_classes(graph)
    s = class_scales(classes, statistics, per_channel, few_bits)
    for v, ids in classes.items():
        if (why := _why_fixed(v, graph, layers)) is not None:
            s[ids] = 1.0
            (declined or Declined())(v, f"channels are not equalized: {why}")
    changed = {v: layer for v, layer in layers.items() if _scale(v, layer, s, classes)}
    return with_constants(graph, {v: _constants(v, layer) for v, layer in changed.items()}) if changed else graph


def channel_classes(graph: Graph) -> dict[Value, Ints]:
    """For every activation, the class of each of its channels: equal numbers must be scaled alike."""
    own, count = dict[Value, Ints](), 0
    for v in filter(_is_activation, graph.order):
        own[v] = np.arange(count, count + v.shape[-1])
        count += v.shape[-1]
    pairs = [(own[v][part], own[i][_picked(v)]) for v in own if commutes(v) for i, part in _sources(v) if i in own]
    rows, columns = (np.concatenate([p[k] for p in pairs] or [np.empty(0, np.int64)]) for k in range(2))
    _, labels = connected_components(coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count)), directed=False)
    return {v: labels[numbers] for v, numbers in own.items()}


def _sources(v: Value) -> Iterator[tuple[Value, slice]]:
    """The operands of a commuting `v`, each with the channels of `v` that it gives."""
    if isinstance(v.op, Mul):
        yield _scaled_factor(v), slice(None)
        return
    start = 0
    for i in v.inputs:
        yield i, slice(start, start + i.shape[-1]) if isinstance(v.op, Concat) else slice(None)
        start += i.shape[-1]


def _scaled_factor(v: Value) -> Value:
    """Of the factors of a product the one that takes the scale: a convolution's result where there is one."""
    return min((i for i in v.inputs if i.shape == v.shape), key=lambda i: not isinstance(i.op, Conv))


def _passes(u: Value, v: Value) -> bool:
    """Whether reader `u` of `v` passes on the scales of its channels."""
    return commutes(u) and (not isinstance(u.op, Mul) or _scaled_factor(u) is v)


def _picked(v: Value) -> slice:
    """The channels of its operand that `v` takes."""
    return v.op.slices[-1] if isinstance(v.op, Slice) else slice(None)


def class_scales(classes: Mapping[Value, Ints], statistics: Mapping[Value, Statistics], per_channel: bool = True, few_bits: bool = False) -> Floats:
    """s per class, in [1/BOUND, 1]; dead channels and those not measured keep 1."""
    reach = np.zeros(1 + max((int(ids.max()) for ids in classes.values() if ids.size), default=0))
    share = ALPHA_ONE_SCALE if not per_channel else ALPHA_FEW_BITS if few_bits else ALPHA
    alpha, bound = np.full(reach.shape, share), np.full(reach.shape, BOUND)
    whole = _read_apart(classes, len(reach)) & per_channel
    for ids in (ids for v, ids in classes.items() if isinstance(v.op, Mul)):
        whole[ids] = True
    alpha[whole], bound[whole] = ALPHA_WHOLE, BOUND_WHOLE
    for v, measured in statistics.items():
        r = np.maximum(np.abs(measured.channel_min), np.abs(measured.channel_max))
        if v in classes and len(r) == len(classes[v]) and r.max() > 0:
            np.maximum.at(reach, classes[v], r / r.max())
    return np.clip(np.where(reach > 0, reach, 1.0) ** alpha, 1 / bound, 1.0)


def _read_apart(classes: Mapping[Value, Ints], count: int) -> NDArray[np.bool_]:
    """Of each class whether convolutions read it, none of which adds its channels to others."""
    apart, added = np.zeros(count, bool), np.zeros(count, bool)
    for v in (v for v in classes if isinstance(v.op, Conv) and v.inputs[0] in classes):
        (apart if v.inputs[1].shape[-1] == 1 else added)[classes[v.inputs[0]]] = True
    return apart & ~added


def _layer(v: Value) -> Layer | None:
    if not isinstance(v.op, Conv) or any(floats(i) is None for i in v.inputs[1:]):
        return None
    weights, *bias = (floats(i) for i in v.inputs[1:])
    return None if weights is None else Layer(weights, bias[0] if bias else None, v.op.groups)


def _is_activation(v: Value) -> bool:
    return v.type.dtype.is_float and not isinstance(v.op, Const) and v.type.rank > 0


def commutes(v: Value) -> bool:
    """Whether `v` = f(x) with f(s x) = s f(x) for every s > 0 per channel of the last axis; of a product, x is one factor.

    Squeeze-and-excitation, whose gate is one number per channel, is left alone: measured, it loses 3 dB with its channels evened.
    """
    match v.op:
        case Clip(lo, hi):
            return {lo, hi} <= {-inf, 0.0, inf}
        case LeakyRelu() | MaxPool() | AveragePool():
            return True
        case Add() | Sub():
            return all(i.shape == v.shape for i in v.inputs)
        case Mul():
            return len(set(v.inputs)) == 2 and all(i.shape == v.shape and not isinstance(i.op, Const) for i in v.inputs)
        case Concat(axis):
            return axis == v.type.rank - 1
        case Slice():
            return True
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
    readers = [u for u in graph.uses[v] if not _passes(u, v) and not (u in layers and u.inputs[0] is v)]
    return f"its reader {type(readers[0].op).__name__} '{readers[0].name}' does not commute with scales" if readers else None


def _scale(v: Value, layer: Layer, s: Floats, classes: Mapping[Value, Ints]) -> bool:
    """Scale the weights of `v` by the factors of its operand and its result; whether any was not 1."""
    before, after = s[classes[v.inputs[0]]] if v.inputs[0] in classes else np.ones(1), s[classes[v]]
    if (before == 1).all() and (after == 1).all():
        return False
    layer.scale_outputs(1 / after)
    layer.scale_inputs(np.broadcast_to(before, v.inputs[0].shape[-1:]))
    return True


def _constants(v: Value, layer: Layer) -> tuple[Value, ...]:
    arrays = (layer.weights,) if layer.bias is None else (layer.weights, layer.bias)
    return tuple(same_dtype(a, old, old.name) for a, old in zip(arrays, v.inputs[1:]))
