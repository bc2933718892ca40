"""Attention in the spellings of exporters becomes one operator without transpositions around."""

import numpy as np
import pytest
from float_graphs import census
from onnx_graphs import Spelled

from qcompiler.ir.graph import Declined
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.sequence import Attention
from qcompiler.passes.index_ranges import input_interval
from qcompiler.passes.simplify import simplify

N, H, D = 6, 4, 8
C = H * D
TRIANGLE = np.triu(np.full((N, N), -np.inf, np.float32), 1)


def products(o, q, k):
    return o.op("MatMul", q, o.op("Transpose", k, perm=[0, 1, 3, 2]))


def separate(o, x):
    return [o.heads(o.dense(x, C, C), N, H, D) for _ in range(3)]


def finish(o, weights, v):
    return o.dense(o.merged(o.op("MatMul", weights, v), N, C), C, C)


def attend(o, logits, v):
    return finish(o, o.op("Softmax", logits, axis=-1), v)


def check(graph, feeds=None, declined=None):
    """The attention of the simplified graph, which computes the same and has neither softmax nor transpositions."""
    after = simplify(graph, declined)
    rng = np.random.default_rng(1)
    feeds = feeds or {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}
    (a,), (b,) = (list(evaluate(g, feeds).values()) for g in (graph, after))
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())
    assert not {"Softmax", "MatMul", "Transpose", "Expand", "Tile", "Where"} & census(after).keys(), census(after)
    found = [v for v in after.order if isinstance(v.op, Attention)]
    assert len(found) == 1
    return found[0]


# --- how heads are made, and where the scale stands ---


def bert(o, x):
    q, k, v = separate(o, x)
    return attend(o, o.op("Div", products(o, q, k), float(D**0.5)), v)


def scale_on_queries(o, x):
    q, k, v = separate(o, x)
    return attend(o, products(o, o.op("Mul", q, float(D**-0.5)), k), v)


def root_of_the_scale_on_both(o, x):
    q, k, v = separate(o, x)
    root = float(D**-0.25)
    return attend(o, o.op("MatMul", o.op("Mul", q, root), o.op("Mul", o.op("Transpose", k, perm=[0, 1, 3, 2]), root)), v)


def keys_transposed_at_once(o, x):
    q, _, v = separate(o, x)
    k = o.op("Transpose", o.reshape(o.dense(x, C, C), 1, N, H, D), perm=[0, 2, 3, 1])
    return attend(o, o.op("Mul", o.op("MatMul", q, k), float(D**-0.5)), v)


def timm_split(o, x):
    """One dense layer for all three; [3, B, H, N, D] split and squeezed."""
    qkv = o.op("Transpose", o.reshape(o.dense(x, C, 3 * C), 1, N, 3, H, D), perm=[2, 0, 3, 1, 4])
    parts = o.op("Split", qkv, np.array([1, 1, 1]), outputs=3, axis=0)
    q, k, v = (o.op("Squeeze", p, np.array([0])) for p in parts)
    return attend(o, products(o, o.op("Mul", q, float(D**-0.5)), k), v)


def timm_gather(o, x):
    qkv = o.op("Transpose", o.reshape(o.dense(x, C, 3 * C), 1, N, 3, H, D), perm=[2, 0, 3, 1, 4])
    q, k, v = (o.op("Gather", qkv, np.array(i), axis=0) for i in range(3))
    return attend(o, o.op("Mul", products(o, q, k), float(D**-0.5)), v)


def channels_split_first(o, x):
    """GPT-2: three thirds of the channels, then heads."""
    parts = o.op("Split", o.dense(x, C, 3 * C), np.array([C] * 3), outputs=3, axis=2)
    q, k, v = (o.heads(p, N, H, D) for p in parts)
    return attend(o, o.op("Div", products(o, q, k), float(D**0.5)), v)


def batched_matrices(o, x):
    """nn.MultiheadAttention, BART: [N, B * H, D] transposed to [B * H, N, D]."""

    def folded(y):
        return o.op("Transpose", o.reshape(o.op("Transpose", y, perm=[1, 0, 2]), N, H, D), perm=[1, 0, 2])

    q, k, v = (folded(o.dense(x, C, C)) for _ in range(3))
    logits = o.op("MatMul", o.op("Mul", q, float(D**-0.5)), o.op("Transpose", k, perm=[0, 2, 1]))
    y = o.op("MatMul", o.op("Softmax", logits, axis=-1), v)
    back = o.op("Transpose", o.reshape(o.op("Transpose", y, perm=[1, 0, 2]), N, 1, C), perm=[1, 0, 2])
    return o.dense(back, C, C)


def heads_folded_into_the_batch(o, x):
    q, k, v = (o.reshape(y, H, N, D) for y in separate(o, x))
    logits = o.op("Mul", o.op("MatMul", q, o.op("Transpose", k, perm=[0, 2, 1])), float(D**-0.5))
    y = o.reshape(o.op("MatMul", o.op("Softmax", logits, axis=-1), v), 1, H, N, D)
    return o.dense(o.merged(y, N, C), C, C)


def guarded_against_rows_of_nan(o, x):
    q, k, v = separate(o, x)
    weights = o.op("Softmax", o.op("Mul", products(o, q, k), float(D**-0.5)), axis=-1)
    return finish(o, o.op("Where", o.op("IsNaN", weights), 0.0, weights), v)


def by_einsum(o, x):
    q, k, v = (o.reshape(o.dense(x, C, C), 1, N, H, D) for _ in range(3))
    logits = o.op("Mul", o.op("Einsum", q, k, equation="bnhd,bmhd->bhnm"), float(D**-0.5))
    y = o.op("Einsum", o.op("Softmax", logits, axis=-1), v, equation="bhnm,bmhd->bnhd")
    return o.dense(o.reshape(y, 1, N, C), C, C)


SPELLINGS = [
    bert,
    scale_on_queries,
    root_of_the_scale_on_both,
    keys_transposed_at_once,
    timm_split,
    timm_gather,
    channels_split_first,
    batched_matrices,
    heads_folded_into_the_batch,
    guarded_against_rows_of_nan,
    by_einsum,
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
def test_spellings(spelling):
    o = Spelled()
    found = check(o.graph(spelling(o, o.input(1, N, C))))
    assert found.shape == (1, N, H, D)
    assert found.op == Attention(pytest.approx(D**-0.5))


# --- masks ---


def masked(o, add):
    q, k, v = separate(o, o.input(1, N, C))
    return o.graph(attend(o, add(o.op("Mul", products(o, q, k), float(D**-0.5))), v))


def with_triangle(o, value=-np.inf):
    return lambda logits: o.op("Add", logits, np.where(TRIANGLE < 0, np.float32(value), np.float32(0))[None, None])


@pytest.mark.parametrize("value", [-np.inf, -3.4e38, -1e9, -1e4])
def test_triangles_are_causal(value):
    o = Spelled()
    assert check(masked(o, with_triangle(o, value))).op == Attention(pytest.approx(D**-0.5), causal=True)


def test_where_with_a_constant_triangle_is_causal():
    o = Spelled()
    graph = masked(o, lambda logits: o.op("Where", (TRIANGLE == 0)[None, None], logits, -1e9))
    assert check(graph).op == Attention(pytest.approx(D**-0.5), causal=True)


def test_slopes_besides_a_triangle_are_a_bias():
    """ALiBi."""
    o = Spelled()
    slopes = -np.abs(np.arange(N)[None, :] - np.arange(N)[:, None])[None] * np.array([1, 0.5, 0.25, 0.125])[:, None, None]
    graph = masked(o, lambda logits: o.op("Add", o.op("Add", logits, slopes.astype(np.float32)[None]), TRIANGLE[None, None]))
    found = check(graph)
    assert found.op == Attention(pytest.approx(D**-0.5), causal=True, bias=True)
    assert found.inputs[3].op.data.min() == -5


def test_other_constants_are_a_bias():
    o = Spelled()
    found = check(masked(o, lambda logits: o.op("Add", logits, o.weights(1, H, N, N))))
    assert found.op == Attention(pytest.approx(D**-0.5), bias=True)
    assert found.inputs[3].shape == (1, H, N, N)


def lift(o, x):
    return o.op("Unsqueeze", o.op("Unsqueeze", x, np.array([1])), np.array([2]))


def subtracted(o, logits, mask):
    return o.op("Add", logits, o.op("Mul", o.op("Sub", 1.0, o.op("Cast", lift(o, mask), to=1)), -10000.0))


def filled(o, logits, mask):
    """BERT of late: expanded, inverted, filled where the inverse is true."""
    wide = o.op("Expand", o.op("Cast", lift(o, mask), to=1), np.array([1, 1, N, N]))
    inverse = o.op("Sub", 1.0, wide)
    return o.op("Add", logits, o.op("Where", o.op("Cast", inverse, to=9), float(np.finfo(np.float32).min), inverse))


def chosen(o, logits, mask):
    return o.op("Where", o.op("Equal", lift(o, mask), np.array(0)), float("-inf"), logits)


def with_causal(o, logits, mask):
    """A decoder: what is later or padding is hidden."""
    both = o.op("And", (TRIANGLE == 0)[None, None], o.op("Cast", lift(o, mask), to=9))
    return o.op("Where", both, logits, -1e9)


def multiplied(o, logits, mask):
    both = o.op("Mul", (TRIANGLE == 0).astype(np.float32)[None, None], o.op("Cast", lift(o, mask), to=1))
    return o.op("Add", logits, o.op("Mul", o.op("Sub", 1.0, both), -10000.0))


@pytest.mark.parametrize("mask", [subtracted, filled, chosen, with_causal, multiplied], ids=lambda f: f.__name__)
def test_masks_computed_at_run_time(mask):
    o = Spelled()
    seen = o.input(1, N, name="seen", dtype=np.int64)
    graph = masked(o, lambda logits: mask(o, logits, seen))
    feeds = {"x": np.random.default_rng(2).standard_normal((1, N, C)).astype(np.float32), "seen": np.array([[1, 1, 1, 1, 0, 0]])}
    found = check(graph, feeds)
    assert found.op == Attention(pytest.approx(D**-0.5), mask=True, causal=mask in (with_causal, multiplied))
    assert found.inputs[3].shape == (1, 1, 1, N)
    # What is computed with numbers, as (1 - m) * -10^4, means nothing for m = 2; what is compared with zero does.
    after = simplify(graph)
    assert input_interval(after, after.inputs[0]) == (None if mask in (chosen, with_causal) else (0, 1))


def test_numbers_other_than_0_and_1_are_told_apart():
    """Where the padding is token 1, a mask is not whether a token is 0."""
    o = Spelled()
    ids = o.input(1, N, name="ids", dtype=np.int64)
    declined = Declined()
    graph = masked(o, lambda logits: o.op("Where", o.op("Equal", lift(o, ids), np.array(1)), float("-inf"), logits))
    after = simplify(graph, declined)
    assert not any(isinstance(v.op, Attention) for v in after.order)
    assert any("integer or boolean input" in reason for _, reason in declined.reasons)


def test_a_bias_computed_at_run_time_is_declined():
    o = Spelled()
    bias = o.input(1, H, N, N, name="bias")
    declined = Declined()
    after = simplify(masked(o, lambda logits: o.op("Add", logits, bias)), declined)
    assert census(after)["Softmax"] == 1
    assert any("is no mask" in reason for _, reason in declined.reasons)


# --- windows, shared heads ---


def test_shifted_windows():
    """Swin: a relative position bias per head, and a mask per window behind a reshape."""
    windows = 4
    o = Spelled()
    x = o.input(windows, N, C)
    qkv = o.op("Transpose", o.reshape(o.dense(x, C, 3 * C), windows, N, 3, H, D), perm=[2, 0, 3, 1, 4])
    q, k, v = (o.op("Gather", qkv, np.array(i), axis=0) for i in range(3))
    logits = o.op("Add", products(o, o.op("Mul", q, float(D**-0.5)), k), o.weights(1, H, N, N))
    hidden = np.where(np.random.default_rng(3).random((1, windows, 1, N, N)) < 0.3, np.float32(-100), np.float32(0))
    logits = o.reshape(o.op("Add", o.reshape(logits, 1, windows, H, N, N), hidden), -1, H, N, N)
    found = check(o.graph(attend(o, logits, v)))
    assert found.op.bias
    assert found.inputs[3].shape == (windows, H, N, N)


def repeat_by_expand(o, x, groups):
    wide = o.op("Expand", o.op("Unsqueeze", x, np.array([2])), np.array([1, groups, H // groups, N, D]))
    return o.reshape(wide, 1, H, N, D)


def repeat_by_tile(o, x, groups):
    wide = o.op("Tile", o.op("Unsqueeze", x, np.array([2])), np.array([1, 1, H // groups, 1, 1]))
    return o.reshape(wide, 1, H, N, D)


@pytest.mark.parametrize("repeat", [repeat_by_expand, repeat_by_tile])
@pytest.mark.parametrize("groups", [1, 2])
def test_shared_keys_and_values(repeat, groups):
    o = Spelled()
    x = o.input(1, N, C)
    q = o.heads(o.dense(x, C, C), N, H, D)
    k, v = (repeat(o, o.heads(o.dense(x, C, groups * D), N, groups, D), groups) for _ in range(2))
    found = check(o.graph(attend(o, o.op("Mul", products(o, q, k), float(D**-0.5)), v)))
    assert [i.shape for i in found.inputs] == [(1, N, H, D), (1, N, groups, D), (1, N, groups, D)]


def test_constant_keys_are_declined():
    o = Spelled()
    q = o.heads(o.input(1, N, C), N, H, D)
    graph = o.graph(attend(o, o.op("MatMul", q, o.weights(1, H, D, N)), o.weights(1, H, N, D)))
    declined = Declined()
    assert "Attention" not in census(simplify(graph, declined))
    assert any("constant" in reason for _, reason in declined.reasons)


# --- the operator of opset 23 ---


def by_operator(o, mask, **attributes):
    q, k, v = separate(o, o.input(1, N, C))
    return o.graph(o.merged(o.op("Attention", q, k, v, mask, **attributes), N, C), opset=23)


def test_a_triangle_as_operand_is_causal():
    o = Spelled()
    assert check(by_operator(o, TRIANGLE)).op == Attention(pytest.approx(D**-0.5), causal=True)


def test_a_constant_boolean_is_a_bias():
    o = Spelled()
    seen = o.rng.random((N, N)) < 0.7
    found = check(by_operator(o, seen | np.eye(N, dtype=bool)))
    assert found.op == Attention(pytest.approx(D**-0.5), bias=True)


@pytest.mark.parametrize("as_bias", [False, True])
def test_a_mask_of_constants_and_an_input(as_bias):
    o = Spelled()
    both = o.op("And", (TRIANGLE == 0)[None, None], o.op("Cast", lift(o, o.input(1, N, name="seen", dtype=np.int64)), to=9))
    mask = o.op("Where", both, 0.0, -1e9) if as_bias else both
    feeds = {"x": np.random.default_rng(2).standard_normal((1, N, C)).astype(np.float32), "seen": np.array([[1, 1, 1, 1, 0, 0]])}
    found = check(by_operator(o, mask), feeds)
    assert found.op == Attention(pytest.approx(D**-0.5), causal=True, mask=True)
    assert found.inputs[3].shape == (1, 1, 1, N)
