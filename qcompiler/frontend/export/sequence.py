"""Normalization, attention and rotary embedding in plain ONNX operators, which every runtime knows."""

from __future__ import annotations

import numpy as np

from qcompiler.ir import sequence
from qcompiler.ir.graph import Value
from qcompiler.ir.types import DType

from .operators import emit
from .writer import Perm, Writer, identity

HEADS_FIRST: Perm = (0, 2, 1, 3)
"""[B,N,H,D] as [B,H,N,D]."""


@emit.register
def _normalize(op: sequence.Normalize, v: Value, w: Writer) -> None:
    x, gamma, beta = v.inputs
    names = [w.read(x, identity(x)), w.read(gamma, (0,)), w.read(beta, (0,))]
    if op.centered:
        y = w.node("LayerNormalization", names, v.name, axis=-1, epsilon=op.epsilon)
    else:
        y = _root_mean_square(op, names, v, w)
    w.place(v, y, identity(v))


def _root_mean_square(op: sequence.Normalize, names: list[str], v: Value, w: Writer) -> str:
    """x / sqrt(mean(x * x) + epsilon) * gamma + beta."""
    square = w.node("Mul", [names[0], names[0]], f"{v.name}_square")
    mean = w.node("ReduceMean", [square, w.integers([-1], f"{v.name}_axes")], f"{v.name}_mean", keepdims=1)
    shifted = w.node("Add", [mean, w.scalar(op.epsilon, v.type.dtype)], f"{v.name}_shifted")
    whitened = w.node("Div", [names[0], w.node("Sqrt", [shifted], f"{v.name}_root")], f"{v.name}_whitened")
    scaled = w.node("Mul", [whitened, names[1]], f"{v.name}_scaled")
    return w.node("Add", [scaled, names[2]], v.name)


@emit.register
def _attention(op: sequence.Attention, v: Value, w: Writer) -> None:
    """softmax(where(seen, scale * q k^T + bias, lowest)) v, with keys and values repeated for the queries of their group."""
    q, k, values, *rest = v.inputs
    keys = _per_query(k, (0, 2, 3, 1), q.shape[2], w)
    logits = w.node("MatMul", [w.read(q, HEADS_FIRST), keys], f"{v.name}_products")
    logits = w.node("Mul", [logits, w.scalar(op.scale, q.type.dtype)], f"{v.name}_logits")
    if op.bias:
        logits = w.node("Add", [logits, w.read(rest[0], identity(rest[0]))], f"{v.name}_biased")
    seen = _seen(op, v, w)
    if seen is not None:
        logits = w.node("Where", [seen, logits, w.scalar(float(np.finfo(np.float32).min), DType.f32)], f"{v.name}_masked")
    weights = w.node("Softmax", [logits], f"{v.name}_softmax", axis=-1)
    if seen is not None:
        weights = w.node("Where", [seen, weights, w.scalar(0.0, DType.f32)], f"{v.name}_weights")
    w.place(v, w.node("MatMul", [weights, _per_query(values, HEADS_FIRST, q.shape[2], w)], v.name), HEADS_FIRST)


def _per_query(x: Value, perm: Perm, heads: int, w: Writer) -> str:
    """Keys or values in layout `perm`, each head as often as there are heads of queries that read it."""
    name = w.read(x, perm)
    if x.shape[2] == heads:
        return name
    indices = np.repeat(np.arange(x.shape[2]), heads // x.shape[2])
    return w.node("Gather", [name, w.integers([int(i) for i in indices], f"{x.name}_heads")], f"{x.name}_repeated", axis=1)


def _seen(op: sequence.Attention, v: Value, w: Writer) -> str | None:
    """Where positions are seen, as a boolean that broadcasts to [B,H,N,M]."""
    mask = w.read(v.inputs[-1], identity(v.inputs[-1])) if op.mask else None
    if not op.causal:
        return mask
    n, m = v.shape[1], v.inputs[1].shape[1]
    earlier = w.tensor(np.arange(m)[None, :] <= np.arange(n)[:, None] + (m - n), f"{v.name}_earlier")
    return earlier if mask is None else w.node("And", [mask, earlier], f"{v.name}_seen")


@emit.register
def _rotate(op: sequence.Rotate, v: Value, w: Writer) -> None:
    """x cos + partner sin."""
    x, cos, sin = v.inputs
    perm = w.layout(x) if w.layout(x)[3] == 3 else identity(x)
    name = w.read(x, perm)
    shape = [x.shape[p] if p in (1, 3) else 1 for p in perm]
    angles = [w.node("Reshape", [w.read(a, identity(a)), w.integers(shape, f"{a.name}_shape")], f"{a.name}_heads") for a in (cos, sin)]
    partner = w.node("Gather", [name, w.integers(op.partners, f"{v.name}_partners")], f"{v.name}_partner", axis=3)
    products = [w.node("Mul", pair, f"{v.name}_part") for pair in zip((name, partner), angles)]
    w.place(v, w.node("Add", products, v.name), perm)
