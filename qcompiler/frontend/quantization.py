"""QuantizeLinear and DequantizeLinear, kept exactly: scales and zero points are the model's.

Unsigned integers become signed ones of the same width, with integers and zero point moved down by half their range, so
that scale * (q - zero point) stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from qcompiler.frontend.node import Importers, Node, Unsupported, numpy_dtype
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Dequantize, Quantize, Reshape, const_data, constant
from qcompiler.ir.types import DType, Quantization, TensorType

IMPORTERS = Importers()


@dataclass(frozen=True)
class _Storage:
    """How integers of an ONNX type are kept: in `dtype`, `offset` less."""

    dtype: DType
    offset: int = 0

    @property
    def bits(self) -> int:
        return self.dtype.numpy.itemsize * 8


_STORAGE: Mapping[DType, _Storage] = {
    DType.i8: _Storage(DType.i8),
    DType.u8: _Storage(DType.i8, 128),
    DType.i16: _Storage(DType.i16),
    DType.u16: _Storage(DType.i16, 32768),
    DType.i32: _Storage(DType.i32),
}


@IMPORTERS.register("QuantizeLinear", "com.microsoft.QuantizeLinear")
def quantize_linear(node: Node, x: Value, scale: Value, zero: Value | None = None) -> Value:
    """A float as integers."""
    stated = int(node.attributes.get("output_dtype") or 0)
    target = zero.type.dtype if zero is not None else numpy_dtype(stated) if stated else DType.u8
    quant = _quantization(node, scale, zero, target, x)
    return node.emit(Quantize(TensorType(x.shape, _storage(target).dtype, quant)), node.cast(x, DType.f32))


@IMPORTERS.register("DequantizeLinear", "com.microsoft.DequantizeLinear")
def dequantize_linear(node: Node, q: Value, scale: Value, zero: Value | None = None) -> Value:
    """Integers as float. Those that no QuantizeLinear made and that are not constant are scaled by arithmetic."""
    integers = const_data(q)
    if q.type.quant is not None:
        return node.cast(_again(node, q, scale, zero), scale.type.dtype)
    if integers is None:
        return _by_arithmetic(node, q, scale, zero)
    storage = _storage(q.type.dtype)
    quant = _quantization(node, scale, zero, q.type.dtype, q)
    kept = (integers.astype(np.int64) - storage.offset).astype(storage.dtype.numpy)
    stored = constant(kept, q.name, TensorType(q.shape, storage.dtype, quant))
    return node.cast(node.emit(Dequantize(), stored), scale.type.dtype)


def clip_integers(node: Node, q: Value, bounds: Sequence[Value | None]) -> Value:
    """Clip of integers before they are dequantized, as tools write fewer bits than their type has: of constants at once, else a Clip of the
    real numbers in front of the QuantizeLinear, which is the same, since bounds fall on integers."""
    lo, hi = (None if b is None else int(node.static(b, "bound").reshape(-1)[0]) - _storage(b.type.dtype).offset for b in bounds)
    integers, quant = const_data(q), q.type.quant
    if integers is not None:
        return constant(np.clip(integers, lo, hi).astype(integers.dtype), q.name, q.type)
    if not isinstance(q.op, Quantize) or quant is None or quant.axis is not None:
        raise Unsupported("clips integers that no QuantizeLinear with one scale made; put it right behind one")
    scale, zero = quant.scale[0], quant.zero_point[0]
    ends = -inf if lo is None else scale * (lo - zero), inf if hi is None else scale * (hi - zero)
    return node.emit(q.op, node.emit(pw.Clip(*ends), q.inputs[0]))


def _storage(dtype: DType) -> _Storage:
    if dtype not in _STORAGE:
        raise Unsupported(f"quantizes to {dtype.name}; supported are {', '.join(d.name for d in _STORAGE)}")
    return _STORAGE[dtype]


def _quantization(node: Node, scale: Value, zero: Value | None, dtype: DType, x: Value) -> Quantization:
    """Scales and zero points as the type that `x` (or its quantized form) has, zero points moved as the storage says."""
    if node.attributes.get("block_size"):
        raise Unsupported("quantizes in blocks; supported are scales per tensor and per axis")
    storage = _storage(dtype)
    scales = node.static(scale, "scale").astype(np.float32)
    zeros = np.zeros(scales.shape, np.int64) if zero is None else node.static(zero, "zero point").astype(np.int64)
    if scales.size != zeros.size or scales.ndim > 1 or zeros.ndim > 1 or not scales.size:
        raise ValueError(f"scale {scale.type} and zero point of shape {zeros.shape} must be one number, or one list of equal length")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(f"scale '{scale.name}' must be positive and finite")
    axis = node.axis(x.type.rank, int(node.attributes.get("axis", 1))) if scales.size > 1 else None
    if axis is not None and x.shape[axis] != scales.size:
        raise ValueError(f"{scales.size} scales do not fit axis {axis} of {x.type}")
    return Quantization(tuple(map(float, scales.ravel())), tuple(int(z) - storage.offset for z in zeros.ravel()), axis, storage.bits)


def _again(node: Node, q: Value, scale: Value, zero: Value | None) -> Value:
    """Quantized values read with their own scale, or with another one: then the difference is arithmetic."""
    unsigned = zero is None or zero.type.dtype in (DType.u8, DType.u16)
    dtype = {DType.i8: DType.u8, DType.i16: DType.u16}.get(q.type.dtype, q.type.dtype) if unsigned else q.type.dtype
    if _quantization(node, scale, zero, dtype, q) != q.type.quant:
        raise Unsupported("does not have the scale and zero point of the QuantizeLinear before it")
    return node.emit(Dequantize(), q)


def _by_arithmetic(node: Node, q: Value, scale: Value, zero: Value | None) -> Value:
    """(q - zero point) * scale, in float."""
    if node.attributes.get("block_size"):
        raise Unsupported("quantizes in blocks; supported are scales per tensor and per axis")
    real = node.cast(q, DType.f32)
    if zero is not None:
        real = node.emit(pw.Sub(), real, _along_axis(node, node.cast(zero, DType.f32), q))
    scaled = node.emit(pw.Mul(), real, _along_axis(node, node.cast(scale, DType.f32), q))
    return node.cast(scaled, scale.type.dtype)


def _along_axis(node: Node, v: Value, x: Value) -> Value:
    """A list of numbers shaped to broadcast along the node's axis of `x`."""
    if v.type.size == 1:
        return node.emit(Reshape(()), v) if v.type.rank else v
    axis = node.axis(x.type.rank, int(node.attributes.get("axis", 1)))
    return node.emit(Reshape((v.type.size, *[1] * (x.type.rank - axis - 1))), v)
