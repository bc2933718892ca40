"""The float meaning of normalization, attention and rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping

from .interpret_movement import Array, Kernel, Namespace
from .ops import Op
from .sequence import Attention, Normalize, Rotate


def normalize(op: Normalize, xp: Namespace, x: Array, gamma: Array, beta: Array) -> Array:
    """LayerNorm or RMSNorm over the last axis."""
    c = x - xp.mean(x, axis=-1, keepdims=True) if op.centered else x
    variance = xp.mean(c * c, axis=-1, keepdims=True)
    return gamma * (c / xp.sqrt(variance + op.epsilon)) + beta


def attention(op: Attention, xp: Namespace, q: Array, k: Array, v: Array, *rest: Array) -> Array:
    """Softmax attention; rows that see nothing are zero."""
    group = q.shape[2] // k.shape[2]
    keys, values = (xp.permute_dims(xp.repeat(x, group, axis=2), (0, 2, 1, 3)) for x in (k, v))
    logits = xp.matmul(xp.permute_dims(q, (0, 2, 1, 3)), xp.permute_dims(keys, (0, 1, 3, 2))) * op.scale
    if op.bias:
        logits = logits + rest[0]
    seen = xp.ones_like(logits, dtype=xp.bool)
    if op.causal:
        n, m = logits.shape[2:]
        seen = seen & (xp.arange(m)[None, :] <= xp.arange(n)[:, None] + (m - n))
    if op.mask:
        seen = seen & rest[-1]
    lowest = xp.finfo(logits.dtype).min
    logits = xp.where(seen, logits, lowest)
    e = xp.where(seen, xp.exp(logits - xp.max(logits, axis=-1, keepdims=True)), xp.zeros_like(logits))
    total = xp.sum(e, axis=-1, keepdims=True)
    weights = e / xp.where(total == 0, xp.ones_like(total), total)
    return xp.permute_dims(xp.matmul(weights, values), (0, 2, 1, 3))


def rotate(op: Rotate, xp: Namespace, x: Array, cos: Array, sin: Array) -> Array:
    """x cos + partner sin."""
    partner = xp.take(x, xp.asarray(op.partners), axis=3)
    return x * cos[:, None, :] + partner * sin[:, None, :]


KERNELS: Mapping[type[Op], Kernel] = {Normalize: normalize, Attention: attention, Rotate: rotate}
