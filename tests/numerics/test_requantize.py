"""Requantization against exact fractions, and its reading by checked lanes."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qcompiler.numerics.lanes import CheckedLanes, WidthError
from qcompiler.numerics.requantize import Multiplier, multiplier, narrow, output_offset, requantize, requantize_wide, rounding_half

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
MULTIPLIERS = st.builds(Multiplier, st.integers(-15, 31), st.integers(1 << 14, (1 << 15) - 1))
ZERO_POINTS = st.integers(-128, 127)


def in_range(acc: int, m: Multiplier) -> bool:
    return abs((acc + int(rounding_half(np.array(m.shift)))) << max(-m.shift, 0)) < 1 << 31


def exact(acc: int, m: Multiplier, zero: int) -> Fraction:
    """The real result before rounding and saturation."""
    return acc * m.real + zero


@given(INT32, MULTIPLIERS, ZERO_POINTS)
def test_within_one_of_exact_and_only_near_ties(acc: int, m: Multiplier, zero: int) -> None:
    assume(in_range(acc, m))
    real = exact(acc, m, zero)
    rounded = min(max(floor(real + Fraction(1, 2)), -128), 127)
    y = int(requantize(np.array([acc]), np.array([m.shift]), np.array([m.q]), zero)[0])
    assert abs(y - rounded) <= 1
    if y != rounded:
        fraction = (real + Fraction(1, 2)) % 1
        assert min(fraction, 1 - fraction) <= Fraction(3, 128)


@given(INT32, MULTIPLIERS, ZERO_POINTS)
def test_a_fine_stream_narrows_to_what_requantizing_gives(acc: int, m: Multiplier, zero: int) -> None:
    assume(in_range(acc, m))
    parts = np.array([acc]), np.array([m.shift]), np.array([m.q])
    assert narrow(requantize_wide(*parts), zero) == requantize(*parts, zero)


@given(st.lists(INT32, min_size=2, max_size=8), MULTIPLIERS, ZERO_POINTS)
def test_monotone(accs: list[int], m: Multiplier, zero: int) -> None:
    accs = sorted(a for a in accs if in_range(a, m))
    assume(accs)
    y = requantize(np.array(accs), np.array([m.shift]), np.array([m.q]), zero)
    assert (np.diff(y.astype(int)) >= 0).all()


@given(st.floats(2.0**-40, 511))
def test_multiplier_is_nearest(real: float) -> None:
    m = multiplier(real)
    assert 1 << 14 <= m.q < 1 << 15
    if m.shift < 31:
        assert abs(m.real / Fraction(real) - 1) <= Fraction(1, 1 << 15)


@given(INT32, ZERO_POINTS)
def test_vanishing_multiplier_gives_the_zero_point(acc: int, zero: int) -> None:
    m = multiplier(2.0**-60)
    assume(in_range(acc, m))
    assert requantize(np.array([acc]), np.array([m.shift]), np.array([m.q]), zero)[0] == zero


def test_disagreement_with_exact_rounding_is_rare() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-40_000, 40_000, 100_000)
    m = multiplier(0.003)
    exact_y = np.clip(np.floor(acc * float(m.real) + 0.5), -128, 127)
    assert np.mean(requantize(acc, np.array([m.shift]), np.array([m.q]), 0) != exact_y) < 0.01


@pytest.mark.parametrize("real", [0.0, -1.0, float("nan"), float("inf")])
def test_meaningless_multipliers_are_refused(real: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        multiplier(real)


def test_too_large_a_multiplier_overflows() -> None:
    with pytest.raises(OverflowError, match="above"):
        multiplier(513.0)


@given(ZERO_POINTS)
def test_offset_fits_in_sixteen_bits(zero: int) -> None:
    assert CheckedLanes(output_offset(zero), 16).values == 64 * zero + 32


def test_an_overflowing_accumulator_is_caught() -> None:
    with pytest.raises(WidthError, match="32 bits"):
        requantize(np.array([(1 << 31) - 1]), np.array([4]), np.array([1 << 14]), 0)


def test_lanes_refuse_mixed_widths() -> None:
    with pytest.raises(WidthError, match="mixed"):
        CheckedLanes(1, 16) + CheckedLanes(1, 32)


@given(st.integers(-(1 << 15), (1 << 15) - 1), st.integers(1 << 14, (1 << 15) - 1))
def test_mul_q15_is_the_rounded_product(t: int, q: int) -> None:
    assert CheckedLanes(t, 16).mul_q15(CheckedLanes(q, 16)).values == floor(Fraction(t * q, 1 << 15) + Fraction(1, 2))


WIDE_MULTIPLIERS = st.builds(Multiplier, st.integers(-15, 31), st.integers(1 << 14, (1 << 15) - 1))


@given(INT32, WIDE_MULTIPLIERS)
def test_sixteen_bits_within_one_and_a_half_units(acc: int, m: Multiplier) -> None:
    """Up to 2^14 units; beyond, the result saturates somewhere between 2^14 and 2^15."""
    assume(in_range(acc, m))
    real = Fraction(acc * m.q) / Fraction(2) ** (15 + m.shift)
    y = int(requantize_wide(np.array([acc]), np.array([m.shift]), np.array([m.q]))[0])
    if abs(real) <= 1 << 14:
        assert abs(y - real) <= Fraction(3, 2)
    else:
        assert (1 << 14) - 2 <= abs(y) <= min(abs(real) + 2, 1 << 15)
        assert (y > 0) == (real > 0)


@given(st.floats(2.0**-40, 2.0**15 - 1))
def test_multiplier_without_fraction_bits_is_nearest(real: float) -> None:
    m = multiplier(real, 0)
    exactly = Fraction(m.q) / Fraction(2) ** (15 + m.shift)
    assert m.shift == 31 or abs(exactly / Fraction(real) - 1) <= Fraction(1, 1 << 15)
