"""Interpreter kernels of convolution, pooling, products, reductions and resize; see `interpret`.

Windows are strided slices of the padded operand, one per tap of the kernel, so that only basic slicing and matmul are
needed and every array namespace will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce

import numpy as np

from . import ops
from .interpret_movement import Array, Kernel, Namespace, pad, take


def pad_spatial(xp: Namespace, x: Array, pads: ops.Pads, value: float) -> Array:
    """`x` [N,H,W,C] with H and W padded by `value`."""
    return pad(ops.Pad(((0, 0), *pads, (0, 0)), value=value), xp, x) if any(map(any, pads)) else x


def taps(x: Array, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Iterator[Array]:
    """For each kernel position, row by row, the elements of the padded `x` [N,H,W,C] that it meets: [N,OH,OW,C]."""
    out = [ops.window_size(x.shape[1 + i], kernel[i], strides[i], (0, 0), dilations[i]) for i in range(2)]
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            begin = (row * dilations[0], column * dilations[1])
            h, w = (slice(begin[i], begin[i] + (out[i] - 1) * strides[i] + 1, strides[i]) for i in range(2))
            yield x[:, h, w, :]


def conv(op: ops.Conv, xp: Namespace, x: Array, w: Array, *bias: Array) -> Array:
    """im2col and one matrix product per group; depthwise as a sum over taps."""
    windows = taps(pad_spatial(xp, x, op.pads, 0), tuple(w.shape[1:3]), op.strides, op.dilations)
    y = _depthwise(xp, windows, w) if w.shape[3] == 1 and op.groups > 1 else _grouped(xp, windows, w, op.groups)
    return y + bias[0] if bias else y


def _depthwise(xp: Namespace, windows: Iterator[Array], w: Array) -> Array:
    """Sum over taps of x [N,OH,OW,C,1] * w [C,O/C]."""
    per_tap = xp.reshape(w, (w.shape[0], -1))
    products = (t[..., None] * xp.reshape(per_tap[:, i], (t.shape[3], -1)) for i, t in enumerate(windows))
    y = reduce(lambda a, b: a + b, products)
    return xp.reshape(y, (*y.shape[:3], w.shape[0]))


def _grouped(xp: Namespace, windows: Iterator[Array], w: Array, groups: int) -> Array:
    """[G, N*OH*OW, taps*C/G] @ [G, taps*C/G, O/G]."""
    x = xp.stack(list(windows), axis=3)
    n, oh, ow, count, channels = x.shape
    rows = xp.permute_dims(xp.reshape(x, (n * oh * ow, count, groups, channels // groups)), (2, 0, 1, 3))
    columns = xp.permute_dims(xp.reshape(w, (groups, w.shape[0] // groups, -1)), (0, 2, 1))
    y = xp.reshape(rows, (groups, n * oh * ow, columns.shape[1])) @ columns
    return xp.reshape(xp.permute_dims(y, (1, 0, 2)), (n, oh, ow, w.shape[0]))


def conv_transpose(op: ops.ConvTranspose, xp: Namespace, x: Array, w: Array, *bias: Array) -> Array:
    """A convolution of the operand, zeros put between its elements, by the kernel turned half round."""
    kernel = tuple(w.shape[1:3])
    reach = [op.dilations[i] * (kernel[i] - 1) for i in range(2)]
    pads = tuple((reach[i] - op.pads[i][0], reach[i] - op.pads[i][1] + op.output_padding[i]) for i in range(2))
    grouped = xp.reshape(xp.flip(w, axis=(1, 2)), (op.groups, w.shape[0] // op.groups, *w.shape[1:]))
    turned = xp.reshape(xp.permute_dims(grouped, (0, 4, 2, 3, 1)), (-1, *kernel, w.shape[0] // op.groups))
    return conv(ops.Conv((1, 1), pads, op.dilations, op.groups), xp, _spread(xp, x, op.strides), turned, *bias)


def _spread(xp: Namespace, x: Array, strides: tuple[int, int]) -> Array:
    """Zeros between the elements of H and W, stride - 1 of them, none behind the last."""
    n, h, w, c = x.shape
    sh, sw = strides
    apart = pad(ops.Pad(((0, 0), (0, 0), (0, sh - 1), (0, 0), (0, sw - 1), (0, 0))), xp, xp.reshape(x, (n, h, 1, w, 1, c)))
    return xp.reshape(apart, (n, h * sh, w * sw, c))[:, : (h - 1) * sh + 1, : (w - 1) * sw + 1, :]


def matmul(op: ops.MatMul, xp: Namespace, a: Array, b: Array) -> Array:
    """numpy's matmul."""
    return xp.matmul(a, b)


def lowest(xp: Namespace, x: Array) -> float | int:
    """What never wins a maximum over elements like those of `x`."""
    return -float("inf") if xp.isdtype(x.dtype, "real floating") else int(xp.iinfo(x.dtype).min)


def max_pool(op: ops.MaxPool, xp: Namespace, x: Array) -> Array:
    """Maximum over windows; padding never wins."""
    padded = pad_spatial(xp, x, op.pads, lowest(xp, x))
    return reduce(xp.maximum, taps(padded, op.kernel, op.strides, op.dilations))


def average_pool(op: ops.AveragePool, xp: Namespace, x: Array) -> Array:
    """Sum over windows by the number of counted elements."""
    total = reduce(lambda a, b: a + b, taps(pad_spatial(xp, x, op.pads, 0), op.kernel, op.strides, op.dilations))
    return total / xp.astype(xp.asarray(op.divisors(tuple(x.shape))), x.dtype)


def reduce_(op: ops.Reduce, xp: Namespace, x: Array) -> Array:
    """Sum, mean, maximum or minimum; the element type stays."""
    if not op.axes:
        return x
    kwargs = {"dtype": x.dtype} if op.kind is ops.Reduction.sum else {}
    return xp.astype(getattr(xp, op.kind.value)(x, axis=op.axes, keepdims=op.keepdims, **kwargs), x.dtype)


def arg_max(op: ops.ArgMax, xp: Namespace, x: Array) -> Array:
    """Indices of the greatest; of one the first maximum, or the last: the first of the flipped operand."""
    if op.k > 1:
        order = xp.argsort(-x, axis=op.axis, stable=True)
        return xp.astype(xp.take(order, xp.arange(op.k), axis=op.axis), xp.int64)
    if not op.last:
        return xp.astype(xp.argmax(x, axis=op.axis, keepdims=op.keepdims), xp.int64)
    turned = xp.argmax(xp.flip(x, axis=op.axis), axis=op.axis, keepdims=op.keepdims)
    return xp.astype(x.shape[op.axis] - 1 - turned, xp.int64)


def softmax(op: ops.Softmax, xp: Namespace, x: Array) -> Array:
    """exp(x - max) / sum, or x - max - log(sum)."""
    shifted = x - xp.max(x, axis=op.axis, keepdims=True)
    total = xp.sum(xp.exp(shifted), axis=op.axis, keepdims=True)
    return shifted - xp.log(total) if op.log else xp.exp(shifted) / total


def resize(op: ops.Resize, xp: Namespace, x: Array) -> Array:
    """Two taps, axis after axis."""
    for axis, table in enumerate(op.taps):
        if table is not None:
            x = _interpolate(xp, x, axis, *(np.asarray(t) for t in table))
    return x


def _interpolate(xp: Namespace, x: Array, axis: int, i0: np.ndarray, i1: np.ndarray, t: np.ndarray) -> Array:
    """(1 - t) x[i0] + t x[i1]; only a copy where all t are 0."""
    if not t.any():
        return take(xp, x, i0, axis)
    weight = xp.asarray(t.astype(np.float32).reshape((-1, *[1] * (x.ndim - axis - 1))))
    return xp.astype((1 - weight) * take(xp, x, i0, axis) + weight * take(xp, x, i1, axis), x.dtype)


KERNELS: Mapping[type[ops.Op], Kernel] = {
    ops.Conv: conv,
    ops.ConvTranspose: conv_transpose,
    ops.MatMul: matmul,
    ops.MaxPool: max_pool,
    ops.AveragePool: average_pool,
    ops.Reduce: reduce_,
    ops.ArgMax: arg_max,
    ops.Softmax: softmax,
    ops.Resize: resize,
}
