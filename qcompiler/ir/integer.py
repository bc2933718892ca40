"""Operators of the integer stage. Producers yield int32 accumulators; `Requantize` is the only way back to int8.

Quantized operands are int8 with a per-tensor `Quantization` in their type (z is its zero point); accumulators are int32
whose type may carry the real scale for reports. Data movement (`Transpose`, `Concat`, `MaxPool` ...) is shared with the
float stage. None of these may overflow: `passes/prove_ranges.py` shows it from the actual constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .ops import Conv, Op, Reduce, _Pool
from .types import DType, TensorType


def _acc(shape: tuple[int, ...]) -> TensorType:
    return TensorType(shape, DType.i32)


@dataclass(frozen=True)
class IntConv(Conv):
    """acc = bias_o + sum x * w, over x [N,H,W,C] i8 or i16 padded with its zero point, w [O,kh,kw,C/groups] i8, bias [O] i32.

    The bias holds the zero-point correction -z_x * sum(w). Dense layers are 1x1 convolutions of [1,1,rows,K].
    Two more operands, r (i8, of the result's shape) and m [O] i32 const in [1, 2^15), add a residual to the accumulator
    before anything is rounded: acc + m_o * (r - z_r). A residual of i16 (z_r = 0) is a fine stream, whose steps are 2^-6 of those
    that m is for: acc + ((m_o * r) >> 6), see `numerics.requantize`.
    """

    def infer(self, x: TensorType, w: TensorType, b: TensorType | None = None, *residual: TensorType) -> TensorType:
        shape = super().infer(x, w, b).shape
        if residual and (len(residual) != 2 or residual[0].shape != shape or residual[1].shape != w.shape[:1]):
            raise ValueError(f"residual {', '.join(map(str, residual))} does not fit a result of {shape}")
        return _acc(shape)


@dataclass(frozen=True)
class IntSum(Op):
    """acc = sum_i multipliers[i] * (x_i - z_i), operands i8 or i16, broadcast. Additions, subtractions and rescaling."""

    multipliers: tuple[int, ...]

    def infer(self, *xs: TensorType) -> TensorType:
        return _acc(np.broadcast_shapes(*(x.shape for x in xs)))


@dataclass(frozen=True)
class IntMul(Op):
    """acc = (a - z_a) * (b - z_b), operands i8, broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        return _acc(np.broadcast_shapes(a.shape, b.shape))


@dataclass(frozen=True)
class IntMatMul(Op):
    """acc = sum_k (a - z_a)[.., m, k] * (b - z_b)[.., k, n]: product of two activations, batch dimensions broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(f"cannot multiply {a} by {b}")
        return _acc((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


@dataclass(frozen=True)
class IntSumPool(_Pool):
    """acc = sum over the window of (x - z), x i8 or i16, padding adding zero; the divisor is part of the Requantize."""

    def infer(self, x: TensorType) -> TensorType:
        return _acc(super().infer(x).shape)


@dataclass(frozen=True)
class IntReduceSum(Reduce):
    """acc = sum over `axes` of (x - z) (`kind` is sum)."""

    def infer(self, x: TensorType) -> TensorType:
        return _acc(super().infer(x).shape)


@dataclass(frozen=True)
class IntResize(Op):
    """Two-tap interpolation of H and W of x [N,H,W,C] with weights of 1/128:

    acc[oh,ow] = sum_ij wy_i[oh] wx_j[ow] (x[y_i[oh], x_j[ow]] - z), wy_1 = t, wy_0 = 128 - t, likewise wx. The scale is
    that of x divided by 2^14. `rows` and `columns` are (i0, i1, t) with integer t in [0, 128].
    """

    rows: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    columns: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    def infer(self, x: TensorType) -> TensorType:
        return _acc((x.shape[0], len(self.rows[0]), len(self.columns[0]), x.shape[3]))


@dataclass(frozen=True)
class Requantize(Op):
    """Operands acc (i32), shift (i32 const), multiplier (i32 const, [2^14, 2^15)), both broadcastable to acc: to i8 or i16.

    Exactly `numerics.requantize` with the zero point of `type`, or for i16 `requantize_wide`, then clamped to [lo, hi] (a fused Relu or Clip).
    Constants have either one element, or the accumulator's last axis ([C]), or [OH, OW, 1] (pooling with padding).
    """

    type: TensorType
    lo: int = -128
    hi: int = 127

    def infer(self, acc: TensorType, shift: TensorType, multiplier: TensorType) -> TensorType:
        return TensorType(acc.shape, self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class Lookup(Op):
    """Operands x (i8), table (i8 const [256], or [C, 256] for one table per channel of the last axis): table[x + 128]."""

    type: TensorType

    def infer(self, x: TensorType, table: TensorType) -> TensorType:
        return TensorType(x.shape, self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class Clamp(Op):
    """min(max(x, lo), hi) on i8 or i16, type kept."""

    lo: int
    hi: int

    def infer(self, x: TensorType) -> TensorType:
        return x


@dataclass(frozen=True)
class IntMax(Op):
    """The greater of two i8 operands of equal quantization, broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        return a.with_shape(*np.broadcast_shapes(a.shape, b.shape))


@dataclass(frozen=True)
class IntMin(Op):
    """The lesser of two i8 operands of equal quantization, broadcast."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        return a.with_shape(*np.broadcast_shapes(a.shape, b.shape))


@dataclass(frozen=True)
class IntSoftmax(Op):
    """Operands x (i8), table (i32 const): exactly `numerics.softmax.softmax` along `axis`, to i8 `type`, with the table of
    `exp_table` [256]; where `log`, exactly `log_softmax` with the constants of `log_tables` [514]."""

    axis: int
    type: TensorType
    log: bool = False

    def infer(self, x: TensorType, table: TensorType) -> TensorType:
        return TensorType(x.shape, self.type.dtype, self.type.quant)


# --- 16 bits and transformers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntAdd(Op):
    """sat16(a + b), operands and result i16 of one quantization: the addition to a residual stream."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.shape != b.shape or a.quant != b.quant:
            raise ValueError(f"cannot add {b} to {a}: expected one shape and one quantization")
        return a


@dataclass(frozen=True)
class IntNarrow(Op):
    """Operand r (i16), a fine stream: exactly `numerics.requantize.narrow` with the zero point of `type`, whose scale is 2^6 times that of r."""

    type: TensorType

    def infer(self, r: TensorType) -> TensorType:
        return TensorType(r.shape, self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class IntCast(Op):
    """Operand integers without quantization (a mask of i64, say): sat8(x + zero point) of `type`, whose scale is 1.

    The zero point is 0, or -128 where the operand is u8 (pixels): then nothing saturates."""

    type: TensorType
    binary: bool = False
    """Only 0 and 1 may come (`ops.Cast`)."""

    def infer(self, x: TensorType) -> TensorType:
        return TensorType(x.shape, self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class IntNormalize(Op):
    """Operands x (i8 or i16) [.., D], g [D], b [D] (i32 const): exactly `numerics.normalize.normalize`, to i8 or i16 `type`."""

    type: TensorType
    centered: bool
    epsilon: int
    shift: int

    def infer(self, x: TensorType, g: TensorType, b: TensorType) -> TensorType:
        if g.shape != x.shape[-1:] or b.shape != x.shape[-1:]:
            raise ValueError(f"constants {g} and {b} do not fit {x}")
        return TensorType(x.shape, self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class IntAttention(Op):
    """Operands q [B,N,H,D], k [B,M,G,D], v [B,M,G,E] (i8), table (u8 const [256]), then where flagged `bias` (i16 const, broadcasts to
    [B,H,N,M]) and `mask` (i8, broadcasts to it; non-zero where seen): exactly `numerics.attention.attention`, to i8 `type`.

    `logits` and `values` are (shift, q) of its multipliers.
    """

    type: TensorType
    logits: tuple[int, int]
    values: tuple[int, int]
    causal: bool = False
    bias: bool = False
    mask: bool = False

    def infer(self, q: TensorType, k: TensorType, v: TensorType, table: TensorType, *rest: TensorType) -> TensorType:
        if q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3] or q.shape[2] % k.shape[2] or len(rest) != self.bias + self.mask:
            raise ValueError(f"expected q [B,N,H,D], k [B,M,G,D], v [B,M,G,E] and {self.bias + self.mask} more, found {q}, {k}, {v}, {rest}")
        return TensorType((*q.shape[:3], v.shape[3]), self.type.dtype, self.type.quant)


@dataclass(frozen=True)
class IntRotate(Op):
    """Operands x [B,N,H,D] (i8 or i16), cos [N,D], sin [N,D] (i16 const in units of 2^-14):
    acc[b,n,h,i] = (x[..,i] - z) cos[n,i] + (x[..,partners_i] - z) sin[n,i], in units of S_x 2^-14."""

    partners: tuple[int, ...]

    def infer(self, x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
        if x.rank != 4 or not cos.shape == sin.shape == (x.shape[1], x.shape[3]):
            raise ValueError(f"cosines {cos} and sines {sin} do not fit {x}")
        return _acc(x.shape)
