"""Integer attention against exact softmax, within a bound that is derived here.

**Bound.** Let p be the softmax of the real logits over the M positions that are seen, R = max v - min v over them, r = S_v / S_y.

1. `requantize_wide` is at most 1.5 units of 1/40 off (its derivation; logits below 2^14 units): x_m / 40 = l_m + eps_m with
   |eps_m| <= eps = 1.5 / 40. The odds of any two sets change by exp(2 eps) at most, and the total variation distance of distributions whose
   odds differ by a factor L is at most (sqrt L - 1) / (sqrt L + 1) = tanh(eps / 2).
2. With w_m = 255 exp((x_m - max x) / 40), e_m is w_m rounded, exact where w_m = 255 (the last entry of the table, 0, stands for all less than
   0.44). So sum |e - w| <= (M - 1) / 2, and the distance of e / s and w / sum w is at most half of
   sum |e - w| / s + |sum w - s| / s <= (M - 1) / s.
3. A mean of v moves by R times the distance. The last rounding is half a step, `requantize` at most 1.5 / 64 besides; its multiplier is rounded
   twice more, 2^-14 of |y - z| < 255 together, below 1 / 64.

    |y - clip(y*)| <= 1/2 + 2.5 / 64 + r R (tanh(eps / 2) + (M - 1) / (2 s))
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.numerics import attention as a
from qcompiler.numerics.requantize import Multiplier

EPSILON = 1.5 / a.UNITS_PER_NAT
ZEROS = (3, -7, 11, -20)


def operands(seed: int, b: int = 2, n: int = 5, m: int = 9, h: int = 2, g: int = 2, d: int = 8, e: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-128, 128, s).astype(np.int8) for s in ((b, n, h, d), (b, m, g, d), (b, m, g, e))]


def constants(scale: float, ratio: float, bits: int | None = None) -> a.Constants:
    """Logits of `scale` nats per product, results `ratio` times finer than values."""
    return a.Constants(a.logit_multiplier(scale), a.value_multiplier(1.0, 1.0 / ratio), a.exp_table(bits), ZEROS)


def softmax_of(logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    hidden = np.where(seen, logits, -np.inf)
    p = np.where(seen, np.exp(hidden - hidden.max(-1, keepdims=True)), 0)
    return p / p.sum(-1, keepdims=True)


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, bias: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of v - z_v in units of S_v, [b,n,h,e], and the probabilities, [b,h,n,m]; as many heads of keys as of queries."""
    zq, zk, zv, _ = ZEROS
    wide_q, wide_k, wide_v = (x.astype(np.float64) - z for x, z in ((q, zq), (k, zk), (v, zv)))
    p = softmax_of(scale * np.einsum("bnhd,bmhd->bhnm", wide_q, wide_k) + bias / a.UNITS_PER_NAT, seen)
    return np.einsum("bhnm,bmhe->bnhe", p, wide_v), p


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 9, 70]),
    st.sampled_from([1e-6, 1e-4, 5e-4, 3e-3]),
    st.floats(0.05, 20.0),
    st.booleans(),
    st.booleans(),
)
def test_close_to_exact_softmax(seed: int, m: int, scale: float, ratio: float, biased: bool, masked: bool) -> None:
    q, k, v = operands(seed, m=m)
    rng = np.random.default_rng(seed + 1)
    bias = rng.integers(-300, 300, (1, 2, 5, m)).astype(np.int16) if biased else np.zeros((1, 1, 1, 1), np.int16)
    mask = rng.random((2, 1, 5, m)) < 0.7 if masked else np.ones((1, 1, 1, 1), bool)
    mask[..., 0] = True
    seen = np.broadcast_to(mask, (2, 2, 5, m))
    y = a.attention(q, k, v, constants(scale, ratio), bias=bias if biased else None, mask=mask if masked else None)
    mean, p = exact(q, k, v, scale, bias, seen)
    s = 255 * np.exp(-2 * EPSILON) / p.max(-1)  # sum w, seen from the greatest, less what step 1 may move; e is below w by 1/2 at most
    s = np.maximum(s - (m - 1) / 2, 255)
    distance = np.tanh(EPSILON / 2) + (seen.sum(-1) - 1) / (2 * s)
    spread = float(v.max()) - float(v.min())
    bound = 0.5 + 2.5 / 64 + ratio * spread * distance.transpose(0, 2, 1)[..., None]
    assert (np.abs(y - np.clip(ratio * mean + ZEROS[3], -128, 127)) <= bound).all()


@settings(max_examples=300)
@given(st.integers(1, 1 << 23), st.integers(1 << 14, (1 << 15) - 1), st.integers(-14, 31))
def test_row_multiplier_is_the_quotient(s: int, q: int, shift: int) -> None:
    base = Multiplier(shift, q)
    found_shift, found = a.row_multiplier(np.array([s]), base)
    assert 1 << 14 <= int(found[0]) < 1 << 15
    assert -15 <= int(found_shift[0]) <= 31
    expected = base.real / s
    got = Multiplier(int(found_shift[0]), int(found[0])).real
    if int(found_shift[0]) < 31:
        assert abs(got - expected) <= expected * Fraction(1, 1 << 14) * Fraction(9, 16)
    else:
        assert got >= expected * Fraction(99, 100)  # no finer multiplier exists


def test_hidden_positions_do_not_count() -> None:
    """Whatever says that they are hidden, the result is that of the others alone."""
    q, k, v = operands(1, m=12)
    c = constants(5e-4, 2.0)
    seen = np.arange(12) % 3 != 1
    expected = a.attention(q, k[:, seen], v[:, seen], c)
    assert (a.attention(q, k, v, c, mask=seen[None, None, None]) == expected).all()
    bias = np.where(seen, 0, a.MASKED).astype(np.int16)[None, None, None]
    assert (a.attention(q, k, v, c, bias=bias) == expected).all()
    least = np.where(seen, 0, a.MASKED + 1).astype(np.int16)[None, None, None]
    assert (a.attention(q, k, v, constants(5e-4, 2.0, 4), bias=least) != a.attention(q, k, v, constants(5e-4, 2.0, 4), bias=bias)).any()


@pytest.mark.parametrize("ratio", [0.1, 1.0, 100.0])
def test_a_row_that_sees_nothing_is_zero(ratio: float) -> None:
    q, k, v = operands(2)
    mask = np.ones((2, 1, 5, 1), bool)
    mask[1, 0, 3] = False
    y = a.attention(q, k, v, constants(5e-4, ratio), mask=mask)
    assert (y[1, 3] == ZEROS[3]).all()
    assert (y[1, 2] != ZEROS[3]).any()


@pytest.mark.parametrize("n, m", [(6, 6), (4, 9), (9, 4)])
def test_causal_is_a_mask(n: int, m: int) -> None:
    q, k, v = operands(3, n=n, m=m)
    mask = np.array([[j <= i + m - n for j in range(m)] for i in range(n)])
    c = constants(5e-4, 2.0)
    y = a.attention(q, k, v, c, causal=True)
    assert (y == a.attention(q, k, v, c, mask=mask[None, None])).all()
    assert (y[:, : max(n - m, 0)] == ZEROS[3]).all()


def test_heads_share_keys_and_values_in_order() -> None:
    q, k, v = operands(4, h=6, g=2)
    c = constants(5e-4, 2.0)
    expected = a.attention(q, np.repeat(k, 3, 2), np.repeat(v, 3, 2), c)
    assert (a.attention(q, k, v, c) == expected).all()


def test_table_of_exponentials() -> None:
    table = a.exp_table()
    assert (table == [round(255 * np.exp(-d / 40)) for d in range(256)]).all()
    assert table[0] == 255
    assert table[255] == 0


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_table_of_a_logarithmic_quantizer(bits: int) -> None:
    """Each entry is the level 2^(-j/2) whose logarithm is nearest."""
    levels = 2.0 ** (-np.arange(1 << bits) / 2)
    table = a.exp_table(bits)
    assert set(table.tolist()) <= set(np.rint(255 * levels).astype(int).tolist())
    for d in range(256):
        nearest = levels[np.abs(np.log(levels) + d / 40).argmin()]
        assert table[d] == round(255 * nearest)


def test_too_fine_a_result_is_refused() -> None:
    with pytest.raises(OverflowError, match="too fine"):
        a.value_multiplier(1.0, 1.0 / 300)
