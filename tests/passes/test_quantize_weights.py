"""Scales of narrow weights, constants of attention, and requantization to 16 bits as the lowering makes it."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.backends.reference import run
from qcompiler.ir.graph import Graph, apply
from qcompiler.ir.integer import IntSum
from qcompiler.ir.ops import Input
from qcompiler.ir.types import Quantization, quantized
from qcompiler.numerics import attention
from qcompiler.passes.lower_sequence import HIDDEN, bias_in_units
from qcompiler.passes.quantize_weights import FRACTIONS, grid_of, least_error_scale
from qcompiler.passes.requantization import requantized
from qcompiler.passes.weight_grid import Grouping

RNG = np.random.default_rng(11)


def weighted_error(w: np.ndarray, s: np.ndarray, greatest: int, h: np.ndarray) -> np.ndarray:
    """Per output channel; `h` per weight."""
    flat = w.reshape(len(w), -1)
    safe = np.where(s > 0, s, 1.0)[:, None]
    return np.asarray((h * (flat - safe * np.clip(np.rint(flat / safe), -greatest, greatest)) ** 2).sum(1))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("known", [True, False])
def test_never_worse_than_the_scale_of_the_greatest_weight(bits: int, groups: int, known: bool) -> None:
    w = RNG.standard_t(4, (8, 3, 3, 8 // groups))
    k, greatest = w[0].size, (1 << (bits - 1)) - 1
    factors = RNG.normal(size=(groups, k, k)) * RNG.lognormal(0, 1.5, (groups, k, 1))
    covariance = factors @ factors.transpose(0, 2, 1) if known else None
    h = np.ones((8, k)) if covariance is None else np.repeat(np.diagonal(covariance, axis1=1, axis2=2), 8 // groups, 0)
    full = np.abs(w).reshape(8, -1).max(1) / greatest
    s = least_error_scale(w, bits, covariance)
    assert (weighted_error(w, s, greatest, h) <= weighted_error(w, full, greatest, h)).all()
    np.testing.assert_allclose(s / full, FRACTIONS[np.abs((s / full)[:, None] - FRACTIONS).argmin(1)])
    if bits <= 4:
        assert weighted_error(w, s, greatest, h).sum() < 0.95 * weighted_error(w, full, greatest, h).sum()


@pytest.mark.parametrize("bits", [7, 8])
def test_wide_weights_are_not_clipped(bits: int) -> None:
    w = RNG.standard_t(3, (6, 1, 1, 40))
    np.testing.assert_array_equal(least_error_scale(w, bits, None), np.abs(w).reshape(6, -1).max(1) / ((1 << (bits - 1)) - 1))


@pytest.mark.parametrize("grouping", [Grouping.multiplied, Grouping.shifted])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_grids_come_closer_and_stay_in_range(grouping: Grouping, bits: int) -> None:
    """Than one step per channel does; channels whose groups differ in range, and one that is dead."""
    k = 9 if grouping is Grouping.shifted else 150
    w = RNG.normal(size=(12, 1, 1, k)) * np.exp(RNG.normal(size=(12, 1, 1, -(-k // 4))).repeat(4, 3)[..., :k])
    w = w.reshape(12, 3, 3, 1) if grouping is Grouping.shifted else w
    w[3] = 0
    flat = w.reshape(12, -1)
    even, grid = (grid_of(w, bits, None, grouping=g) for g in (Grouping.none, grouping))
    errors = [
        ((np.where(g.scale > 0, g.scale, 1.0)[:, None] * g.nearest(flat / np.where(g.scale > 0, g.scale, 1.0)[:, None]) - flat) ** 2).sum()
        for g in (even, grid)
    ]
    assert errors[1] < 0.8 * errors[0]
    assert grid.bits <= 7
    assert (grid.high - grid.low < 1 << bits).all()
    assert grid.scale[3] == 0
    if grouping is Grouping.multiplied:
        assert (grid.multipliers[:, :148].reshape(12, 37, 4) == grid.multipliers[:, :148:4, None]).all()
        assert set(np.unique(grid.multipliers)) == {sign * m for m in (1, 2, 3, 4) for sign in (1, -1)}
    else:
        assert set(np.unique(grid.multipliers)) == {1, 2, 3, 4}
        assert (np.diff(grid.multipliers.reshape(12, 3, 3), axis=2) == 0).all()
        assert (grid.low <= 0).all()
        assert (grid.high >= 0).all()


def test_a_dead_channel_has_no_scale() -> None:
    w = RNG.normal(size=(3, 1, 1, 10))
    w[1] = 0
    assert least_error_scale(w, 4, None)[1] == 0
    assert (least_error_scale(np.zeros_like(w), 4, None) == 0).all()


def test_biases_of_logits_are_units_of_a_fortieth_and_great_negative_ones_hide() -> None:
    bias = np.array([0.0, 1.0, -2.5, 0.0126, HIDDEN, 1e9, np.inf, -HIDDEN, -HIDDEN * 1.001, -1e4, np.finfo(np.float32).min, -np.inf])
    made = bias_in_units(bias)
    assert made.dtype == np.int16
    top = -attention.MASKED - 1
    assert made.tolist() == [0, 40, -100, 1, 32000, top, top, -32000, *[attention.MASKED] * 4]


def test_finite_biases_never_hide() -> None:
    assert (bias_in_units(np.linspace(-HIDDEN, 1e5, 5000)) > attention.MASKED).all()


@pytest.mark.parametrize("scale", [1e-4, 0.37e-3, 2.0])
def test_requantization_to_16_bits_is_a_unit_and_a_half_off_at_most(scale: float) -> None:
    given, wanted = Quantization.per_tensor(0.02, 5), Quantization.per_tensor(scale * 1.7, 0, 16)
    x = apply(Input(quantized((1, 1, 16, 16), given)), name="x")
    acc = apply(IntSum((9001,)), x, name="acc")
    y = requantized(acc, scale / 97, quantized((1, 1, 16, 16), wanted), "y")
    data = np.arange(-128, 128).astype(np.int8).reshape(x.shape)
    (made,) = run(Graph((x,), (y,), ("y",)), {"x": data}).values()
    assert made.dtype == np.int16
    exact = 9001 * (data.astype(np.int64) - 5) * (scale / 97) / (scale * 1.7)
    assert np.abs(exact).max() < 1 << 14
    assert np.abs(made - exact).max() <= 1.5
    assert len(np.unique(made)) == 256
