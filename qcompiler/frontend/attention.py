"""Attention and rotary embedding of the default domain, and what those of other domains share with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from qcompiler.frontend.fold import known_array
from qcompiler.frontend.movement import part
from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Concat, Gather, Pad, Reshape, Transpose, Where
from qcompiler.ir.sequence import Attention as AttentionOp
from qcompiler.ir.types import DType

IMPORTERS = Importers()

HEADS_FIRST = (0, 2, 1, 3)
"""[B,N,H,D] to [B,H,N,D] and back."""

LOWEST = float(np.finfo(np.float32).min)


# --- heads ---


def reshaped(node: Node, x: Value, *shape: int) -> Value:
    """`x` in another shape."""
    return x if x.shape == shape else node.emit(Reshape(shape), x)


def split_heads(node: Node, x: Value, heads: int) -> Value:
    """[B,N,H*D] as [B,N,H,D]."""
    if len(x.shape) != 3 or heads < 1 or x.shape[2] % heads:
        raise ValueError(f"expected [batch, positions, channels of {heads} heads], found {x.type}")
    return reshaped(node, x, *x.shape[:2], heads, x.shape[2] // heads)


def merge_heads(node: Node, x: Value) -> Value:
    """[B,N,H,D] as [B,N,H*D]."""
    return reshaped(node, x, *x.shape[:2], x.shape[2] * x.shape[3])


def swap_heads(node: Node, x: Value) -> Value:
    """[B,H,N,D] to [B,N,H,D] and back."""
    return node.emit(Transpose(HEADS_FIRST), x)


# --- attention ---


@dataclass(frozen=True)
class Masks:
    """What is added to the logits, and where they are seen; both broadcast to [B,H,N,M]."""

    bias: Value | None = None
    seen: Value | None = None


def attend(node: Node, q: Value, k: Value, v: Value, scale: float | None, causal: bool, masks: Masks) -> Value:
    """softmax(scale q k^T + bias where seen) v for q [B,N,H,D], k [B,M,G,D], v [B,M,G,E]; [B,N,H,E]. No scale is 1 / sqrt(D)."""
    op = AttentionOp(scale or 1 / sqrt(q.shape[3]), causal, masks.bias is not None, masks.seen is not None)
    return node.emit(op, q, k, v, *(m for m in (masks.bias, masks.seen) if m is not None))


def with_bias(node: Node, masks: Masks, bias: Value) -> Masks:
    """The masks with another bias added."""
    return Masks(bias if masks.bias is None else node.emit(pw.Add(), masks.bias, bias), masks.seen)


@IMPORTERS.register("Attention")
def attention(
    node: Node,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    past_k: Value | None = None,
    past_v: Value | None = None,
    lengths: Value | None = None,
) -> list[Value]:
    """softmax(scale q k^T + mask) v with heads in an axis of their own, or together with channels."""
    if node.attributes.get("softcap"):
        raise Unsupported(f"has softcap {node.attributes['softcap']}; supported is 0 (none)")
    if lengths is not None:
        raise Unsupported("has an operand nonpad_kv_seqlen, the lengths of a cache; export it without a cache")
    together = len(q.shape) == 3
    queries = _own_axis(node, q, "q_num_heads")
    keys, values = (_with_past(node, _own_axis(node, x, "kv_num_heads"), past) for x, past in ((k, past_k), (v, past_v)))
    causal, masks = bool(node.attributes.get("is_causal")), _masks(node, mask, keys.shape[1])
    past = 0 if past_k is None else past_k.shape[2]
    left, right = (int(node.attributes.get(f"{side}_window_size", -1)) for side in ("left", "right"))
    if left >= 0 or right >= 0 or (causal and queries.shape[1] + past != keys.shape[1]):
        window = _window(queries.shape[1], keys.shape[1], past, left, 0 if causal else right)
        causal, masks = False, with_bias(node, masks, node.constant(np.where(window, 0.0, LOWEST)[None, None], q))
    y = attend(node, queries, keys, values, node.attributes.get("scale"), causal, masks)
    return [merge_heads(node, y) if together else swap_heads(node, y), *(swap_heads(node, x) for x in (keys, values))]


def _own_axis(node: Node, x: Value, name: str) -> Value:
    """[B,N,H*D] or [B,H,N,D] as [B,N,H,D]."""
    if len(x.shape) == 4:
        return swap_heads(node, x)
    return split_heads(node, x, node.integer(name))


def _with_past(node: Node, x: Value, past: Value | None) -> Value:
    return x if past is None or 0 in past.shape else node.emit(Concat(1), swap_heads(node, past), x)


def _window(queries: int, keys: int, past: int, left: int, right: int) -> np.ndarray:
    """Where position m is at most `left` before n + past, and at most `right` behind; negative numbers are no bounds."""
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None] - past
    seen: np.ndarray = (left < 0) | (ahead >= -left)
    return seen & ((right < 0) | (ahead <= right))


def _masks(node: Node, mask: Value | None, positions: int) -> Masks:
    """The mask as boolean or as bias, hidden behind its own end."""
    if mask is None:
        return Masks()
    missing = positions - mask.shape[-1]
    if mask.type.dtype is DType.bool and not missing:
        return Masks(seen=lifted(node, mask))
    bias = mask if mask.type.dtype is not DType.bool else node.emit(Where(), mask, *(node.constant(np.float32(x)) for x in (0.0, LOWEST)))
    if missing and mask.shape[-1] > 1:
        bias = node.emit(Pad((*((0, 0),) * (len(bias.shape) - 1), (0, missing)), value=LOWEST), bias)
    return Masks(bias=lifted(node, bias))


def lifted(node: Node, x: Value) -> Value:
    """`x` with leading axes of size 1 to make four."""
    return reshaped(node, x, *(1,) * (4 - len(x.shape)), *x.shape)


# --- rotary embedding ---


@dataclass(frozen=True)
class Rotary:
    """How channels are paired: neighbours, or halves of the first `channels` (0: of all)."""

    interleaved: bool
    channels: int


@IMPORTERS.register("RotaryEmbedding")
def rotary_embedding(node: Node, x: Value, cos: Value, sin: Value, positions: Value | None = None) -> Value:
    """Pairs of channels rotated by angles that grow with the position (Su et al. 2021)."""
    kind = Rotary(bool(node.integer("interleaved")), node.integer("rotary_embedding_dim"))
    angles = [a if positions is None else node.emit(Gather(0), a, positions) for a in (cos, sin)]
    if len(x.shape) == 4:
        return swap_heads(node, rotate(node, swap_heads(node, x), angles[0], angles[1], kind))
    return merge_heads(node, rotate(node, split_heads(node, x, node.integer("num_heads")), angles[0], angles[1], kind))


def rotate(node: Node, x: Value, cos: Value, sin: Value, kind: Rotary) -> Value:
    """x [B,N,H,D] times cos plus partners times sin; cos and sin [B,N,R/2] or [N,R/2] for the first R channels.

    Written as arithmetic: where the angles are constant, `recognize_rotate` makes it one operator.
    """
    width = kind.channels or x.shape[3]
    if width % 2 or cos.shape[-1] != width // 2 or cos.shape != sin.shape:
        raise ValueError(f"cos {cos.type} and sin {sin.type} do not fit {width} rotated channels of {x.type}")
    half = np.arange(width) // 2 if kind.interleaved else np.arange(width) % (width // 2)
    partners = np.arange(width) ^ 1 if kind.interleaved else (np.arange(width) + width // 2) % width
    signs = np.where(partners > np.arange(width), -1.0, 1.0)
    rotated = x if width == x.shape[3] else part(node, x, 3, 0, width)
    c, s = (_spread(node, a, half) for a in (cos, sin))
    partner = node.emit(Gather(3), rotated, node.constant(partners))
    turned = node.emit(pw.Mul(), partner, node.emit(pw.Mul(), s, node.constant(signs, s)))
    y = node.emit(pw.Add(), node.emit(pw.Mul(), rotated, c), turned)
    return y if width == x.shape[3] else node.emit(Concat(3), y, part(node, x, 3, width, x.shape[3]))


def _spread(node: Node, angles: Value, channels: np.ndarray) -> Value:
    """[B,N,R/2] or [N,R/2] as [B,N,1,R], one number for each channel."""
    known = known_array(angles)
    if known is not None and len(known.shape) == 3 and (known == known[:1]).all():
        angles = part(node, angles, 0, 0, 1)
    full = node.emit(Gather(len(angles.shape) - 1), angles, node.constant(channels))
    return reshaped(node, full, *((1,) * (3 - len(full.shape)) + full.shape[:-1]), 1, len(channels))
