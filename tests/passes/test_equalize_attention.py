"""Queries, keys and values of even channels and one greatest element: the same function."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from float_graphs import Build, assert_same, feeds_for, graph_of

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, Reshape, Slice, constant
from qcompiler.ir.pointwise import Gelu
from qcompiler.ir.sequence import Attention, Rotate
from qcompiler.passes.calibrate.statistics import Statistics, observe
from qcompiler.passes.equalize_attention import equalize_attention

N, H, D, C = 12, 4, 8, 32


@dataclass(frozen=True)
class Case:
    """How attention is made; `keys` heads of keys."""

    keys: int = H
    fused: bool = False
    rotated: bool = False
    bias: bool = True
    channels: int = D
    """Of values."""


CASES = [
    Case(),
    Case(bias=False),
    Case(fused=True),
    Case(fused=True, bias=False),
    Case(keys=2),
    Case(keys=1, rotated=True),
    Case(rotated=True),
    Case(fused=True, rotated=True, keys=2),
    Case(channels=5),
]


def dense(b: Build, x: Value, out: int, bias: bool = True) -> Value:
    """With outputs of very different reach."""
    w = b.rng.normal(size=(out, 1, 1, x.shape[-1])) * b.rng.lognormal(0, 1, (out, 1, 1, 1)) * 0.2
    operands = [constant(w.astype(np.float32), "w")] + ([constant(b.rng.normal(size=out).astype(np.float32), "b")] if bias else [])
    return b.op(Conv(), x, *operands)


def heads(b: Build, x: Value, count: int) -> Value:
    return b.op(Reshape((1, N, count, x.shape[-1] // count)), x)


def operands(b: Build, x: Value, c: Case) -> list[Value]:
    sizes = (H * D, c.keys * D, c.keys * c.channels)
    if c.fused:
        qkv, ends = dense(b, x, sum(sizes), c.bias), np.cumsum((0, *sizes))
        parts = [b.op(Slice((0, 0, 0, lo), (1, 1, N, hi), (1, 1, 1, 1)), qkv) for lo, hi in pairwise(ends)]
    else:
        parts = [dense(b, x, size, c.bias) for size in sizes]
    return [heads(b, p, n) for p, n in zip(parts, (H, c.keys, c.keys))]


def turned(b: Build, x: Value) -> Value:
    angles = np.arange(N)[:, None] * 3.0 ** -np.arange(D // 2)
    cos, sin = (np.concatenate(p, 1).astype(np.float32) for p in ((np.cos(angles),) * 2, (-np.sin(angles), np.sin(angles))))
    return b.op(Rotate(tuple((i + D // 2) % D for i in range(D))), x, constant(cos, "cos"), constant(sin, "sin"))


def network(c: Case) -> Graph:
    b = Build()
    q, k, v = operands(b, b.input(1, 1, N, C), c)
    if c.rotated:
        q, k = turned(b, q), turned(b, k)
    a = b.op(Attention(0.3), q, k, v)
    return graph_of(dense(b, b.op(Reshape((1, 1, N, H * c.channels)), a), 16, c.bias))


def measured(graph: Graph) -> dict[Value, Statistics]:
    convs = [v for v in graph.order if isinstance(v.op, Conv)]
    return {v: observe(np.asarray(x), 3) for v, x in evaluate(graph, feeds_for(graph), convs).items()}


def attended(graph: Graph) -> list[np.ndarray]:
    """q, k and v as dense layers leave them, before they are turned: [positions, heads, channels]."""
    attention = next(v for v in graph.order if isinstance(v.op, Attention))
    sources = [i.inputs[0] if isinstance(i.op, Rotate) else i for i in attention.inputs[:3]]
    made = evaluate(graph, feeds_for(graph), sources)
    return [np.asarray(made[s])[0] for s in sources]


def reach(x: np.ndarray) -> np.ndarray:
    """Greatest absolute element per head and channel."""
    return np.abs(x).max(0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_function(case: Case) -> None:
    graph, declined = network(case), Declined()
    after = equalize_attention(graph, measured(graph), declined)
    assert after is not graph
    assert not declined.reasons
    assert_same(graph, after, 1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_greatest_elements_are_equal_and_channels_evener(case: Case) -> None:
    graph = network(case)
    before, after = attended(graph), attended(equalize_attention(graph, measured(graph)))
    greatest = [float(np.abs(x).max()) for x in after]
    np.testing.assert_allclose(greatest, greatest[0], rtol=1e-4)
    for old, new in list(zip(before, after))[2 if case.rotated else 1 :]:
        assert reach(new).min() / reach(new).max() > 1.2 * reach(old).min() / reach(old).max()


def test_products_of_logits_are_as_great_as_they_were() -> None:
    graph = network(Case())
    before, after = attended(graph), attended(equalize_attention(graph, measured(graph)))
    old, new = (np.einsum("nhd,mhd->hnm", q, k) for q, k, _ in (before, after))
    constant_part = (old - new).mean(2, keepdims=True)
    np.testing.assert_allclose(old - constant_part, new, rtol=0, atol=1e-4 * np.abs(old).max())


def test_values_and_keys_are_centered() -> None:
    graph = network(Case())
    _, k, v = attended(equalize_attention(graph, measured(graph)))
    for x in (k, v):
        assert np.abs(x.max(0) + x.min(0)).max() < 1e-3 * np.abs(x).max()


def test_rotated_keys_are_not_centered_and_partners_share() -> None:
    graph = network(Case(rotated=True))
    after = equalize_attention(graph, measured(graph))
    (_, k, _), (_, new, _) = attended(graph), attended(after)
    ratio = new / k
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-3)
    np.testing.assert_allclose(ratio[0, :, : D // 2], ratio[0, :, D // 2 :], rtol=1e-3)


def read_elsewhere(b: Build) -> Graph:
    q, k, v = operands(b, b.input(1, 1, N, C), Case())
    a = b.op(Attention(0.3), q, k, v)
    return graph_of(dense(b, b.op(Reshape((1, 1, N, H * D)), a), 16), b.op(Gelu(), q))


def not_dense(b: Build) -> Graph:
    q, k, v = operands(b, b.input(1, 1, N, C), Case())
    a = b.op(Attention(0.3), q, b.op(Gelu(), k), v)
    return graph_of(dense(b, b.op(Reshape((1, 1, N, H * D)), a), 16))


@pytest.mark.parametrize("make", [read_elsewhere, not_dense])
def test_declines_where_an_operand_is_not_a_dense_layer_alone(make) -> None:
    graph, declined = make(Build()), Declined()
    assert equalize_attention(graph, measured(graph), declined) is graph
    assert any("not the result of a dense layer alone" in text for _, text in declined.reasons)


def test_values_stay_where_what_reads_attention_is_no_dense_layer() -> None:
    b, declined = Build(), Declined()
    q, k, v = operands(b, b.input(1, 1, N, C), Case())
    graph = graph_of(b.op(Gelu(), b.op(Attention(0.3), q, k, v)))
    after = equalize_attention(graph, measured(graph), declined)
    assert_same(graph, after, 1e-5)
    assert any("values' channels are not equalized" in text for _, text in declined.reasons)
    (_, k0, v0), (_, k1, v1) = attended(graph), attended(after)
    np.testing.assert_array_equal(v0, v1)
    assert np.abs(k0 - k1).max() > 0


def test_what_was_not_measured_stays() -> None:
    graph = network(Case())
    assert equalize_attention(graph, {}) is graph


def test_a_mask_and_a_bias_do_not_matter() -> None:
    b = Build()
    q, k, v = operands(b, b.input(1, 1, N, C), Case())
    a = apply(Attention(0.3, causal=True, bias=True), q, k, v, b.const(1, H, N, N), name="a")
    graph = graph_of(dense(b, b.op(Reshape((1, 1, N, H * D)), a), 16))
    assert_same(graph, equalize_attention(graph, measured(graph)), 1e-5)
