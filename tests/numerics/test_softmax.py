"""Integer softmax and log-softmax against the float functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.numerics.softmax import exp_table, log_softmax, log_tables, softmax

LOGITS = arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 40)))
SCALES = st.floats(1e-3, 1.0)


def float_log_softmax(x: np.ndarray, scale: float) -> np.ndarray:
    y = (x.astype(np.float64) - x.max(-1, keepdims=True).astype(np.float64)) * scale
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


@given(LOGITS, SCALES)
def test_softmax_is_within_one_step(x: np.ndarray, scale: float) -> None:
    p = np.exp(float_log_softmax(x, scale)) * 256
    assert np.abs(np.minimum(p, 255) - (softmax(x, exp_table(scale), -1) + 128.0)).max() <= 0.75


@given(LOGITS, SCALES, st.integers(-128, 127))
def test_log_softmax_is_within_one_step(x: np.ndarray, scale: float, zero: int) -> None:
    step = 0.05
    exact = np.clip(float_log_softmax(x, scale) / step + zero, -128, 127)
    # 1/2 from the last rounding, 2^-9 / step from the table of logarithms, 255 * 2^-13 from the rounded input scale.
    assert np.abs(exact - log_softmax(x, log_tables(scale, step), -1, zero)).max() <= 0.5 + 2.0**-9 / step + 0.05


def test_equal_logits_share_equally() -> None:
    assert (softmax(np.full((1, 16), 7, np.int8), exp_table(0.1), -1) == 16 - 128).all()


def test_far_too_coarse_an_input_is_refused() -> None:
    with pytest.raises(OverflowError, match="ratio"):
        log_tables(1.0, 1e-6)
