"""Fused operators that the transformer optimizer of onnxruntime writes (domain com.microsoft): normalizations and activations."""

from __future__ import annotations

import numpy as np

from qcompiler.frontend.linear import _scaled
from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.frontend.normalization import normalize_rows
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Gather, MatMul, Transpose

IMPORTERS = Importers()


def added(node: Node, x: Value, *others: Value | None) -> Value:
    """The sum of `x` and the operands that are there."""
    for other in others:
        x = x if other is None else node.emit(pw.Add(), x, other)
    return x


# --- normalization ---


@IMPORTERS.register("SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def simplified_layer_normalization(node: Node, x: Value, gamma: Value) -> Value:
    """RMSNorm over all axes from `axis` on."""
    return normalize_rows(node, x, gamma, None, node.axis(x.type.rank, int(node.attributes.get("axis", -1))), False, _epsilon(node, 1e-5))


@IMPORTERS.register("com.microsoft.SkipLayerNormalization")
def skip_layer_normalization(node: Node, x: Value, skip: Value, gamma: Value, beta: Value | None = None, bias: Value | None = None) -> list[Value]:
    """LayerNorm of x + skip + bias; the sum is the fourth result."""
    return _skip(node, added(node, x, skip, bias), gamma, beta, centered=True)


@IMPORTERS.register("com.microsoft.SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(node: Node, x: Value, skip: Value, gamma: Value, bias: Value | None = None) -> list[Value]:
    """RMSNorm of x + skip + bias; the sum is the fourth result."""
    return _skip(node, added(node, x, skip, bias), gamma, None, centered=False)


def _skip(node: Node, total: Value, gamma: Value, beta: Value | None, centered: bool) -> list[Value]:
    if any(node.outputs[1:3]):
        raise Unsupported("has a used output mean or inv_std_var, which only training needs")
    y = normalize_rows(node, total, gamma, beta, total.type.rank - 1, centered, _epsilon(node, 1e-12))
    return [y, total, total, total]


def _epsilon(node: Node, default: float) -> float:
    return float(node.attributes.get("epsilon", default))


@IMPORTERS.register("com.microsoft.EmbedLayerNormalization")
def embed_layer_normalization(
    node: Node,
    ids: Value,
    segments: Value | None,
    words: Value,
    places: Value,
    segment_table: Value | None = None,
    gamma: Value | None = None,
    beta: Value | None = None,
    mask: Value | None = None,
    positions: Value | None = None,
) -> list[Value]:
    """LayerNorm of the sum of embeddings of words, positions and segments; the sum is the third result."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Unsupported("has a used output mask_index; optimize the model with masks of two dimensions (--use_raw_attention_mask)")
    if gamma is None:
        raise ValueError("operand gamma is missing")
    where = node.constant(np.arange(ids.shape[1])) if positions is None else positions
    pairs = [(words, ids), (places, where), (segment_table, segments)]
    parts = [node.emit(Gather(0), table, i) for table, i in pairs if table is not None and i is not None]
    total = added(node, parts[0], *parts[1:])
    y = normalize_rows(node, total, gamma, beta, total.type.rank - 1, True, _epsilon(node, 1e-12))
    return [y, total, total]


# --- activations ---


@IMPORTERS.register("com.microsoft.Gelu")
def gelu(node: Node, x: Value) -> Value:
    """x * Phi(x)."""
    return node.emit(pw.Gelu(False), x)


@IMPORTERS.register("com.microsoft.BiasGelu")
def bias_gelu(node: Node, x: Value, bias: Value) -> Value:
    """Gelu of x + bias."""
    return node.emit(pw.Gelu(False), added(node, x, bias))


@IMPORTERS.register("com.microsoft.FastGelu")
def fast_gelu(node: Node, x: Value, bias: Value | None = None) -> Value:
    """Gelu of x + bias by the tanh approximation."""
    return node.emit(pw.Gelu(True), added(node, x, bias))


@IMPORTERS.register("com.microsoft.QuickGelu")
def quick_gelu(node: Node, x: Value) -> Value:
    """x * sigmoid(alpha * x)."""
    scaled = _scaled(node, x, float(node.attributes.get("alpha", 1.702)))
    return node.emit(pw.Mul(), x, node.emit(pw.Sigmoid(), scaled))


# --- products ---


@IMPORTERS.register("com.microsoft.FusedMatMul")
def fused_matmul(node: Node, a: Value, b: Value) -> Value:
    """alpha * A' B', the last two axes of either transposed where the attributes say so."""
    if node.attributes.get("transBatchA") or node.attributes.get("transBatchB"):
        raise Unsupported("transposes batches (transBatchA, transBatchB)")
    left = _swapped(node, a) if node.attributes.get("transA") else a
    right = _swapped(node, b) if node.attributes.get("transB") else b
    return _scaled(node, node.emit(MatMul(), left, right), float(node.attributes.get("alpha", 1.0)))


def _swapped(node: Node, x: Value) -> Value:
    rank = len(x.shape)
    return node.emit(Transpose((*range(rank - 2), rank - 1, rank - 2)), x)
