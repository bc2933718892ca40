"""Interpreter kernels that move elements of any type; see `interpret`. Each takes the operator, the namespace, the arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import ops
from .types import DType

Array = Any
"""An array of the namespace in use (numpy's, torch's ...)."""

Namespace = Any
"""numpy, or a module that follows the array API standard (array_api_compat.torch ...)."""

Kernel = Callable[..., Array]
"""``kernel(op, xp, *arrays) -> array``."""


def dtype_in(xp: Namespace, dtype: DType) -> Any:
    """The namespace's own dtype object."""
    return getattr(xp, dtype.value)


def take(xp: Namespace, x: Array, indices: np.ndarray, axis: int) -> Array:
    """Elements of `x` at a constant 1-D table of non-negative indices along `axis`."""
    return xp.take(x, xp.asarray(indices.astype(np.int64)), axis=axis)


def transpose(op: ops.Transpose, xp: Namespace, x: Array) -> Array:
    """Axes permuted."""
    return xp.permute_dims(x, op.perm)


def reshape(op: ops.Reshape, xp: Namespace, x: Array) -> Array:
    """Same elements, other shape."""
    return xp.reshape(x, op.shape)


def expand(op: ops.Expand, xp: Namespace, x: Array) -> Array:
    """Broadcast; numpy gives a view."""
    return xp.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), op.shape))


def tile(op: ops.Tile, xp: Namespace, x: Array) -> Array:
    """Repeated along each axis."""
    return xp.tile(x, op.repeats)


def concat(op: ops.Concat, xp: Namespace, *xs: Array) -> Array:
    """Joined along an axis."""
    return xp.concat(list(xs), axis=op.axis)


def slice_(op: ops.Slice, xp: Namespace, x: Array) -> Array:
    """Strided slices; a negative step by a table of indices, for torch has none."""
    forward = tuple(s if s.step > 0 else slice(None) for s in op.slices)
    y = x[forward]
    for axis, (a, b, step) in enumerate(zip(op.starts, op.stops, op.steps)):
        if step < 0:
            y = take(xp, y, np.arange(a, b, step), axis)
    return y


def pad(op: ops.Pad, xp: Namespace, x: Array) -> Array:
    """Grow by constants (concat) or by a table of source indices (take); negative amounts crop first."""
    for axis, (before, after) in enumerate(op.pads):
        if op.mode is not ops.PadMode.constant:
            x = _pad_from_inside(op.mode, xp, x, axis, before, after)
        elif before or after:
            x = _pad_constant(xp, _crop(x, axis, before, after), axis, max(before, 0), max(after, 0), op.value)
    return x


def _crop(x: Array, axis: int, before: int, after: int) -> Array:
    keep = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    return x[tuple(keep if i == axis else slice(None) for i in range(x.ndim))]


def _pad_constant(xp: Namespace, x: Array, axis: int, before: int, after: int, value: float) -> Array:
    def block(size: int) -> Array:
        return xp.full((*x.shape[:axis], size, *x.shape[axis + 1 :]), value, dtype=x.dtype)

    return xp.concat([block(before), x, block(after)], axis=axis)


def _pad_from_inside(mode: ops.PadMode, xp: Namespace, x: Array, axis: int, before: int, after: int) -> Array:
    source = np.arange(x.shape[axis])[max(-before, 0) : x.shape[axis] - max(-after, 0)]
    grown: np.ndarray = np.pad(source, (max(before, 0), max(after, 0)), mode=mode.value)
    return take(xp, x, grown, axis)


def gather(op: ops.Gather, xp: Namespace, x: Array, indices: Array) -> Array:
    """Elements at computed indices; negative ones count from the end."""
    size = x.shape[op.axis]
    flat = xp.astype(xp.reshape(indices, (-1,)), xp.int64)
    flat = xp.where(flat < 0, flat + size, flat)
    taken = xp.take(x, flat, axis=op.axis)
    return xp.reshape(taken, (*x.shape[: op.axis], *indices.shape, *x.shape[op.axis + 1 :]))


def cast(op: ops.Cast, xp: Namespace, x: Array) -> Array:
    """Converted; to bool by comparison with zero."""
    return x != 0 if op.dtype is DType.bool and x.dtype != xp.bool else xp.astype(x, dtype_in(xp, op.dtype))


def integers(op: ops.Integers, xp: Namespace, x: Array) -> Array:
    """Of the same width, moved by half the range where one has a sign."""
    to = dtype_in(xp, op.dtype)
    half = 1 << (8 * op.dtype.numpy.itemsize - 1)
    return x if x.dtype == to else xp.astype(xp.astype(x, xp.int32) + (-half if op.dtype.numpy.kind == "i" else half), to)


def where(op: ops.Where, xp: Namespace, condition: Array, a: Array, b: Array) -> Array:
    """One or the other by a condition."""
    return xp.where(condition, a, b)


KERNELS: Mapping[type[ops.Op], Kernel] = {
    ops.Transpose: transpose,
    ops.Reshape: reshape,
    ops.Expand: expand,
    ops.Tile: tile,
    ops.Concat: concat,
    ops.Slice: slice_,
    ops.Pad: pad,
    ops.Gather: gather,
    ops.Cast: cast,
    ops.Integers: integers,
    ops.Where: where,
}
