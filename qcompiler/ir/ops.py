"""Operators of the float stage, and those that move data in any stage. One frozen dataclass per operator.

Attributes are the dataclass fields; operands are `Value.inputs`, described in each docstring. `infer` gives the result
type and raises ValueError where operands do not fit. Spatial operators are **channels-last** (N, H, W, C): importers of
channels-first formats put `Transpose` around them and a pass moves those away. One-dimensional ones have H = 1.
Batch normalization, dense layers, splits and the like have no operator of their own: importers write them in these terms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .graph import Value
from .types import DType, TensorType

Pads = tuple[tuple[int, int], ...]
"""(before, after) per axis."""


@dataclass(frozen=True)
class Op:
    """Base of all operators."""

    def infer(self, *operands: TensorType) -> TensorType:
        """The result type for these operand types."""
        raise NotImplementedError(type(self).__name__)


# --- sources ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Input(Op):
    """A graph input of a declared type."""

    type: TensorType

    __eq__ = object.__eq__  # not that of `Op`, for which all inputs would be equal
    __hash__ = object.__hash__

    def infer(self) -> TensorType:
        return self.type


@dataclass(frozen=True, eq=False)
class Const(Op):
    """A constant; `data` is never written to. `type` defaults to the array's own."""

    data: NDArray[np.generic]
    type: TensorType | None = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def infer(self) -> TensorType:
        return self.type or TensorType(self.data.shape, DType.of(self.data.dtype))


def constant(data: NDArray[np.generic] | float, name: str, type: TensorType | None = None) -> Value:
    """A `Const` value; Python floats become float32 scalars."""
    array = np.asarray(data, np.float32) if isinstance(data, float) else np.asarray(data)
    op = Const(array, type)
    return Value(op, (), op.infer(), name)


def const_data(v: Value) -> NDArray[np.generic] | None:
    """The array of a constant value, or None."""
    return v.op.data if isinstance(v.op, Const) else None


# --- movement: any element type, quantization kept ------------------------------------------------------------------


@dataclass(frozen=True)
class Transpose(Op):
    """Axis i of the result is axis `perm[i]` of the operand."""

    perm: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if sorted(self.perm) != list(range(x.rank)):
            raise ValueError(f"perm {self.perm} is no permutation of {x.rank} axes")
        quant = x.quant
        if quant is not None and quant.axis is not None:
            quant = replace(quant, axis=self.perm.index(quant.axis))
        return TensorType(tuple(x.shape[p] for p in self.perm), x.dtype, quant)


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in row-major order in another `shape` (all dimensions explicit)."""

    shape: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        if int(np.prod(self.shape, dtype=np.int64)) != x.size:
            raise ValueError(f"cannot reshape {x.shape} to {self.shape}")
        return x.with_shape(*self.shape)


@dataclass(frozen=True)
class Expand(Op):
    """Broadcast to `shape` (numpy rules)."""

    shape: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*np.broadcast_shapes(x.shape, self.shape))


@dataclass(frozen=True)
class Tile(Op):
    """Repeat the operand `repeats[i]` times along axis i."""

    repeats: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*(d * r for d, r in zip(x.shape, self.repeats, strict=True)))


@dataclass(frozen=True)
class Concat(Op):
    """Operands joined along `axis` (non-negative). In the integer stage all have the result's quantization."""

    axis: int

    def infer(self, *xs: TensorType) -> TensorType:
        rest = {x.shape[: self.axis] + x.shape[self.axis + 1 :] for x in xs}
        if len(rest) != 1 or len({x.dtype for x in xs}) != 1:
            raise ValueError(f"operands {', '.join(map(str, xs))} do not join along axis {self.axis}")
        shape = list(xs[0].shape)
        shape[self.axis] = sum(x.shape[self.axis] for x in xs)
        return xs[0].with_shape(*shape)


@dataclass(frozen=True)
class Slice(Op):
    """``x[start:stop:step]`` on every axis, in Python's own meaning after normalization: a negative step walks down and
    `stop` may then be -1 for "through index 0"."""

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*(len(range(a, b, s)) for a, b, s in zip(self.starts, self.stops, self.steps, strict=True)))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The same as numpy index objects."""
        return tuple(slice(a, None if b < 0 else b, s) for a, b, s in zip(self.starts, self.stops, self.steps))


class PadMode(Enum):
    """How `Pad` invents elements; the value is numpy's name."""

    constant = "constant"
    reflect = "reflect"
    edge = "edge"
    wrap = "wrap"


@dataclass(frozen=True)
class Pad(Op):
    """Grow each axis by `pads`; negative amounts crop. In the integer stage `value` is still a real number."""

    pads: Pads
    mode: PadMode = PadMode.constant
    value: float = 0.0

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*(d + a + b for d, (a, b) in zip(x.shape, self.pads, strict=True)))


@dataclass(frozen=True)
class Gather(Op):
    """Operands x, indices (integers, negative counts from the end): numpy's ``take(x, indices, axis)``."""

    axis: int

    def infer(self, x: TensorType, indices: TensorType) -> TensorType:
        return x.with_shape(*x.shape[: self.axis], *indices.shape, *x.shape[self.axis + 1 :])


@dataclass(frozen=True)
class Cast(Op):
    """Elements converted to `dtype`."""

    dtype: DType
    binary: bool = False
    """Only 0 and 1 may come: what is computed from other numbers is not what the network means by them."""

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, self.dtype)


@dataclass(frozen=True)
class Where(Op):
    """Operands condition (bool), a, b, broadcast: a where the condition holds, else b."""

    def infer(self, c: TensorType, a: TensorType, b: TensorType) -> TensorType:
        return a.with_shape(*np.broadcast_shapes(c.shape, a.shape, b.shape))


# --- convolution, matrix product, pooling, reduction, resize ---------------------------------------------------------


def window_size(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int) -> int:
    """Output length of a sliding window; ValueError where it does not fit even once."""
    out = (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        raise ValueError(f"window of {dilation * (kernel - 1) + 1} does not fit in {size} padded by {pads}")
    return out


@dataclass(frozen=True)
class Conv(Op):
    """2-D convolution. Operands x [N,H,W,C], w [O,kh,kw,C/groups], optionally bias [O]; result [N,OH,OW,O].

    `pads` are ((top, bottom), (left, right)), of real zeros.
    """

    strides: tuple[int, int] = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        if x.rank != 4 or w.rank != 4 or w.shape[3] * self.groups != x.shape[3] or w.shape[0] % self.groups:
            raise ValueError(f"weights {w} do not fit input {x} in {self.groups} groups")
        if b is not None and b.shape != w.shape[:1]:
            raise ValueError(f"bias {b} does not fit weights {w}")
        return TensorType((x.shape[0], *self.spatial(x.shape, w.shape[1:3]), w.shape[0]), x.dtype)

    def spatial(self, x: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """(OH, OW)."""
        return tuple(window_size(x[1 + i], kernel[i], self.strides[i], self.pads[i], self.dilations[i]) for i in range(2))


@dataclass(frozen=True)
class ConvTranspose(Op):
    """Gradient of `Conv` by its input. Operands x [N,H,W,C], w [C,kh,kw,O/groups], optionally bias [O].

    Result spatial size: (in - 1) * stride - pads + dilation * (k - 1) + 1 + output_padding.
    """

    strides: tuple[int, int] = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    output_padding: tuple[int, int] = (0, 0)

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None) -> TensorType:
        if x.rank != 4 or w.rank != 4 or w.shape[0] != x.shape[3] or x.shape[3] % self.groups:
            raise ValueError(f"weights {w} do not fit input {x} in {self.groups} groups")
        out = [
            (x.shape[1 + i] - 1) * self.strides[i] - sum(self.pads[i]) + self.dilations[i] * (w.shape[1 + i] - 1) + 1 + self.output_padding[i]
            for i in range(2)
        ]
        return TensorType((x.shape[0], *out, w.shape[3] * self.groups), x.dtype)


@dataclass(frozen=True)
class MatMul(Op):
    """numpy's matmul of two operands, batch dimensions broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        x, y = (1, *a.shape) if a.rank == 1 else a.shape, (*b.shape, 1) if b.rank == 1 else b.shape
        if x[-1] != y[-2]:
            raise ValueError(f"cannot multiply {a} by {b}")
        shape = [*np.broadcast_shapes(x[:-2], y[:-2]), *(() if a.rank == 1 else (x[-2],)), *(() if b.rank == 1 else (y[-1],))]
        return a.with_shape(*shape)


@dataclass(frozen=True)
class _Pool(Op):
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilations: tuple[int, int] = (1, 1)

    def infer(self, x: TensorType) -> TensorType:
        out = [window_size(x.shape[1 + i], self.kernel[i], self.strides[i], self.pads[i], self.dilations[i]) for i in range(2)]
        return x.with_shape(x.shape[0], *out, x.shape[3])


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Maximum over windows of x [N,H,W,C]; padding never wins. ONNX's ceil_mode arrives as padding at the end."""


@dataclass(frozen=True)
class AveragePool(_Pool):
    """Mean over windows of x [N,H,W,C]: padding adds zero, and counts in the divisor where `counted_pads` holds it.

    `counted_pads` is `pads` for count_include_pad, without what ceil_mode added at the end, and zeros otherwise.
    """

    counted_pads: Pads = ((0, 0), (0, 0))

    def divisors(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Number of counted elements in each window for an operand of `shape` [N,H,W,C]: an array [OH, OW, 1]."""
        counts = []
        for i in range(2):
            size, (lo, hi), (clo, chi) = shape[1 + i], self.pads[i], self.counted_pads[i]
            out = window_size(size, self.kernel[i], self.strides[i], (lo, hi), self.dilations[i])
            taps = np.arange(out)[:, None] * self.strides[i] - lo + np.arange(self.kernel[i])[None, :] * self.dilations[i]
            counts.append(np.maximum(((taps >= -clo) & (taps < size + chi)).sum(1), 1))
        return (counts[0][:, None] * counts[1][None, :])[:, :, None]


class Reduction(Enum):
    """What `Reduce` computes."""

    sum = "sum"
    mean = "mean"
    max = "max"
    min = "min"


@dataclass(frozen=True)
class Reduce(Op):
    """Reduction over `axes` (non-negative, sorted)."""

    kind: Reduction
    axes: tuple[int, ...]
    keepdims: bool = True

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*reduced_shape(x.shape, self.axes, self.keepdims))


def reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """The shape that is left of `shape` after reducing `axes`."""
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


@dataclass(frozen=True)
class ArgMax(Op):
    """Indices (int64) of the `k` greatest elements along `axis`, the greatest first; among equals the first, or the last where `last`.

    Of several the axis is kept, with `k` elements.
    """

    axis: int
    keepdims: bool = True
    last: bool = False
    k: int = 1

    def infer(self, x: TensorType) -> TensorType:
        if not 1 <= self.k <= x.shape[self.axis] or (self.k > 1 and (self.last or not self.keepdims)):
            raise ValueError(f"cannot take the {self.k} greatest of {x.shape[self.axis]} elements with keepdims={self.keepdims}, last={self.last}")
        kept = reduced_shape(x.shape, (self.axis,), self.keepdims)
        return TensorType(tuple(self.k if self.k > 1 and i == self.axis else d for i, d in enumerate(kept)), DType.i64)


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax along `axis`, or its logarithm."""

    axis: int
    log: bool = False

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, x.dtype)


@dataclass(frozen=True)
class Resize(Op):
    """Interpolation of each axis by two taps: result[o] = (1 - t[o]) * x[i0[o]] + t[o] * x[i1[o]], axis after axis.

    `taps` has one entry per axis: None (axis kept), or ``(i0, i1, t)`` with one element per output position.
    Every ONNX coordinate mode, nearest and linear, of Resize and Upsample is such a table; nearest has t = 0.
    """

    taps: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]] | None, ...]

    def infer(self, x: TensorType) -> TensorType:
        return x.with_shape(*(d if t is None else len(t[0]) for d, t in zip(x.shape, self.taps, strict=True)))

    @property
    def nearest(self) -> bool:
        """Whether the result only copies elements."""
        return all(t is None or not any(t[2]) for t in self.taps)


# --- quantization -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountSteps(Op):
    """x / step_c + shift_c in float32, c the index along `axis`: what a graph input was before someone scaled it, pixels say.

    Stands between a graph input and its `Quantize`, which has a step of 1 and this zero point (`passes/count_steps.py`).
    """

    step: tuple[float, ...]
    shift: tuple[float, ...]
    axis: int
    zero_point: int

    def infer(self, x: TensorType) -> TensorType:
        if not len(self.step) == len(self.shift) == x.shape[self.axis]:
            raise ValueError(f"expected {x.shape[self.axis]} steps and shifts for axis {self.axis} of {x}, found {len(self.step)}, {len(self.shift)}")
        return x

    def along(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Steps and shifts as arrays that broadcast against a tensor of `rank` dimensions."""
        shape = [1] * rank
        shape[self.axis] = -1
        return np.array(self.step, np.float32).reshape(shape), np.array(self.shift, np.float32).reshape(shape)


@dataclass(frozen=True)
class Quantize(Op):
    """Float to the quantized `type`: clip(round(x / scale) + zero point)."""

    type: TensorType

    def infer(self, x: TensorType) -> TensorType:
        return replace(self.type, shape=x.shape)


@dataclass(frozen=True)
class Dequantize(Op):
    """A quantized operand as float32: scale * (q - zero point)."""

    def infer(self, x: TensorType) -> TensorType:
        if x.quant is None:
            raise ValueError(f"{x} is not quantized")
        return TensorType(x.shape)


@dataclass(frozen=True)
class Integers(Op):
    """The integers q of a quantized operand, as plain ones of a `dtype` of the same width: moved by half the range where one has a sign."""

    dtype: DType

    def infer(self, x: TensorType) -> TensorType:
        if x.quant is None or x.dtype.numpy.itemsize != self.dtype.numpy.itemsize:
            raise ValueError(f"{x} is not quantized in the width of {self.dtype.name}")
        return TensorType(x.shape, self.dtype)

    def sign_bit(self, x: TensorType) -> int:
        """What integers of the operand's type are xor-ed with to be those of the result."""
        return 0 if x.dtype is self.dtype else 1 << (8 * self.dtype.numpy.itemsize - 1)
