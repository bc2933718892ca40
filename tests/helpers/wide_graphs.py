"""Integer graphs with values of 16 bits: what `integer_graphs.Builder` makes, and their requantizations, sums and movement."""

from __future__ import annotations

import numpy as np
from integer_graphs import Builder

from qcompiler.ir.graph import Value
from qcompiler.ir.integer import IntAdd, IntReduceSum, IntSum, Requantize
from qcompiler.ir.ops import Input, Reduction
from qcompiler.ir.types import Quantization, quantized
from qcompiler.numerics.requantize import multiplier

WIDE_SCALE = 0.0005
WIDE = Quantization.per_tensor(WIDE_SCALE, 0, 16)


class WideBuilder(Builder):
    """All values of 16 bits have one scale; those of 8 bits are as in `Builder`."""

    def wide_input(self, *shape: int) -> Value:
        v = self.apply(Input(quantized(shape, WIDE)))
        self.inputs.append(v)
        return v

    def wide_const(self, *shape: int) -> Value:
        return self.const(self.rng.integers(-(1 << 15), 1 << 15, shape).astype(np.int16), type=quantized(shape, WIDE))

    def widened(self, acc: Value, typical: float, channels: int = 0, lo: int = -(1 << 15), hi: int = (1 << 15) - 1, shape=()) -> Value:
        """To int16 such that an accumulator of `typical` becomes about 16000: some saturate. Per channel where `channels` is given."""
        shape = (channels,) if channels else shape
        ms = [multiplier(16000.0 / typical * float(r), 0) for r in self.rng.uniform(0.3, 1.8, shape or (1,)).ravel()]
        shift, q = (self.const(np.array([getattr(m, f) for m in ms], np.int32).reshape(shape or (1,))) for f in ("shift", "q"))
        return self.apply(Requantize(quantized(acc.shape, WIDE), lo, hi), acc, shift, q)

    def wide_conv(self, x: Value, out: int, kernel=(1, 1), per_channel: bool = True, lo: int = -(1 << 15), hi: int = (1 << 15) - 1, **kw) -> Value:
        size = kernel[0] * kernel[1] * x.shape[3] // kw.get("groups", 1)
        return self.widened(self.conv_acc(x, out, kernel, **kw), 6000.0 * size**0.5, out if per_channel else 0, lo, hi)

    def of_words(self, x: Value, out: int, kernel=(1, 1), added: Value | None = None, wide: bool = False, **kw) -> Value:
        """A convolution of 16 bits, to 8 or 16, which may add something in its accumulator."""
        acc = self.conv_acc(x, out, kernel, **kw)
        if added is not None:
            acc = self.apply(acc.op, *acc.inputs, added, self.const(self.rng.integers(1, 1 << 15, out).astype(np.int32)))
        typical = 70.0 * 19000 * kw.get("reach", 127) / 127 * (kernel[0] * kernel[1] * x.shape[3] / kw.get("groups", 1)) ** 0.5
        return self.widened(acc, typical, out) if wide else self.requantize(acc, typical, channels=out)

    def add16(self, a: Value, b: Value) -> Value:
        return self.apply(IntAdd(), a, b)

    def weighted(self, *xs: Value, great: int = 8000) -> Value:
        """An accumulator of values of either width."""
        ms = tuple(int(m) for m in self.rng.integers(-great, great, len(xs)))
        return self.apply(IntSum(ms), *xs)

    def narrowed(self, *xs: Value, **kw) -> Value:
        """A weighted sum to 8 bits."""
        return self.requantize(self.weighted(*xs), 4000.0 * 15000, **kw)

    def summed(self, *xs: Value, **kw) -> Value:
        """A weighted sum to 16 bits."""
        return self.widened(self.weighted(*xs), 4000.0 * (15000 if any(x.type.quant.bits > 8 for x in xs) else 70), **kw)

    def reduced(self, x: Value, axes: tuple[int, ...], keepdims: bool = True) -> Value:
        return self.apply(IntReduceSum(Reduction.sum, axes, keepdims), x)

    def _feed(self, v: Value) -> np.ndarray:
        if v.type.quant is not None and v.type.quant.bits > 8:
            data = self.rng.integers(-(1 << 15), 1 << 15, v.shape).astype(np.int16)
            data.flat[: v.type.size // 8] = -(1 << 15)
            return data
        return super()._feed(v)
