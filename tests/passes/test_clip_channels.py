"""Both ends of each channel of a normalization are searched by the error of the layers that read it."""

from __future__ import annotations

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, constant
from qcompiler.ir.pointwise import Add
from qcompiler.ir.sequence import Normalize
from qcompiler.ir.text import to_text
from qcompiler.passes.calibrate.statistics import Statistics, observe
from qcompiler.passes.clip_channels import CUTS, clip_channels, clipped_ranges, rounding_errors, weight_products
from qcompiler.passes.pipeline import Options, quantize

D, ROWS = 12, 50


def heavy_tailed(seed: int = 0, n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose channels have different reach and rare outliers at one end, and weights that read them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, D)) * rng.lognormal(0, 1, D) + rng.normal(0, 2, D)
    x[:3] *= 6
    return x.astype(np.float32), rng.normal(0, 1, (5, D))


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_error_behind_the_weights_falls(bits: int) -> None:
    x, w = heavy_tailed()
    lo, hi = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    found = clipped_ranges(x, lo, hi, w.T @ w, bits)
    before, after = (float(((rounding_errors(x, *ends, bits) @ w.T) ** 2).mean()) for ends in ((lo, hi), found))
    assert after < {3: 0.5, 4: 0.8, 6: 0.97}[bits] * before
    assert (found[0] >= lo).all()
    assert (found[1] <= hi).all()
    assert (found[1] - found[0] >= (hi - lo) * (1 - CUTS[-1]) / 2 - 1e-9).all()


def test_each_choice_is_the_best_of_its_candidates() -> None:
    """One channel by itself: no upper end is better with the lower one as seen, then no lower one with that upper end."""
    x, _ = heavy_tailed(1)
    x = x[:, :1]
    lo, hi = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    low, high = clipped_ranges(x, lo, hi, np.ones((1, 1)), 4)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float((rounding_errors(x, a, b, 4) ** 2).sum())

    assert error(lo, high) == min(error(lo, hi - c * (hi - lo)) for c in CUTS)
    assert error(low, high) == min(error(lo + min(c * (hi - lo), (high - lo) / 2), high) for c in CUTS)
    assert error(low, high) < error(lo, hi)


def test_errors_of_other_channels_count() -> None:
    """Two channels that a layer subtracts from one another and that are the same: no clipping hurts as long as it is done to both alike."""
    x = np.repeat(heavy_tailed(2)[0][:, :1], 2, 1)
    lo, hi = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    found = clipped_ranges(x, lo, hi, np.array([[1.0, -1.0], [-1.0, 1.0]]), 4)
    assert found[0][0] == found[0][1]
    assert found[1][0] == found[1][1]
    np.testing.assert_array_equal(rounding_errors(x, *found, 4)[:, 0], rounding_errors(x, *found, 4)[:, 1])


def test_channels_that_are_constant_or_unread_keep_their_ranges() -> None:
    x, w = heavy_tailed()
    x[:, 3], w[:, 5] = 2.0, 0.0
    lo, hi = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
    low, high = clipped_ranges(x, lo, hi, w.T @ w, 4)
    assert all((low[d], high[d]) == (lo[d], hi[d]) for d in (3, 5))


def normalized(b: Build, x: Value) -> Value:
    gamma = constant(b.rng.lognormal(0, 1.0, D).astype(np.float32), "gamma")
    return b.op(Normalize(1e-5), x, gamma, b.const(D))


def two_readers(b: Build) -> Graph:
    n = normalized(b, b.input(1, 10, 10, D))
    return graph_of(b.conv(n, 8), b.conv(n, 4, 2, strides=(2, 2)))


def residual(b: Build) -> Graph:
    n = normalized(b, b.input(1, 1, ROWS, D))
    return graph_of(b.op(Add(), n, b.conv(n, D)))


def shown(graph: Graph, samples: list[dict[str, np.ndarray]]) -> dict[Value, Statistics]:
    (v,) = (v for v in graph.order if isinstance(v.op, Normalize))
    rows = np.concatenate([np.asarray(evaluate(graph, s, [v])[v]) for s in samples])
    return {v: observe(rows, rows.ndim - 1)}


def samples(graph: Graph, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{v.name: rng.standard_t(3, v.shape).astype(np.float32) for v in graph.inputs} for _ in range(count)]


def test_products_are_those_of_all_readers_and_all_positions() -> None:
    graph = two_readers(Build())
    (v,) = (v for v in graph.order if isinstance(v.op, Normalize))
    weights = [np.asarray(c.inputs[1].op.data, np.float64) for c in graph.order if isinstance(c.op, Conv)]
    expected = sum(np.einsum("oyxd,oyxe->de", w, w) for w in weights)
    np.testing.assert_allclose(weight_products(graph, v), expected, rtol=1e-12)


@pytest.mark.parametrize(("make", "bits", "clipped"), [(two_readers, 4, True), (two_readers, 8, False), (residual, 4, False)])
def test_what_is_narrow_and_reparameterized_is_clipped(make, bits: int, clipped: bool) -> None:
    graph = make(Build())
    feeds = samples(graph)
    before = shown(graph, feeds)
    after = clip_channels(graph, before, dict.fromkeys(before, bits), feeds)
    (v,) = before
    narrower = (after[v].channel_max - after[v].channel_min) < (before[v].channel_max - before[v].channel_min)
    assert narrower.any() == clipped
    assert (after[v].min, after[v].max, after[v].count) == (before[v].min, before[v].max, before[v].count)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_option_changes_what_is_narrow_only(bits: int) -> None:
    b = Build()
    hidden = b.conv(normalized(b, b.conv(b.input(1, 1, ROWS, D), D)), D)
    graph = graph_of(b.conv(b.op(Add(), hidden, b.const(D)), 4))
    feeds = samples(graph, 8)
    plain, dual = (quantize(graph, feeds, Options(activation_bits=bits, clip_channels=on)) for on in (False, True))
    assert (to_text(plain.qdq_graph) != to_text(dual.qdq_graph)) == (bits == 4)
