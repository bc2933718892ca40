"""Attention as the transformer optimizer of onnxruntime writes it (domain com.microsoft), without caches of keys and values."""

from __future__ import annotations

import numpy as np

from qcompiler.frontend.attention import (
    Masks,
    Rotary,
    attend,
    lifted,
    merge_heads,
    reshaped,
    rotate,
    split_heads,
    swap_heads,
    with_bias,
)
from qcompiler.frontend.contrib import added
from qcompiler.frontend.movement import part
from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Gather, MatMul
from qcompiler.ir.types import DType

IMPORTERS = Importers()


def _refuse_cache(*past: Value | None) -> None:
    """Unsupported for keys and values of earlier calls."""
    if any(p is not None and 0 not in p.shape for p in past):
        raise Unsupported("has a cache of earlier keys and values (past); export the model without one (use_cache=False)")


def _scale(node: Node) -> float | None:
    """The scale, if one is given: 0 stands for none."""
    return float(node.attributes.get("scale", 0.0)) or None


def _masks(node: Node, mask: Value | None, batch: int) -> Masks:
    """A mask [B,M] or [B,N,M] of ones where positions are seen."""
    if mask is None:
        return Masks()
    if len(mask.shape) not in (2, 3) or mask.shape[0] != batch:
        raise Unsupported(f"has mask '{mask.name}' {mask.type}, lengths or ends of sequences; supported are masks of two dimensions or three")
    seen = node.cast(mask, DType.bool)
    return Masks(seen=reshaped(node, seen, batch, 1, *((1, mask.shape[1]) if len(mask.shape) == 2 else mask.shape[1:])))


def _biased(node: Node, masks: Masks, bias: Value | None) -> Masks:
    return masks if bias is None else with_bias(node, masks, lifted(node, bias))


@IMPORTERS.register("com.microsoft.Attention")
def attention(
    node: Node,
    x: Value,
    weights: Value,
    bias: Value | None = None,
    mask: Value | None = None,
    past: Value | None = None,
    logits_bias: Value | None = None,
    past_length: Value | None = None,
) -> Value:
    """Self-attention with its projections: [q k v] = x @ weights + bias."""
    _refuse_cache(past)
    if node.attributes.get("do_rotary"):
        raise Unsupported("rotates queries and keys itself (do_rotary)")
    heads = node.integer("num_heads")
    qkv = added(node, node.emit(MatMul(), x, weights), bias)
    sizes = node.integers("qkv_hidden_sizes") or (qkv.shape[2] // 3,) * 3
    ends = np.cumsum(sizes)
    q, k, v = (split_heads(node, part(node, qkv, 2, int(end - size), int(end)), heads) for size, end in zip(sizes, ends))
    masks = _biased(node, _masks(node, mask, x.shape[0]), logits_bias)
    return merge_heads(node, attend(node, q, k, v, _scale(node), bool(node.attributes.get("unidirectional")), masks))


@IMPORTERS.register("com.microsoft.MultiHeadAttention")
def multi_head_attention(
    node: Node,
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    bias: Value | None = None,
    mask: Value | None = None,
    logits_bias: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    past_length: Value | None = None,
    beams: Value | None = None,
) -> Value:
    """Attention of queries, keys and values that were projected before, together or apart; `bias` is that of the projections."""
    _refuse_cache(past_key, past_value)
    heads = node.integer("num_heads")
    q, k, v = _unpacked(node, query, key, value, heads)
    if bias is not None:
        sizes = [x.shape[2] * x.shape[3] for x in (q, k, v)]
        ends = np.cumsum(sizes)
        parts = [part(node, bias, 0, int(end - size), int(end)) for size, end in zip(sizes, ends)]
        q, k, v = (added(node, x, reshaped(node, b, *x.shape[2:])) for x, b in zip((q, k, v), parts))
    masks = _biased(node, _masks(node, mask, q.shape[0]), logits_bias)
    return merge_heads(node, attend(node, q, k, v, _scale(node), bool(node.attributes.get("unidirectional")), masks))


def _unpacked(node: Node, query: Value, key: Value | None, value: Value | None, heads: int) -> list[Value]:
    """q, k, v as [B,N,H,D] from [B,N,H*D], [B,H,N,D] (keys and values), [B,N,H,3,D] or [B,N,H*D] with [B,M,H,2,D]."""
    if key is None:
        return _layers(node, query, 3)
    if value is None:
        return [split_heads(node, query, heads), *_layers(node, key, 2)]
    apart = (x if len(x.shape) == 3 else swap_heads(node, x) for x in (key, value))
    return [split_heads(node, query, heads), *(x if len(x.shape) == 4 else split_heads(node, x, heads) for x in apart)]


def _layers(node: Node, x: Value, count: int) -> list[Value]:
    """x[:, :, :, i] for each i."""
    if len(x.shape) != 5 or x.shape[3] != count:
        raise ValueError(f"expected [batch, positions, heads, {count}, channels], found {x.type}")
    shape = (*x.shape[:3], x.shape[4])
    return [reshaped(node, part(node, x, 3, i, i + 1), *shape) for i in range(count)]


@IMPORTERS.register("com.microsoft.GroupQueryAttention")
def group_query_attention(
    node: Node,
    query: Value,
    key: Value | None,
    value: Value | None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    lengths: Value | None = None,
    total_length: Value | None = None,
    cos: Value | None = None,
    sin: Value | None = None,
    positions: Value | None = None,
    logits_bias: Value | None = None,
) -> list[Value]:
    """Causal attention whose keys and values serve several queries each. Padding stands at the end, where no one looks at it."""
    _refuse_cache(past_key, past_value)
    window = int(node.attributes.get("local_window_size", -1))
    for name, refused in (("softcap", node.attributes.get("softcap")), ("local_window_size", window if window > 0 else 0)):
        if refused:
            raise Unsupported(f"has {name} {refused}; supported is none")
    heads, shared = node.integer("num_heads"), node.integer("kv_num_heads")
    q, k, v = _grouped(node, query, key, value, heads, shared)
    if node.attributes.get("do_rotary"):
        if cos is None or sin is None:
            raise ValueError("rotates, but has no operands cos_cache and sin_cache")
        kind = Rotary(bool(node.attributes.get("rotary_interleaved")), 2 * cos.shape[1] if 2 * cos.shape[1] < q.shape[3] else 0)
        angles = [_at(node, a, positions, q.shape[1]) for a in (cos, sin)]
        q, k = (rotate(node, x, angles[0], angles[1], kind) for x in (q, k))
    y = attend(node, q, k, v, _scale(node), True, _biased(node, Masks(), logits_bias))
    present = [swap_heads(node, x) for x in (k, v)] if any(node.outputs[1:3]) else []
    return [merge_heads(node, y), *present]


def _grouped(node: Node, query: Value, key: Value | None, value: Value | None, heads: int, shared: int) -> list[Value]:
    if key is not None and value is not None:
        return [split_heads(node, x, n) for x, n in ((query, heads), (key, shared), (value, shared))]
    width = query.shape[2] // (heads + 2 * shared)
    ends = [heads * width, (heads + shared) * width, (heads + 2 * shared) * width]
    spans = zip((0, *ends), ends, (heads, shared, shared))
    return [split_heads(node, part(node, query, 2, a, b), n) for a, b, n in spans]


def _at(node: Node, table: Value, positions: Value | None, count: int) -> Value:
    """The rows of a table of angles at the positions of a sequence from the start, or at given ones."""
    return part(node, table, 0, 0, count) if positions is None else node.emit(Gather(0), table, positions)


@IMPORTERS.register("com.microsoft.RotaryEmbedding")
def rotary_embedding(node: Node, x: Value, positions: Value, cos: Value, sin: Value) -> Value:
    """Pairs of channels rotated by the angles of their positions: those given, or all from the first one on."""
    if node.attributes.get("is_packed_batching") or float(node.attributes.get("scale", 1.0)) != 1.0:
        raise Unsupported("packs sequences or scales (is_packed_batching, scale)")
    width = int(node.attributes.get("rotary_embedding_dim", 0))
    apart = len(x.shape) == 4
    heads = int(node.attributes.get("num_heads", 0)) or x.shape[-1] // (2 * cos.shape[1])
    full = swap_heads(node, x) if apart else split_heads(node, x, heads)
    if positions.type.size == 1 and full.shape[1] > 1:
        start = node.static_integers(positions, "position_ids")[0]
        angles = [part(node, a, 0, start, start + full.shape[1]) for a in (cos, sin)]
    else:
        angles = [node.emit(Gather(0), a, reshaped(node, positions, *full.shape[:2])) for a in (cos, sin)]
    y = rotate(node, full, angles[0], angles[1], Rotary(bool(node.attributes.get("interleaved")), width))
    return swap_heads(node, y) if apart else merge_heads(node, y)
