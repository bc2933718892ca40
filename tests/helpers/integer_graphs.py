"""Integer graphs built by hand: each function takes and returns int8 values, with random weights and multipliers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import (
    Clamp,
    IntAttention,
    IntCast,
    IntConv,
    IntMatMul,
    IntMax,
    IntMin,
    IntMul,
    IntNormalize,
    IntReduceSum,
    IntResize,
    IntRotate,
    IntSoftmax,
    IntSum,
    IntSumPool,
    Lookup,
    Requantize,
)
from qcompiler.ir.ops import (
    ArgMax,
    Concat,
    Expand,
    Gather,
    Input,
    Integers,
    MaxPool,
    Op,
    Pad,
    PadMode,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
    constant,
)
from qcompiler.ir.types import DType, Quantization, TensorType, quantized
from qcompiler.numerics.attention import exp_table as exp_of_attention
from qcompiler.numerics.attention import logit_multiplier, value_multiplier
from qcompiler.numerics.normalize import affine, epsilon_term
from qcompiler.numerics.requantize import multiplier
from qcompiler.numerics.softmax import exp_table
from qcompiler.passes.weight_grid import GROUP, MOST, SIGNS, ends_of

SCALE = 0.05


@dataclass
class Builder:
    """Builds integer graphs; every activation has the same scale and a zero point of its own."""

    seed: int = 0
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    vocabulary: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.names = (f"v{n}" for n in itertools.count())

    def quant(self, zero_point: int | None = None) -> Quantization:
        return Quantization.per_tensor(SCALE, int(self.rng.integers(-128, 128)) if zero_point is None else zero_point)

    def apply(self, op: Op, *inputs: Value) -> Value:
        return apply(op, *inputs, name=next(self.names))

    def const(self, data: np.ndarray, **kw) -> Value:
        return constant(data, next(self.names), **kw)

    def input(self, *shape: int, zero_point: int | None = None) -> Value:
        v = self.apply(Input(quantized(shape, self.quant(zero_point))))
        self.inputs.append(v)
        return v

    def ids(self, *shape: int, rows: int, dtype: DType = DType.i64) -> Value:
        """An input of indices into tables of `rows` rows or more."""
        v = self.apply(Input(TensorType(shape, dtype)))
        self.inputs.append(v)
        self.vocabulary[v.name] = rows
        return v

    def embedding(self, ids: Value, *table: int, axis: int = 0, bits: int = 8, zero_point: int | None = None) -> Value:
        """Slices of a random constant `table`, i8 or i16, by `ids`."""
        high = 1 << (bits - 1)
        data = self.rng.integers(-high, high, table).astype(np.int8 if bits == 8 else np.int16)
        quant = self.quant(zero_point) if bits == 8 else Quantization.per_tensor(SCALE, 0, bits)
        return self.apply(Gather(axis), self.const(data, type=quantized(table, quant)), ids)

    def int8_const(self, *shape: int) -> Value:
        return self.const(self.rng.integers(-128, 128, shape).astype(np.int8), type=quantized(shape, self.quant()))

    def requantize(
        self, acc: Value, typical: float, zero_point: int | None = None, lo: int = -128, hi: int = 127, channels: int | None = None, shape=()
    ) -> Value:
        """To int8 such that an accumulator of `typical` becomes about 60. Per channel where `channels` is given."""
        shape = (channels,) if channels else shape
        reals = 60.0 / typical * self.rng.uniform(0.5, 2.0, shape or (1,))
        ms = [multiplier(float(r)) for r in reals.ravel()]
        shift = self.const(np.array([m.shift for m in ms], np.int32).reshape(shape or (1,)))
        q = self.const(np.array([m.q for m in ms], np.int32).reshape(shape or (1,)))
        return self.apply(Requantize(quantized(acc.shape, self.quant(zero_point)), lo, hi), acc, shift, q)

    def conv_acc(
        self,
        x: Value,
        out: int,
        kernel=(1, 1),
        strides=(1, 1),
        pads=((0, 0), (0, 0)),
        dilations=(1, 1),
        groups: int = 1,
        reach: int = 127,
        multiples: int | None = None,
    ) -> Value:
        """`reach` is the greatest weight; or every 4 of a channel along K are multiples of one number, by integers of so many bits."""
        low, high = ends_of(multiples) if multiples else (-reach, reach)
        w = self.rng.integers(low, high + 1, (out, *kernel, x.shape[3] // groups)).astype(np.int8)
        if multiples:
            shared = self.rng.integers(1, MOST + 1, (out, -(-w[0].size // GROUP))) * self.rng.choice(SIGNS, (out, -(-w[0].size // GROUP)))
            w = (w * np.repeat(shared, GROUP, 1)[:, : w[0].size].reshape(w.shape)).astype(np.int8)
        bias = self.rng.integers(-2000, 2000, out) - x.type.quant.zero_point[0] * w.astype(np.int64).sum((1, 2, 3))
        op = IntConv(strides, pads, dilations, groups)
        return self.apply(op, x, self.const(w), self.const(bias.astype(np.int32)))

    def conv(self, x: Value, out: int, kernel=(1, 1), per_channel: bool = True, zero_point: int | None = None, lo=-128, hi=127, **kw) -> Value:
        acc = self.conv_acc(x, out, kernel, **kw)
        size = kernel[0] * kernel[1] * x.shape[3] // kw.get("groups", 1)
        greatest = -ends_of(kw["multiples"])[0] * MOST if kw.get("multiples") else kw.get("reach", 127)
        spread = 6000.0 * size**0.5 * greatest / 127
        return self.requantize(acc, spread, zero_point, lo, hi, out if per_channel else 0)

    def residual_conv(self, x: Value, r: Value, kernel=(1, 1), **kw) -> Value:
        """A convolution to the channels of `r`, which is added in the accumulator."""
        acc = self.conv_acc(x, r.shape[3], kernel, **kw)
        m = self.const(self.rng.integers(1, 1 << 15, r.shape[3]).astype(np.int32))
        return self.requantize(self.apply(acc.op, *acc.inputs, r, m), 900_000.0, channels=r.shape[3])

    def depthwise(self, x: Value, kernel=(3, 3), **kw) -> Value:
        return self.conv(x, x.shape[3], kernel, groups=x.shape[3], **kw)

    def add(self, *xs: Value, zero_point: int | None = None, **kw) -> Value:
        ms = tuple(int(m) for m in self.rng.integers(-16000, 16000, len(xs)))
        return self.requantize(self.apply(IntSum(ms), *xs), 70.0 * 10000, zero_point, **kw)

    def mul(self, a: Value, b: Value, **kw) -> Value:
        return self.requantize(self.apply(IntMul(), a, b), 6000.0, **kw)

    def matmul(self, a: Value, b: Value) -> Value:
        return self.requantize(self.apply(IntMatMul(), a, b), 6000.0 * a.shape[-1] ** 0.5)

    def sum_pool(self, x: Value, kernel, strides=(1, 1), pads=((0, 0), (0, 0)), dilations=(1, 1), spatial: bool = False, **kw) -> Value:
        acc = self.apply(IntSumPool(kernel, strides, pads, dilations), x)
        return self.requantize(acc, 70.0 * (kernel[0] * kernel[1]) ** 0.5, shape=(*acc.shape[1:3], 1) if spatial else (), **kw)

    def max_pool(self, x: Value, kernel, strides=(1, 1), pads=((0, 0), (0, 0)), dilations=(1, 1)) -> Value:
        return self.apply(MaxPool(kernel, strides, pads, dilations), x)

    def reduce_sum(self, x: Value, axes: tuple[int, ...], keepdims: bool = True) -> Value:
        acc = self.apply(IntReduceSum(Reduction.sum, axes, keepdims), x)
        return self.requantize(acc, 70.0 * (x.type.size / acc.type.size) ** 0.5)

    def reduce(self, kind: Reduction, x: Value, axes: tuple[int, ...], keepdims: bool = True) -> Value:
        return self.apply(Reduce(kind, axes, keepdims), x)

    def taps(self, size: int, out: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        i0, i1, t = self.rng.integers(0, size, out), self.rng.integers(0, size, out), self.rng.integers(0, 129, out)
        return tuple(map(int, i0)), tuple(map(int, i1)), tuple(map(int, t))

    def int_resize(self, x: Value, oh: int, ow: int) -> Value:
        op = IntResize(self.taps(x.shape[1], oh), self.taps(x.shape[2], ow))
        return self.requantize(self.apply(op, x), 60.0 * 2**14)

    def nearest(self, x: Value, *sizes: int) -> Value:
        taps = []
        for d, out in zip(x.shape, sizes):
            index = tuple(o * d // out for o in range(out))
            taps.append(None if d == out else (index, index, (0.0,) * out))
        return self.apply(Resize(tuple(taps)), x)

    def lookup(self, x: Value, per_channel: bool = False) -> Value:
        shape = (x.shape[-1], 256) if per_channel else (256,)
        table = self.const(self.rng.integers(-128, 128, shape).astype(np.int8))
        return self.apply(Lookup(quantized(x.shape, self.quant())), x, table)

    def clamp(self, x: Value, lo: int = -40, hi: int = 50) -> Value:
        return self.apply(Clamp(lo, hi), x)

    def maximum(self, a: Value, b: Value) -> Value:
        return self.apply(IntMax(), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        return self.apply(IntMin(), a, b)

    def softmax(self, x: Value, axis: int) -> Value:
        out = quantized(x.shape, Quantization.per_tensor(1 / 256, -128))
        return self.apply(IntSoftmax(axis, out), x, self.const(exp_table(SCALE)))

    def attention(
        self, q: Value, k: Value, v: Value, bias: np.ndarray | None = None, mask: Value | None = None, causal: bool = False, gain: float = 8.0, **kw
    ) -> Value:
        """Logits of some +-`gain` nats; `bits` asks for the table of a logarithmic quantizer, `fine` for results finer than the values."""
        typical = 70.0 * 70.0 * q.shape[3] ** 0.5
        fine = kw.get("fine", 1.5)
        logits, values = logit_multiplier(gain / 3 / typical), value_multiplier(SCALE, SCALE / fine)
        out = quantized((*q.shape[:3], v.shape[3]), Quantization.per_tensor(SCALE / fine, int(self.rng.integers(-128, 128))))
        op = IntAttention(out, (logits.shift, logits.q), (values.shift, values.q), causal, bias is not None, mask is not None)
        rest = ([] if bias is None else [self.const(bias.astype(np.int16))]) + ([] if mask is None else [mask])
        return self.apply(op, q, k, v, self.const(exp_of_attention(kw.get("bits"))), *rest)

    def normalize(self, x: Value, centered: bool = True, bits: int = 8, epsilon: float = 1e-5) -> Value:
        """x of 8 or 16 bits, whatever its scale, to values with a standard deviation of about 40 (5000 in 16 bits)."""
        d, wide = x.shape[-1], x.type.dtype is DType.i16
        scale, zero = (1 / 40, int(self.rng.integers(-50, 50))) if bits == 8 else (1 / 5000, 0)
        numbers = affine(self.rng.normal(1.0, 0.4, d), self.rng.normal(0.0, 0.4, d), scale, zero)
        out = quantized(x.shape, Quantization.per_tensor(scale, zero, bits))
        op = IntNormalize(out, centered, epsilon_term(epsilon, d, x.type.quant.scale[0], 16 if wide else 8), numbers.shift)
        return self.apply(op, x, self.const(numbers.g.astype(np.int32)), self.const(numbers.b.astype(np.int32)))

    def rotate(self, x: Value, partners: list[int] | np.ndarray, **kw) -> Value:
        """Rotary embedding of x [B,N,H,D] by random angles."""
        turn = self.rng.uniform(-4, 4, (x.shape[1], x.shape[3]))
        cos, sin = (self.const(np.rint(f(turn) * (1 << 14)).astype(np.int16)) for f in (np.cos, np.sin))
        return self.requantize(self.apply(IntRotate(tuple(map(int, partners))), x, cos, sin), 2.0 ** (20 if x.type.quant.bits == 8 else 28), **kw)

    def cast(self, x: Value) -> Value:
        return self.apply(IntCast(quantized(x.shape, Quantization.per_tensor(1.0))), x)

    def integers(self, x: Value, dtype: DType) -> Value:
        return self.apply(Integers(dtype), x)

    def raw_input(self, dtype: DType, *shape: int) -> Value:
        """An input of integers without quantization."""
        v = self.apply(Input(TensorType(shape, dtype)))
        self.inputs.append(v)
        return v

    def wide_input(self, *shape: int) -> Value:
        """An input of 16 bits."""
        v = self.apply(Input(quantized(shape, Quantization.per_tensor(SCALE / 64, 0, 16))))
        self.inputs.append(v)
        return v

    def argmax(self, x: Value, axis: int, keepdims: bool = True, last: bool = False, k: int = 1) -> Value:
        return self.apply(ArgMax(axis, keepdims, last, k), x)

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.apply(Transpose(perm), x)

    def reshape(self, x: Value, *shape: int) -> Value:
        return self.apply(Reshape(shape), x)

    def concat(self, axis: int, *xs: Value) -> Value:
        return self.apply(Concat(axis), *xs)

    def slice(self, x: Value, *ranges: tuple[int, int, int]) -> Value:
        return self.apply(Slice(*(tuple(r[i] for r in ranges) for i in range(3))), x)

    def channels(self, x: Value, start: int, stop: int) -> Value:
        ranges = [(0, d, 1) for d in x.shape[:-1]]
        return self.slice(x, *ranges, (start, stop, 1))

    def pad(self, x: Value, *pads: tuple[int, int], mode: PadMode = PadMode.constant, value: float = 0.0) -> Value:
        return self.apply(Pad(pads, mode, value), x)

    def tile(self, x: Value, *repeats: int) -> Value:
        return self.apply(Tile(repeats), x)

    def expand(self, x: Value, *shape: int) -> Value:
        return self.apply(Expand(shape), x)

    def gather(self, x: Value, axis: int, indices: list[int] | np.ndarray) -> Value:
        return self.apply(Gather(axis), x, self.const(np.array(indices, np.int64)))

    def graph(self, *outputs: Value) -> Graph:
        return Graph(tuple(self.inputs), outputs, tuple(f"out{n}" for n in range(len(outputs))))

    def feeds(self) -> dict[str, np.ndarray]:
        return {v.name: self._feed(v) for v in self.inputs}

    def _feed(self, v: Value) -> np.ndarray:
        """Random numbers; of the indices, both ends."""
        rows = self.vocabulary.get(v.name, 1 << 15 if v.type.dtype is DType.i16 else 128)
        data = np.asarray(self.rng.integers(-rows, rows, v.shape)).astype(v.type.dtype.numpy)
        if v.name in self.vocabulary and v.type.size > 1:
            data.flat[0], data.flat[-1] = -rows, rows - 1
        return data
