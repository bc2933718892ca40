"""Rounding of second order, the covariances it needs, and clips that are never reached."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.ir.interpret import evaluate
from qcompiler.ir.pointwise import Clip
from qcompiler.passes.calibrate.statistics import observe
from qcompiler.passes.covariances import covariances, windows
from qcompiler.passes.relax_clips import relax_clips
from qcompiler.passes.round_weights import round_weights
from qcompiler.passes.weight_grid import even_grid

RNG = np.random.default_rng(3)


def output_error(w: np.ndarray, q: np.ndarray, scale: np.ndarray, h: np.ndarray) -> float:
    """sum over rows of (w - q S) H (w - q S)^T."""
    groups, k = h.shape[:2]
    d = (w - q * scale.reshape(-1, 1, 1, 1)).reshape(groups, -1, k)
    return float(np.einsum("gnk,gkl,gnl->", d, h, d))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_correlated_inputs_make_second_order_rounding_better(groups: int) -> None:
    w = RNG.normal(size=(8, 3, 3, 8 // groups))
    k = w[0].size
    mixing = RNG.normal(size=(groups, k, k)) / np.sqrt(k) + 2.0
    h = mixing @ mixing.transpose(0, 2, 1)
    scale = np.abs(w).reshape(8, -1).max(1) / 7
    q = round_weights(w, even_grid(scale, k, 7), h)
    assert np.array_equal(q, np.rint(q))
    assert np.abs(q).max() <= 7
    plain = np.rint(w / scale.reshape(-1, 1, 1, 1))
    assert output_error(w, q, scale, h) < 0.5 * output_error(w, plain, scale, h)


def test_descent_comes_closer_and_ends_where_no_weight_wants_to_move() -> None:
    w = RNG.normal(size=(40, 1, 1, 90))
    mixing = RNG.normal(size=(1, 90, 90)) / 9
    h, grid = mixing @ mixing.transpose(0, 2, 1), even_grid(np.abs(w).reshape(40, -1).max(1) / 7, 90, 7)
    found = [round_weights(w, grid, h, sweeps) for sweeps in (0, 1, 4, 50)]
    errors = [output_error(w, q, grid.scale, h) for q in found]
    assert errors[1] < errors[0]
    assert errors[3] <= errors[2] * 1.01
    assert np.array_equal(found[3], round_weights(w, grid, h, 51))
    assert np.abs(found[3]).max() <= 7


def test_uncorrelated_inputs_are_rounded_to_the_nearest() -> None:
    w, scale = RNG.normal(size=(4, 1, 1, 6)), np.full(4, 0.1)
    assert np.array_equal(round_weights(w, even_grid(scale, 6, 127), np.eye(6)[None]), np.rint(w / 0.1))


def test_silent_inputs_do_no_harm() -> None:
    w, scale = RNG.normal(size=(4, 1, 1, 6)), np.full(4, 0.1)
    assert np.array_equal(round_weights(w, even_grid(scale, 6, 127), np.zeros((1, 6, 6))), np.rint(w / 0.1))


@pytest.mark.parametrize("groups", [1, 4])
def test_windows_are_what_the_weights_multiply(groups: int) -> None:
    b = Build()
    v = b.conv(b.input(1, 6, 5, 4), 8, 3, groups=groups)
    x = RNG.normal(size=(1, 6, 5, 4)).astype(np.float32)
    made = evaluate(graph_of(v), {v.inputs[0].name: x})[v] - v.inputs[2].op.data  # type: ignore[attr-defined]
    w = v.inputs[1].op.data.reshape(groups, 8 // groups, -1)  # type: ignore[attr-defined]
    products = np.einsum("gnk,gok->ngo", windows(v, x), w).reshape(made.shape)
    np.testing.assert_allclose(products, made, rtol=1e-4, atol=1e-4)


def test_covariance_of_many_samples_is_numpys() -> None:
    b = Build()
    v = b.conv(b.input(1, 4, 4, 3), 2)
    graph = graph_of(v)
    samples = [{v.inputs[0].name: RNG.normal(size=(1, 4, 4, 3)).astype(np.float32) + 1} for _ in range(60)]
    rows = np.concatenate([s[v.inputs[0].name].reshape(-1, 3) for s in samples]).astype(np.float64)
    np.testing.assert_allclose(covariances(graph, samples)[v][0], np.cov(rows.T, bias=True), atol=0.02)


def test_only_clips_that_nothing_reaches_lose_their_bound() -> None:
    b = Build()
    low, high = (b.op(Clip(0.0, 6.0), b.conv(b.input(1, 4, 4, 3), 4)) for _ in range(2))
    statistics = {low: observe(np.array([[0.0, 4.0]], np.float32), 1), high: observe(np.array([[0.0, 5.0]], np.float32), 1)}
    after = relax_clips(graph_of(low, high), statistics)
    assert [v.op for v in after.outputs] == [Clip(0.0, inf), Clip(0.0, 6.0)]
