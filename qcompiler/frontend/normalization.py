"""Normalizations, written as arithmetic on the channels-last tensor."""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.frontend.convolution import as_2d, from_2d, spatial_rank
from qcompiler.frontend.fold import known_array
from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Conv, Expand, Reduce, Reduction, Reshape, constant
from qcompiler.ir.sequence import Normalize
from qcompiler.ir.types import DType

IMPORTERS = Importers()


@IMPORTERS.register("BatchNormalization")
def batch_normalization(node: Node, x: Value, gain: Value, bias: Value, mean: Value, variance: Value) -> Value:
    """x * m + (bias - mean * m) with m = gain / sqrt(variance + epsilon), in float64 where the parameters are constant."""
    if node.attributes.get("training_mode") or any(node.outputs[1:]):
        raise Unsupported("is in training mode; export the model for inference")
    for p in (gain, bias, mean, variance):
        if p.shape != x.shape[1:2]:
            raise ValueError(f"parameter '{p.name}' {p.type} does not fit operand {x.type}")
    g, b, mu, var = _precise(gain, bias, mean, variance)
    deviation = node.emit(pw.Sqrt(), node.emit(pw.Add(), var, node.constant(node.number("epsilon"), var)))
    factor = node.emit(pw.Div(), g, deviation)
    offset = node.emit(pw.Sub(), b, node.emit(pw.Mul(), mu, factor))
    scaled = node.emit(pw.Mul(), node.channels_last(x), node.cast(factor, x.type.dtype))
    return node.channels_first(node.emit(pw.Add(), scaled, node.cast(offset, x.type.dtype)))


def _precise(*parameters: Value) -> list[Value]:
    """Parameters that are all known, dequantized ones too, in float64, so that folding them loses nothing."""
    known = [a for p in parameters if (a := known_array(p)) is not None]
    if len(known) < len(parameters):
        return list(parameters)
    return [constant(a.astype(np.float64), p.name) for a, p in zip(known, parameters)]


@IMPORTERS.register("InstanceNormalization")
def instance_normalization(node: Node, x: Value, gain: Value, bias: Value) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * gain + bias, mean and variance over the positions of each image and channel."""
    last = node.channels_last(x)
    positions = tuple(range(1, last.type.rank - 1))
    centred = node.emit(pw.Sub(), last, node.emit(Reduce(Reduction.mean, positions), last))
    variance = node.emit(Reduce(Reduction.mean, positions), node.emit(pw.Mul(), centred, centred))
    deviation = node.emit(pw.Sqrt(), node.emit(pw.Add(), variance, node.constant(node.number("epsilon"), x)))
    scaled = node.emit(pw.Mul(), node.emit(pw.Div(), centred, deviation), gain)
    return node.channels_first(node.emit(pw.Add(), scaled, bias))


@IMPORTERS.register("LayerNormalization")
def layer_normalization(node: Node, x: Value, gamma: Value, beta: Value | None = None) -> list[Value]:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over all axes from `axis` on; the mean and 1 / sqrt(variance + epsilon)."""
    axis, epsilon = node.axis(x.type.rank), node.number("epsilon")
    y = normalize_rows(node, x, gamma, beta, axis, True, epsilon)
    return [y, *_moments(node, x, tuple(range(axis, x.type.rank)), epsilon)] if any(node.outputs[1:]) else [y]


def _moments(node: Node, x: Value, axes: tuple[int, ...], epsilon: float) -> list[Value]:
    """Mean and reciprocal standard deviation, in float32."""
    x = node.cast(x, DType.f32)
    mean = node.emit(Reduce(Reduction.mean, axes), x)
    centred = node.emit(pw.Sub(), x, mean)
    variance = node.emit(Reduce(Reduction.mean, axes), node.emit(pw.Mul(), centred, centred))
    return [mean, node.emit(pw.Reciprocal(), node.emit(pw.Sqrt(), node.emit(pw.Add(), variance, node.constant(epsilon, x))))]


@IMPORTERS.register("RMSNormalization")
def rms_normalization(node: Node, x: Value, gamma: Value) -> Value:
    """x / sqrt(mean(x^2) + epsilon) * gamma over all axes from `axis` on."""
    return normalize_rows(node, x, gamma, None, node.axis(x.type.rank), False, node.number("epsilon"))


def normalize_rows(node: Node, x: Value, gamma: Value, beta: Value | None, axis: int, centered: bool, epsilon: float) -> Value:
    """LayerNorm or RMSNorm over all axes of `x` from `axis` on; gamma and beta broadcast to those axes."""
    inner, dtype = x.shape[axis:], x.type.dtype
    flat = (*x.shape[:axis], prod(inner))
    parameters = [_flat_parameter(node, p, inner) for p in (gamma, node.constant(0, gamma) if beta is None else beta)]
    working = DType.f32 if dtype is DType.f16 else dtype
    rows = node.cast(x if x.shape == flat else node.emit(Reshape(flat), x), working)
    y = node.emit(Normalize(epsilon, centered), rows, *(node.cast(p, working) for p in parameters))
    y = node.cast(y, dtype)
    return y if y.shape == x.shape else node.emit(Reshape(x.shape), y)


def _flat_parameter(node: Node, p: Value, inner: tuple[int, ...]) -> Value:
    if len(p.shape) > len(inner):
        if any(d != 1 for d in p.shape[: -len(inner)]):
            raise Unsupported(f"has a parameter '{p.name}' {p.type} that differs between rows; expected one along the normalized axes {inner}")
        p = node.emit(Reshape(p.shape[-len(inner) :]), p)
    full = p if p.shape == inner else node.emit(Expand(inner), p)
    return full if len(full.shape) == 1 else node.emit(Reshape((prod(inner),)), full)


@IMPORTERS.register("GroupNormalization")
def group_normalization(node: Node, x: Value, gain: Value, bias: Value) -> Value:
    """Each group of channels normalized over its channels and positions; gain and bias per channel, before opset 21 per group."""
    groups, channels = node.integer("num_groups"), x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups")
    last = node.channels_last(x)
    apart = node.emit(Reshape((x.shape[0], prod(x.shape[2:]), groups, channels // groups)), last)
    centred = node.emit(pw.Sub(), apart, node.emit(Reduce(Reduction.mean, (1, 3)), apart))
    variance = node.emit(Reduce(Reduction.mean, (1, 3)), node.emit(pw.Mul(), centred, centred))
    deviation = node.emit(pw.Sqrt(), node.emit(pw.Add(), variance, node.constant(node.number("epsilon"), x)))
    whitened = node.emit(Reshape(last.shape), node.emit(pw.Div(), centred, deviation))
    gain, bias = (_per_channel(node, p, groups, channels) for p in (gain, bias))
    return node.channels_first(node.emit(pw.Add(), node.emit(pw.Mul(), whitened, gain), bias))


def _per_channel(node: Node, p: Value, groups: int, channels: int) -> Value:
    """[C], of [C] or of one element per group."""
    if p.shape == (channels,):
        return p
    if p.shape != (groups,):
        raise ValueError(f"parameter '{p.name}' {p.type} has neither one element per channel nor one per group")
    return node.emit(Reshape((channels,)), node.emit(Expand((groups, channels // groups)), node.emit(Reshape((groups, 1)), p)))


@IMPORTERS.register("LpNormalization")
def lp_normalization(node: Node, x: Value) -> Value:
    """x over the sum of its absolute values, or over the root of the sum of its squares, along one axis."""
    axis = node.axis(x.type.rank)
    if node.integer("p") == 1:
        norm = node.emit(Reduce(Reduction.sum, (axis,)), node.emit(pw.Abs(), x))
    else:
        norm = node.emit(pw.Sqrt(), node.emit(Reduce(Reduction.sum, (axis,)), node.emit(pw.Mul(), x, x)))
    smallest = float(np.finfo(x.type.dtype.numpy).tiny)  # 0 / 0 is 0
    return node.emit(pw.Div(), x, node.emit(pw.Clip(lo=smallest), norm))


@IMPORTERS.register("LRN")
def local_response_normalization(node: Node, x: Value) -> Value:
    """x * (bias + alpha * m) ** -beta, m the mean of x^2 over `size` neighbouring channels (Krizhevsky et al. 2012).

    The mean is a 1x1 convolution by a band matrix whose entries are all 0 or 1 / size: exact in int8, and as fast as any
    convolution. What follows it is a function of one tensor, so that it becomes one table.
    """
    rank = spatial_rank(node, x)
    last = as_2d(node, x)
    window = node.emit(Conv(), node.emit(pw.Mul(), last, last), node.constant(_band(last.shape[3], node.integer("size")), x))
    alpha, beta, bias = (node.number(name) for name in ("alpha", "beta", "bias"))
    sums = node.emit(pw.Add(), node.emit(pw.Mul(), window, node.constant(alpha, x)), node.constant(bias, x))
    return from_2d(node, node.emit(pw.Mul(), last, node.emit(pw.Pow(), sums, node.constant(-beta, x))), rank)


def _band(channels: int, size: int) -> np.ndarray:
    """[C,1,1,C]: row c has 1 / size at channels c - floor((size - 1) / 2) to c + ceil((size - 1) / 2)."""
    if size < 1:
        raise ValueError(f"size {size} must be positive")
    if channels > 1 << 13:
        raise Unsupported(f"normalizes over {channels} channels; supported are {1 << 13}")
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    inside = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    return (inside / size).reshape(channels, 1, 1, channels)
