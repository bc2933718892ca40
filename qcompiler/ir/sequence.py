"""Operators of transformers in the float stage: normalization over channels, attention, rotary embedding.

Layouts are those in which dense layers leave their results, so that no transposition is needed around attention:
[batch, position, head, channel].
"""

from __future__ import annotations

from dataclasses import dataclass

from .ops import Op
from .types import TensorType


@dataclass(frozen=True)
class Normalize(Op):
    """LayerNorm over the last axis; RMSNorm where not `centered`. Operands x [.., D], gamma [D], beta [D]:

    y = gamma * (x - mean) / sqrt(mean((x - mean)^2) + epsilon) + beta        mean = 0 where not centered
    """

    epsilon: float
    centered: bool = True

    def infer(self, x: TensorType, gamma: TensorType, beta: TensorType) -> TensorType:
        if not x.shape or gamma.shape != x.shape[-1:] or beta.shape != x.shape[-1:]:
            raise ValueError(f"gamma {gamma} and beta {beta} do not fit the last axis of {x}")
        return TensorType(x.shape, x.dtype)


@dataclass(frozen=True)
class Attention(Op):
    """softmax_m(scale * sum_d q[b,n,h,d] k[b,m,g,d] + bias) v[b,m,g,e], summed over m, for g = h // (H / G).

    Operands q [B,N,H,D], k [B,M,G,D], v [B,M,G,E], then, where the flags say so, `bias` (float, broadcasts to [B,H,N,M]) and
    `mask` (boolean, broadcasts to [B,1,1,M] or [B,H,N,M]: true where m may be seen). `causal`: position n sees m <= n + M - N.
    A row that sees nothing is zero. Result [B,N,H,E].
    """

    scale: float
    causal: bool = False
    bias: bool = False
    mask: bool = False

    def infer(self, q: TensorType, k: TensorType, v: TensorType, *rest: TensorType) -> TensorType:
        if not (q.rank == k.rank == v.rank == 4) or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
            raise ValueError(f"expected q [B,N,H,D], k [B,M,G,D], v [B,M,G,E], found {q}, {k}, {v}")
        if q.shape[2] % k.shape[2]:
            raise ValueError(f"{q.shape[2]} heads of queries do not divide among {k.shape[2]} heads of keys")
        if len(rest) != self.bias + self.mask:
            raise ValueError(f"expected {self.bias + self.mask} more operands, found {len(rest)}")
        return TensorType((*q.shape[:3], v.shape[3]), q.dtype)


@dataclass(frozen=True)
class Rotate(Op):
    """Rotary embedding: y[b,n,h,i] = x[b,n,h,i] cos[n,i] + x[b,n,h,partner_i] sin[n,i].

    Operands x [B,N,H,D], cos [N,D], sin [N,D], with signs in `sin`. `partners` has D entries: half a turn away (GPT-NeoX) or the
    neighbour (GPT-J); channels that are not rotated have cos 1 and sin 0 (Su et al. 2021, "RoFormer", section 3.4.2).
    """

    partners: tuple[int, ...]

    def infer(self, x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
        if x.rank != 4 or not cos.shape == sin.shape == (x.shape[1], x.shape[3]) or len(self.partners) != x.shape[3]:
            raise ValueError(f"expected x [B,N,H,D], cos and sin [N,D], D partners; found {x}, {cos}, {sin}, {len(self.partners)} partners")
        return TensorType(x.shape, x.dtype)
