"""softmax(scale q k^T + bias) v: attention, taken together from MatMul, Softmax and MatMul (Vaswani et al. 2017, section 3.2.1).

Scales may stand on q, on k and on the products; biases and masks in any number between. Operands are transposed to
[batch, position, head, channel], which the transpositions that split heads undo: `sink_transposes` removes both.

A constant bias that hides (-10^4 or less) exactly what comes later is `causal`. What is computed from an integer or boolean
input and is either 0 or hides is a `mask`; so is the condition of a `Where`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, MatMul, Reshape, Softmax, Transpose, Where, constant
from qcompiler.ir.pointwise import Equal, Not
from qcompiler.ir.sequence import Attention

from .attention_logits import HIDDEN, LOWEST, Floats, Logits, hides, peel, unscaled
from .constants import floats, is_weights
from .moved_elements import repeated_heads
from .run_time_masks import PASSING, run_time_mask

SWAP = (0, 2, 1, 3)
"""[B,H,N,D] to [B,N,H,D] and back."""


def recognize_attention(graph: Graph, declined: Declined | None = None) -> Graph:
    """Replace each product of a softmax of products by an `Attention`."""
    return rewrite(graph, RULES, declined)


def to_attention(v: Value, sweep: Sweep) -> Value | None:
    """MatMul(Softmax(logits), v), if the logits are scaled products of queries and keys with masks."""
    match v:
        case Value(MatMul(), (weights, values)) if (logits := _softmax_operand(weights)) is not None:
            found = peel(logits)
            if isinstance(found, str):
                return sweep.declined(v, f"is no attention that can be compiled as such: {found}")
            return _attention(v, found, values, sweep)
    return None


def _softmax_operand(p: Value) -> Value | None:
    """The operand of a softmax along the last axis, also behind a guard against rows of NaN."""
    match p:
        case Value(Softmax(axis, False), (x,)) if axis == len(p.shape) - 1:
            return x
        case Value(Where(), (Value(Not(), (Value(Equal(), (s, t)),)), Value(Const()), r)) if s is t is r:
            return _softmax_operand(r)
        case Value(Where(), (Value(Equal(), (s, t)), r, Value(Const()))) if s is t is r:
            return _softmax_operand(r)
        case Value(Reshape(), (x,)) if x.shape[-2:] == p.shape[-2:]:
            return _softmax_operand(x)
    return None


@dataclass(frozen=True)
class Heads:
    """How leading axes are batch B, heads H of queries and heads G of keys."""

    batch: int
    queries: int
    keys: int


def _attention(v: Value, logits: Logits, values: Value, sweep: Sweep) -> Value | None:
    q, q_scale = unscaled(logits.q)
    k, k_scale = unscaled(logits.k)
    heads = _heads(q, k, values)
    if heads is None:
        return sweep.declined(v, f"heads of queries {q.type}, keys {k.type} and values {values.type} do not fit each other")
    if is_weights(k) or is_weights(values):
        return sweep.declined(v, "keys or values are constant")
    shape = (heads.batch, heads.queries, q.shape[-2], k.shape[-1])
    bias = _bias(logits, shape)
    masks = [m for mask in logits.masks if (m := _reshaped_mask(mask, logits.shape, shape)) is not None]
    if len(masks) < len(logits.masks) or len(masks) > 1:
        return sweep.declined(v, "more than one mask is computed at run time, or one of a shape that does not fit")
    scale = logits.scale * q_scale * k_scale
    if not 0 < scale < np.inf:
        return sweep.declined(v, f"the scale {scale} is not positive")
    bias, causal = _without_causal(bias, shape)
    operands = [
        _positions_first(q, (heads.batch, heads.queries, *q.shape[-2:]), SWAP),
        _positions_first(k, (heads.batch, heads.keys, *k.shape[-2:]), (0, 3, 1, 2)),
        _positions_first(values, (heads.batch, heads.keys, *values.shape[-2:]), SWAP),
    ]
    biases = [] if bias is None else [constant(bias.astype(np.float32), f"{v.name}.bias")]
    op = Attention(scale, causal, bool(biases), bool(masks))
    y = apply(op, *operands, *biases, *masks, name=v.name)
    back = apply(Transpose(SWAP), y, name=f"{v.name}.heads")
    return back if back.shape == v.shape else apply(Reshape(v.shape), back, name=f"{v.name}.reshaped")


def _positions_first(x: Value, shape: tuple[int, ...], perm: tuple[int, ...]) -> Value:
    full = x if x.shape == shape else apply(Reshape(shape), x, name=f"{x.name}.split")
    return apply(Transpose(perm), full, name=f"{x.name}.positions")


def _heads(q: Value, k: Value, v: Value) -> Heads | None:
    """Batch and heads of q [.., N, D], k [.., D, M] and v [.., M, E]."""
    a, b, c = (x.shape[:-2] for x in (q, k, v))
    if not len(a) == len(b) == len(c) or b != c or q.shape[-1] != k.shape[-2]:
        return None
    if len(a) <= 1:
        return None if a != b else _folded_heads(q, prod(a))
    split = 1 if len(a) == 2 or b[2:] == (1,) * len(b[2:]) else len(a) - 1
    if a[:split] != b[:split] or prod(a[split:]) % prod(b[split:]):
        return None
    leading = next((i for i in range(split, len(a)) if a[i] != b[i]), len(a))
    return None if prod(b[leading:]) != 1 else Heads(prod(a[:split]), prod(a[split:]), prod(b[split:]))


def _folded_heads(q: Value, count: int) -> Heads:
    """Of [B * H, N, D]: whatever was folded, as q still shows; else heads where it was transposed, a batch where not."""
    source = q
    while isinstance(source.op, Reshape):
        source = source.inputs[0]
        if len(source.shape) == 4 and source.shape[:2] != (count, 1) and prod(source.shape[:2]) == count:
            return Heads(source.shape[0], source.shape[1], source.shape[1])
    return Heads(1, count, count) if isinstance(source.op, Transpose) else Heads(count, 1, 1)


def _bias(logits: Logits, shape: tuple[int, ...]) -> Floats | None:
    """The sum of the constant biases, which broadcasts to `shape`; -inf as the lowest number."""
    if logits.bias is None:
        return None
    bias = np.maximum(_to_shape(logits.bias, logits.shape, shape), LOWEST)
    return bias if bias.any() else None


def _to_shape(x: NDArray[np.generic], before: tuple[int, ...], after: tuple[int, ...]) -> NDArray[np.generic]:
    """`x`, which broadcasts to `before`, so that it broadcasts to `after`: leading axes regrouped."""
    full = x.reshape((1,) * (len(before) - x.ndim) + x.shape)
    if all(d == 1 for d in full.shape[:-2]):
        return full.reshape(1, 1, *full.shape[-2:])
    return np.broadcast_to(full, (*before[:-2], *full.shape[-2:])).reshape(*after[:2], *full.shape[-2:])


def _without_causal(bias: Floats | None, shape: tuple[int, ...]) -> tuple[Floats | None, bool]:
    """The bias without what hides later positions, if it hides them all, and whether it did."""
    n, m = shape[2:]
    later = np.arange(m)[None, :] > np.arange(n)[:, None] + (m - n)
    if bias is None or m < n or not later.any() or bias.shape[-2:] != (n, m) or not (bias[..., later] <= HIDDEN).all():
        return bias, False
    rest = np.where(later, 0.0, bias)
    return (rest if rest.any() else None), True


def _reshaped_mask(mask: Value, before: tuple[int, ...], after: tuple[int, ...]) -> Value | None:
    """A mask that broadcasts to `before` so that it broadcasts to `after`, by a reshape alone; None where that cannot be."""
    full = (1,) * (len(before) - len(mask.shape)) + mask.shape
    leading = full[:-2]
    if all(d == 1 for d in leading):
        target = (1, 1, *full[-2:])
    elif before == after or (len(before) == 4 and before[0] == after[0]):
        target = full
    elif leading == before[:-2]:
        target = (*after[:2], *full[-2:])
    elif leading[0] == after[0] and all(d == 1 for d in leading[1:]):
        target = (after[0], 1, *full[-2:])
    else:
        return None
    return mask if mask.shape == target else apply(Reshape(target), mask, name=f"{mask.name}.r")


def from_transposed(v: Value, sweep: Sweep) -> Value | None:
    """v^T p^T = (p v)^T: attention over the columns of a feature map."""
    match v:
        case Value(MatMul(), (values, Value(Transpose(perm), (weights,)))) if perm[-2:] == (len(perm) - 1, len(perm) - 2) and (
            perm[:-2] == tuple(range(len(perm) - 2)) and _softmax_operand(weights) is not None
        ):
            rows = apply(Transpose(perm), values, name=f"{values.name}.t")
            return apply(Transpose(perm), apply(MatMul(), weights, rows, name=v.name), name=f"{v.name}.t")
    return None


def share_heads(v: Value, sweep: Sweep) -> Value | None:
    """Keys and values that were repeated for each query of a group are read where they are (Ainslie et al. 2023, "GQA")."""
    match v:
        case Value(Attention(), (q, k, values, *rest)) if (source := repeated_heads(k)) is not None and (other := repeated_heads(values)) is not None:
            if source.shape[2] == other.shape[2]:
                return replace(v, inputs=(q, source, other, *rest))
            return sweep.declined(v, "keys and values are repeated for different numbers of heads")
    return None


def refine_bias(v: Value, sweep: Sweep) -> Value | None:
    """A bias that is a mask becomes one: causal, or computed at run time."""
    match v:
        case Value(Attention(bias=True) as op, (q, k, values, bias, *masks)):
            shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
            known = floats(bias)
            if known is None:
                found = None if masks else run_time_mask(bias, hides)
                return None if found is None else _masked(v, found[0], np.maximum(found[1].astype(np.float64), LOWEST))
            rest, causal = _without_causal(np.maximum(known, LOWEST), shape)
            if op.causal or not causal:
                return None
            refined = replace(op, causal=True, bias=rest is not None)
            biases = [] if rest is None else [constant(rest.astype(np.float32), bias.name)]
            return apply(refined, q, k, values, *biases, *masks, name=v.name)
    return None


def refine_mask(v: Value, sweep: Sweep) -> Value | None:
    """A mask of constants and of one input becomes a bias and that input."""
    match v:
        case Value(Attention(bias=False, mask=True) as op, (q, k, values, mask)):
            if isinstance(mask.op, Const):
                bias = constant(np.where(mask.op.data, 0.0, LOWEST).astype(np.float32), mask.name)
                return apply(replace(op, bias=True, mask=False), q, k, values, bias, name=v.name)
            if _is_plain(mask):
                return None
            found = run_time_mask(mask, np.logical_not)
            return None if found is None else _masked(v, found[0], np.where(found[1], 0.0, LOWEST))
    return None


def _is_plain(mask: Value) -> bool:
    """Whether a mask is an input as boolean, reshaped: as simple as can be."""
    while isinstance(mask.op, (Reshape, Cast, Not)):
        mask = mask.inputs[0]
    return not isinstance(mask.op, PASSING)


def _masked(v: Value, mask: Value, bias: Floats) -> Value | None:
    """The attention `v` with this mask and bias instead of its own."""
    assert isinstance(v.op, Attention)
    fitting = _reshaped_mask(mask, v.inputs[3].shape, v.inputs[3].shape)
    if fitting is None:
        return None
    biases = [constant(bias.astype(np.float32), f"{v.name}.bias")] if bias.any() else []
    return apply(replace(v.op, bias=bool(biases), mask=True), *v.inputs[:3], *biases, fitting, name=v.name)


RULES: tuple[Rule, ...] = (from_transposed, to_attention, share_heads, refine_bias, refine_mask)
