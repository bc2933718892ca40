"""Properties that every choice of scale and zero point has, whatever the method and the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.errors import UsageError
from qcompiler.passes.calibrate.choose import Entropy, Method, MinMax, Mse, Percentile, affine, choose, method_named, rounding_error
from qcompiler.passes.calibrate.statistics import observe
from qcompiler.passes.scheme import PLAIN, Scheme, is_power_of_two, next_power

METHODS: list[Method] = [MinMax(), Percentile(99.0), Percentile(99.999), Mse(), Entropy()]
SCHEMES = [PLAIN, Scheme(symmetric=True), Scheme(power_of_two=True), Scheme(symmetric=True, power_of_two=True)]
FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-25 else 0.0)
DATA = arrays(np.float32, st.integers(1, 60), elements=FLOATS)
RNG = np.random.default_rng(1)


def squared(x: np.ndarray, method: Method, **options: object) -> float:
    quant = choose(observe(x, None), method, **options)  # type: ignore[arg-type]
    return float(np.square(quant.dequantize(quant.quantize(x)) - x).sum())


@settings(max_examples=150, deadline=None)
@given(DATA, st.sampled_from(METHODS), st.sampled_from([4, 8, 16]), st.sampled_from(SCHEMES))
def test_every_choice(x: np.ndarray, method: Method, bits: int, scheme: Scheme) -> None:
    quant = choose(observe(x, None), method, bits, scheme)
    (scale,), (zero,) = quant.scale, quant.zero_point
    assert 0 < scale < np.inf and scale == np.float32(scale)  # noqa: PT018
    assert quant.qmin <= zero <= quant.qmax
    assert quant.dequantize(quant.quantize(np.zeros(1, np.float32)))[0] == 0
    assert not scheme.power_of_two or is_power_of_two(scale)
    if scheme.symmetric:
        assert zero == 0
    elif x.min() >= 0:
        assert zero == quant.qmin
    elif x.max() <= 0 and not scheme.power_of_two:
        assert zero == quant.qmax


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_minmax_covers_what_was_seen(x: np.ndarray) -> None:
    quant = choose(observe(x, None), MinMax())
    if np.abs(x).max() > 0:
        assert np.abs(quant.dequantize(quant.quantize(x)) - x).max() <= quant.scale[0] * (1 + 1e-4)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_degenerate_ranges(method: Method, scheme: Scheme) -> None:
    zeros = choose(observe(np.zeros(9, np.float32), None), method, scheme=scheme)
    assert zeros == affine(0.0, 1.0, scheme=scheme)
    for constant in (3.0, -3.0):
        quant = choose(observe(np.full(9, constant, np.float32), None), method, scheme=scheme)
        assert abs(quant.dequantize(quant.quantize(np.float32([constant])))[0] - constant) < 0.04


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_mse_beats_minmax_on_heavy_tails(bits: int, scheme: Scheme) -> None:
    for x in (RNG.standard_t(3, 20_000), np.abs(RNG.laplace(size=20_000)), RNG.standard_normal(20_000), RNG.exponential(size=20_000) - 1):
        data = x.astype(np.float32)
        options = {"bits": bits, "scheme": scheme}
        assert squared(data, Mse(), **options) <= squared(data, MinMax(), **options) * 1.01
    assert squared(data, Mse(), bits=4) < 0.7 * squared(data, MinMax(), bits=4)


@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_rounding_error_is_that_of_the_quantizer(power: float) -> None:
    x = RNG.uniform(-3, 5, 200_000).astype(np.float32)
    for lo, hi in ((-3.0, 5.0), (-1.0, 5.0), (-3.0, 2.0), (0.0, 5.0)):
        quant = affine(lo, hi)
        measured = (np.abs(quant.dequantize(quant.quantize(x)) - x) ** power).sum()
        estimated = rounding_error(observe(x, None).histogram, lo, hi, 8, power=power)[0]
        assert abs(estimated - measured) < 0.02 * measured


def test_percentile_cuts_what_it_says() -> None:
    x = RNG.standard_normal(100_000).astype(np.float32)
    quant = choose(observe(x, None), Percentile(99.0))
    lo, hi = (quant.scale[0] * (q - quant.zero_point[0]) for q in (-128, 127))
    assert 0.008 < np.mean((x < lo) | (x > hi)) < 0.012
    positive = choose(observe(np.abs(x), None), Percentile(99.0))
    assert 0.008 < np.mean(np.abs(x) > positive.scale[0] * 255) < 0.012


@pytest.mark.parametrize("method", [Mse(), Entropy(), Percentile(99.9)], ids=repr)
def test_one_outlier_does_not_take_the_range(method: Method) -> None:
    x = np.append(RNG.standard_normal(100_000), 60.0).astype(np.float32)
    bits = 4 if method == Mse() else 8
    assert choose(observe(x, None), method, bits).scale[0] * ((1 << bits) - 1) < 60


def test_the_next_power_of_two() -> None:
    assert next_power(np.array([0.0, 0.75, 1.0, 1.0 + 1e-8, 1.01, 3e-30])).tolist() == [0.0, 1.0, 1.0, 1.0, 2.0, 2.0**-98]


def test_methods_have_names() -> None:
    assert [method_named(t) for t in ("minmax", "mse", "entropy", "percentile", "percentile:99.9")] == [
        MinMax(), Mse(), Entropy(), Percentile(), Percentile(99.9),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "max", "percentile:x", "percentile:0", "percentile:101", "mse:3"])
def test_unknown_methods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"calibration method: expected minmax, mse.*found"):
        method_named(text)


def test_range_through_the_function_that_reads_it() -> None:
    """SiLU is flat far below zero: no levels are spent there, and its results are nearer."""

    def silu(v: np.ndarray) -> np.ndarray:
        return v / (1 + np.exp(-v))

    x = RNG.normal(0, 20, 100_000).astype(np.float32)
    plain, seen = choose(observe(x, None)), choose(observe(x, None), seen=silu)
    assert seen.scale[0] < 0.7 * plain.scale[0]
    errors = [float(np.square(silu(q.dequantize(q.quantize(x))) - silu(x.astype(np.float64))).mean()) for q in (plain, seen)]
    assert errors[1] < 0.5 * errors[0]
