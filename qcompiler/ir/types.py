"""Types of values: shape, element type and, for quantized values, the affine map to real numbers.

Quantization lives in the type, so "is this integer?" and "with which scale?" are questions to the type alone.
A quantized element q stands for the real number ``scale * (q - zero_point)`` (Jacob et al. 2018, section 2.1).
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray


class DType(Enum):
    """Element types, named as in the text form of the IR; the value is numpy's name."""

    f16 = "float16"
    f32 = "float32"
    f64 = "float64"
    i8 = "int8"
    u8 = "uint8"
    i16 = "int16"
    u16 = "uint16"
    i32 = "int32"
    u32 = "uint32"
    i64 = "int64"
    u64 = "uint64"
    bool = "bool"

    @cached_property
    def numpy(self) -> np.dtype:
        """The numpy dtype of the same meaning."""
        return np.dtype(self.value)

    @property
    def is_float(self) -> builtins.bool:
        """Whether elements are floating point."""
        return self.name.startswith("f")

    @classmethod
    def of(cls, dtype: np.dtype | type) -> DType:
        """The DType of a numpy dtype; ValueError where there is none (complex, strings)."""
        return cls(np.dtype(dtype).name)


@dataclass(frozen=True)
class Quantization:
    """An affine map from integers to reals, per tensor (one scale) or per slice along `axis`.

    `bits` is the width of the represented integers (at most that of the storage type). Weights are symmetric:
    every zero point is 0 and -2^(bits-1) is not used. With a codebook, `levels` are the only integers that occur, in order:
    sixteen of them are four bits of information, unevenly spaced.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    bits: int = 8
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.zero_point) or (self.axis is None and len(self.scale) != 1):
            raise ValueError(f"expected matching scales and zero points, found {len(self.scale)} and {len(self.zero_point)}, axis {self.axis}")

    @classmethod
    def per_tensor(cls, scale: float, zero_point: int = 0, bits: int = 8) -> Quantization:
        """One scale and zero point for all elements."""
        return cls((float(scale),), (int(zero_point),), None, bits)

    @property
    def qmin(self) -> int:
        """Smallest representable integer."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest representable integer."""
        return (1 << (self.bits - 1)) - 1

    def broadcast(self, rank: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scale and zero point as arrays that broadcast against a tensor of `rank` dimensions."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = len(self.scale)
        return np.array(self.scale, np.float64).reshape(shape), np.array(self.zero_point, np.int64).reshape(shape)

    def quantize(self, real: NDArray[np.generic]) -> NDArray[np.int64]:
        """``clip(round(real / scale) + zero_point)``, ties to even, as ONNX QuantizeLinear; then to the nearest of `levels`, the lower of two."""
        scale, zero = self.broadcast(real.ndim)
        q = np.clip(np.rint(real.astype(np.float64) / scale) + zero, self.qmin, self.qmax).astype(np.int64)
        return q if self.levels is None else self.nearest_level()[q - self.qmin]

    def nearest_level(self) -> NDArray[np.int64]:
        """For every integer from `qmin` on the one of `levels` that is nearest, the lower of two."""
        levels = np.array(self.levels, np.int64)
        middles = (levels[1:] + levels[:-1]) / 2
        return np.asarray(levels[np.searchsorted(middles, np.arange(self.qmin, self.qmax + 1))])

    def dequantize(self, q: NDArray[np.generic]) -> NDArray[np.float64]:
        """``scale * (q - zero_point)``."""
        scale, zero = self.broadcast(q.ndim)
        return scale * (q.astype(np.int64) - zero)


@dataclass(frozen=True)
class TensorType:
    """A static shape, an element type and, where elements stand for scaled reals, a `Quantization`."""

    shape: tuple[int, ...]
    dtype: DType = DType.f32
    quant: Quantization | None = None

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense array of this type."""
        return self.size * self.dtype.numpy.itemsize

    def with_shape(self, *shape: int) -> TensorType:
        """The same elements in another shape (per-axis quantization must be re-aimed by the caller)."""
        return replace(self, shape=tuple(int(d) for d in shape))

    def __str__(self) -> str:
        dims = "x".join(map(str, self.shape))
        text = f"{self.dtype.name}[{dims}]"
        if self.quant is None:
            return text
        q = self.quant
        if q.axis is not None:
            return f"{text} q{q.bits}(axis {q.axis})"
        return f"{text} q{q.bits}({q.scale[0]:.6g}, {q.zero_point[0]})"


def float_type(*shape: int) -> TensorType:
    """A float32 tensor type."""
    return TensorType(tuple(int(d) for d in shape))


def quantized(shape: tuple[int, ...], quant: Quantization) -> TensorType:
    """An int8 tensor type that carries `quant`, int16 where it has more than 8 bits."""
    return TensorType(shape, DType.i8 if quant.bits <= 8 else DType.i16, quant)
