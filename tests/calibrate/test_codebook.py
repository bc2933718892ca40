"""Codebooks: levels where the values are, as integers of eight bits, exact in the tables that compute them."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from qcompiler.ir.graph import Graph, apply
from qcompiler.ir.ops import Dequantize, Input, Quantize
from qcompiler.ir.pointwise import Gelu
from qcompiler.ir.types import Quantization, float_type, quantized
from qcompiler.passes.calibrate.choose import MinMax, Mse, choose
from qcompiler.passes.calibrate.codebook import codebook, lloyd
from qcompiler.passes.calibrate.statistics import observe
from qcompiler.passes.lower import lower_to_integers

RNG = np.random.default_rng(7)


def gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), np.float32)


DATA = {
    "gelu": gelu(RNG.normal(0, 1.5, 40_000)),
    "laplace": RNG.laplace(size=40_000).astype(np.float32),
    "positive": RNG.exponential(size=40_000).astype(np.float32) + np.float32(0.5),
    "normal": RNG.normal(size=40_000).astype(np.float32),
}


def squared(x: np.ndarray, q: Quantization) -> float:
    return float(np.square(q.dequantize(q.quantize(x)) - x).mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("name", DATA)
def test_levels_are_sorted_integers_of_eight_bits_and_as_few_as_asked(name: str, bits: int) -> None:
    q = codebook(observe(DATA[name], None), bits)
    assert q.levels is not None
    assert list(q.levels) == sorted(set(q.levels))
    assert 2 <= len(q.levels) <= 1 << bits
    assert -128 <= q.levels[0] <= q.levels[-1] <= 127
    assert q.bits == 8
    assert set(q.quantize(DATA[name]).ravel().tolist()) <= set(q.levels)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("name", DATA)
def test_less_error_than_evenly_spaced_levels(name: str, bits: int) -> None:
    statistics = observe(DATA[name], None)
    made = squared(DATA[name], codebook(statistics, bits))
    assert made < 0.9 * squared(DATA[name], choose(statistics, Mse(), bits))
    assert made < 0.5 * squared(DATA[name], choose(statistics, MinMax(), bits))


def test_sixteen_levels_of_gelu_are_as_good_as_thirty_two_even_ones() -> None:
    """Of what dense layers make of normalized channels: its tails are heavier than the normal distribution's."""
    x = gelu(RNG.laplace(size=40_000))
    statistics = observe(x, None)
    assert squared(x, codebook(statistics, 4)) < squared(x, choose(statistics, MinMax(), 5))


def test_few_values_need_no_codebook() -> None:
    x = np.repeat(np.array([0.0, 1.0, 2.5], np.float32), 50)
    q = codebook(observe(x, None), 4)
    assert q.levels is None
    assert squared(x, q) < 1e-4


def test_lloyd_finds_clusters_and_never_raises_the_error_of_its_start() -> None:
    centers = np.array([-4.0, -1.0, 0.5, 3.0])
    x = np.sort((centers[:, None] + RNG.normal(0, 0.01, (4, 100))).ravel())
    np.testing.assert_allclose(lloyd(x, np.ones(400), 4), centers, atol=0.01)
    weights = RNG.uniform(0.1, 3, 400)
    levels = lloyd(x, weights, 6)
    assert (np.diff(levels) >= 0).all()
    nearest = np.abs(x[:, None] - levels).argmin(1)
    for i in np.unique(nearest):
        np.testing.assert_allclose(levels[i], np.average(x[nearest == i], weights=weights[nearest == i]), rtol=1e-4)


def test_tables_give_the_levels_exactly() -> None:
    """Of every input the level that is nearest to the function's value."""
    out = codebook(observe(DATA["gelu"], None), 4)
    given = Quantization.per_tensor(0.04, 3)
    x = apply(Input(float_type(1, 256)), name="x")
    stored = apply(Dequantize(), apply(Quantize(quantized((1, 256), given)), x, name="x"), name="x")
    y = apply(Dequantize(), apply(Quantize(quantized((1, 256), out)), apply(Gelu(), stored, name="y"), name="y"), name="y")
    lowered = lower_to_integers(Graph((x,), (y,), ("y",)))
    table = next(v for v in lowered.order if type(v.op).__name__ == "Lookup").inputs[1].op.data
    assert out.levels is not None
    assert set(table.tolist()) <= set(out.levels)
    reals = given.dequantize(np.arange(-128, 128))
    exact = np.array([0.5 * v * (1 + np.vectorize(erf)(v / np.sqrt(2))) for v in reals])
    steps = np.abs(exact[:, None] - out.dequantize(np.array(out.levels))[None])
    chosen = np.abs(exact - out.dequantize(table))
    assert (chosen <= steps.min(1) + out.scale[0]).all()
    assert (chosen <= steps.min(1) + 1e-9).mean() > 0.95
