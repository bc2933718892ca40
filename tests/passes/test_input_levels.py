"""Inputs that take few, evenly spaced levels are recognized; others are not."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.passes.input_levels import Levels, input_levels

RNG = np.random.default_rng(3)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def pixels(*shape: int, low: int = 0, high: int = 256) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.float32)


def preprocessed(p: np.ndarray) -> np.ndarray:
    """Channels last."""
    return (p / 255 - MEAN) / STD


def test_levels_of_normalized_images_are_the_bytes() -> None:
    images = [preprocessed(pixels(1, 40, 40, 3)) for _ in range(3)]
    first = input_levels([x.transpose(0, 3, 1, 2) for x in images])
    last = input_levels(images)
    assert first is not None
    assert last is not None
    assert (first.axis, last.axis) == (1, 3)
    assert first.step == last.step == pytest.approx(1 / (255 * STD), rel=1e-5)
    assert first.zero == pytest.approx(255 * MEAN, abs=1e-3)
    assert first.common_zero is None
    assert first.quantization is None


def test_numbers_on_one_lattice_have_one_step() -> None:
    found = input_levels([pixels(1, 3, 40, 40)])
    assert found == Levels((1.0,), (0.0,))
    assert found.quantization is not None
    assert (found.quantization.scale, found.quantization.zero_point) == ((1.0,), (-128,))
    signed = input_levels([(pixels(1, 49, 10) - 83) * np.float32(0.5847)])
    assert signed is not None
    assert signed.quantization is not None
    x = (pixels(1, 49, 10) - 83) * np.float32(0.5847)
    assert np.abs(signed.quantization.dequantize(signed.quantization.quantize(x)) - x).max() < 1e-4


def test_one_lattice_without_the_number_zero_is_of_every_channel() -> None:
    found = input_levels([(pixels(1, 1, 28, 28) / 255 - np.float32(0.1307)) / np.float32(0.3081)])
    assert found is not None
    assert found.axis == 1
    assert found.zero == pytest.approx((255 * 0.1307,), abs=1e-3)


def test_levels_that_are_left_over_go_to_both_ends_but_not_below_zero() -> None:
    few = input_levels([pixels(1, 3, 40, 40, high=17)])
    assert few is not None
    assert few.step == pytest.approx((1 / 15,))
    assert few.common_zero == 0
    dark = input_levels([pixels(1, 3, 40, 40, low=-50, high=150)])
    assert dark is not None
    assert dark.zero == (50 + 28,)


def test_other_numbers_have_none() -> None:
    images = preprocessed(pixels(1, 40, 40, 3))
    assert input_levels([RNG.normal(size=(1, 3, 40, 40)).astype(np.float32)]) is None
    assert input_levels([images + RNG.uniform(0, 1e-3, images.shape).astype(np.float32)]) is None
    assert input_levels([np.array([[0.0, 1.0, 2.0]], np.float32)]) is None, "three numbers are no evidence"
    assert input_levels([np.zeros((1, 3, 4, 4), np.float32)]) is None
    assert input_levels([np.arange(64).reshape(1, 64)]) is None, "integers are not quantized"
    assert input_levels([pixels(1, 3, 40, 40, high=400)]) is None, "too many levels"
    assert input_levels([]) is None
