"""Integer normalization against the real function, within the bound derived in `numerics.normalize`, and its pieces against exact integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor, isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.numerics import normalize as n
from qcompiler.numerics.lanes import CheckedLanes, WidthError


def rows(bits: int) -> st.SearchStrategy[np.ndarray]:
    """A few rows: anything, small numbers around an offset, constant ones, one outlier."""
    kind, ends = (np.int8, 127) if bits == 8 else (np.int16, 32767)
    shape = st.tuples(st.integers(1, 3), st.integers(1, 40))
    anything = arrays(kind, shape)
    extremes = arrays(kind, shape, elements=st.sampled_from([-ends - 1, 0, ends]))
    near = st.tuples(arrays(kind, shape, elements=st.integers(-2, 2)), st.integers(-ends + 2, ends - 2)).map(lambda p: (p[0] + p[1]).astype(kind))
    outlier = near.map(lambda x: np.where(np.arange(x.shape[1]) == x.shape[1] // 2, kind(ends), x).astype(kind))
    return anything | extremes | near | outlier


SETTINGS = st.fixed_dictionaries(
    {
        "scale": st.floats(1e-4, 10.0),
        "epsilon": st.sampled_from([0.0, 1e-12, 1e-5, 0.1, 100.0]),
        "centered": st.booleans(),
        "zero_point": st.integers(-128, 127),
        "out_scale": st.floats(0.005, 0.2),
        "out_zero": st.integers(-128, 127),
        "seed": st.integers(0, 1000),
    }
)


def affine_of(d: int, s: dict, bits: int) -> tuple[np.ndarray, np.ndarray, float, int, n.Affine]:
    rng = np.random.default_rng(s["seed"])
    gamma, beta = rng.normal(1, 0.7, d), rng.normal(0, 0.5, d)
    scale, zero = (s["out_scale"], s["out_zero"]) if bits == 8 else (s["out_scale"] / 64, 0)
    return gamma, beta, scale, zero, n.affine(gamma, beta, scale, zero)


def real_unit(x: np.ndarray, s: dict) -> np.ndarray:
    """u*, in long doubles of exact centered integers."""
    d = x.shape[-1]
    wide = x.astype(np.int64)
    times_d = wide * d - wide.sum(-1, keepdims=True) if s["centered"] else (wide - s["zero_point"]) * d
    c = times_d.astype(np.longdouble) / d
    norm = np.sqrt((c * c).sum(-1, keepdims=True) + np.longdouble(d) * s["epsilon"] / np.longdouble(s["scale"]) ** 2)
    return np.where(norm > 0, c / np.where(norm > 0, norm, 1), 0) * (1 << n.UNIT_BITS)


def check(x: np.ndarray, s: dict, bits: int, out_bits: int) -> None:
    d = x.shape[-1]
    s = {**s, "zero_point": s["zero_point"] if bits == 8 else 0}
    gamma, beta, out_scale, out_zero, constants = affine_of(d, s, out_bits)
    epsilon = n.epsilon_term(s["epsilon"], d, s["scale"], bits)
    y = n.normalize(x, constants, epsilon, s["centered"], s["zero_point"], bits, out_bits)
    unit = real_unit(x, s)
    c = n.centered_rows(x, s["centered"], s["zero_point"], bits)
    v = ((c * c).sum(-1, keepdims=True) + epsilon).astype(np.longdouble)
    assert v.max() < 1 << 62
    drift = (1 << 13) / np.sqrt(v) + np.abs(unit) * (d / 4 + 1) / v if s["centered"] else np.abs(unit) / v
    of_unit = 1 + (np.abs(unit) + 2) * 2.0**-14 + drift
    factor = gamma * np.sqrt(d) / out_scale * 2.0**-14
    bound = 0.5 + of_unit * np.abs(factor) + (np.abs(unit) + of_unit + 0.5) * 2.0**-constants.shift
    exact = unit * factor + beta / out_scale + out_zero
    lo, hi = -(1 << (out_bits - 1)), (1 << (out_bits - 1)) - 1
    assert (np.abs(y - np.clip(exact, lo, hi)) <= bound * (1 + 1e-9)).all()


@given(rows(8), SETTINGS)
def test_from_8_bits(x: np.ndarray, s: dict) -> None:
    check(x, s, 8, 8)
    check(x, s, 8, 16)


@given(rows(16), SETTINGS)
def test_from_16_bits(x: np.ndarray, s: dict) -> None:
    check(x, s, 16, 8)
    check(x, s, 16, 16)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("d", [384, n.MAX_CHANNELS])
def test_the_widest_rows_stay_in_their_widths(bits: int, d: int) -> None:
    """Half of the channels at either end; one channel alone at the other end; the greatest epsilon."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    x = np.full((3, d), low)
    x[0, ::2], x[1, 0] = high, high
    s = {"scale": 0.01, "epsilon": 1e-5, "centered": True, "zero_point": 0, "out_scale": 0.05, "out_zero": 5, "seed": 0}
    for change in ({}, {"centered": False, "zero_point": 127}, {"epsilon": 1e3}):
        check(x.astype(np.int8 if bits == 8 else np.int16), {**s, **change}, bits, 8)


def by_the_equations(x: list[int], a: n.Affine, epsilon: int, bits: int) -> list[int]:
    """The docstring's equations on one centered row, in whole numbers and fractions of Python."""
    f, half = n.fraction_bits(bits), Fraction(1, 2)
    c = [(v << f) - floor(Fraction(sum(x) << f, len(x)) + half) for v in x]
    v = sum(i * i for i in c) + epsilon
    e = -(-v.bit_length() // 2) - 15
    t = [min(floor(i / Fraction(2) ** e + half), (1 << 15) - 1) for i in c]
    rho = min(isqrt((1 << 58) // floor(v / Fraction(2) ** (2 * e))), (1 << 15) - 1)
    u = [floor(Fraction(i * rho, 1 << 15) + half) for i in t]
    return [max(-128, min(127, (i * int(g) + int(b)) >> a.shift)) for i, g, b in zip(u, a.g, a.b)]


@given(rows(8) | rows(16), SETTINGS)
def test_every_step_is_that_of_the_equations(x: np.ndarray, s: dict) -> None:
    bits = 8 * x.itemsize
    constants = affine_of(x.shape[-1], {**s, "out_scale": s["out_scale"] / 10}, 8)[4]
    epsilon = n.epsilon_term(s["epsilon"], x.shape[-1], s["scale"], bits)
    y = n.normalize(x, constants, epsilon, True, 0, bits, 8)
    assert y.tolist() == [by_the_equations(row, constants, epsilon, bits) for row in x.tolist()]


def test_one_channel_and_zeros_give_beta() -> None:
    constants = n.affine(np.array([2.0]), np.array([0.5]), 0.05, -3)
    for x in (np.array([[-128], [0], [127]], np.int8), np.zeros((2, 1), np.int8)):
        assert (n.normalize(x, constants, 1, True, 0, 8, 8) == 7).all()
    wide = n.affine(np.ones(64), np.linspace(-1, 1, 64), 1 / 64, 0)
    assert (n.normalize(np.zeros((1, 64), np.int8), wide, 1, False, 0, 8, 8) == np.rint(np.linspace(-64, 64, 64) + 1e-9)).all()


def test_an_epsilon_beyond_all_bounds_makes_the_result_beta() -> None:
    constants = n.affine(np.ones(16), np.zeros(16), 0.05, 0)
    epsilon = n.epsilon_term(1e30, 16, 1e-3, 8)
    assert epsilon == 1 << 58
    assert (n.normalize(np.arange(16, dtype=np.int8)[None], constants, epsilon, True, 0, 8, 8) == 0).all()


@given(st.integers(1 << 28, (1 << 30) - 1))
def test_reciprocal_roots_are_the_greatest(m: int) -> None:
    assert n.reciprocal_root(np.array([m]))[0] == min(isqrt((1 << 58) // m), (1 << 15) - 1)


def test_roots_by_table_are_the_greatest_everywhere() -> None:
    """Along each interval of the table the chord falls, and the root stays between the ends of its own interval: those ends are all there is."""
    r = np.arange(1 << 14, 1 << 15)
    last = (1 << 58) // (r * r)
    ends = np.concatenate([last, last + 1, np.arange(64, 257) << 22, (np.arange(64, 257) << 22) - 1])
    m = ends[(ends >= 1 << 28) & (ends < 1 << 30)]
    assert len(m) > 1 << 15
    np.testing.assert_array_equal(n.reciprocal_root_by_table(m), n.reciprocal_root(m))


@given(st.integers(1, (1 << 62) - 1))
def test_exponents_bring_sums_to_30_bits(v: int) -> None:
    e = n.exponent(np.array([v]))
    assert 1 << 28 <= n.scaled_down(np.array([v]), 2 * e)[0] < 1 << 30


@given(st.floats(1e-6, 1e6), st.integers(1, 31))
def test_room_is_the_greatest_power(reach: float, bits: int) -> None:
    k = n._room(np.array([-reach]), bits)
    assert reach * 2.0**k < 2.0**bits <= reach * 2.0 ** (k + 1)


def test_results_that_are_too_fine_are_refused() -> None:
    with pytest.raises(OverflowError, match="too fine"):
        n.affine(np.array([1.0, 3e6]), np.zeros(2), 1e-3, 0)


def test_wide_products_are_checked() -> None:
    a = CheckedLanes(np.array([-(1 << 15), 3]), 16)
    assert (a.mul_wide(CheckedLanes(np.array([-(1 << 15), 5]), 16)).values == [1 << 30, 15]).all()
    assert a.mul_wide(a).bits == 32
    with pytest.raises(WidthError, match="mixed"):
        a.mul_wide(CheckedLanes(np.array([1]), 8))
