"""Weights of four bits: when they are stored two in a byte, and what that saves."""

from __future__ import annotations

import numpy as np
import pytest
from integer_graphs import Builder

from qcompiler.backends.image import flatten
from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import FORMS
from qcompiler.backends.llvm.kernels.conv import ConvConfig
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS

SAME = ((1, 1), (1, 1))


def compiled(target: str, reach: int, pixels: int) -> ObjectCode:
    """A dense layer and a convolution of 3 x 3, of so many pixels."""
    b = Builder()
    x = b.conv(b.input(1, 1, pixels, 256), 192, reach=reach)
    return compile_object(b.graph(b.conv(x, 130, (3, 3), pads=SAME, reach=reach)), TARGETS[target])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pixels", [1, 40])
def test_four_bits_take_half_the_bytes(target: str, pixels: int) -> None:
    """Of weights; biases and multipliers, and where products are chained their order, come on top of both."""
    wide, narrow = (compiled(target, reach, pixels) for reach in (127, 7))
    weights = 256 * 192 + 9 * 192 * 130
    saved = wide.interface.weights_size - narrow.interface.weights_size
    assert 0.47 * weights < saved < 0.6 * weights
    images = [len(flatten(code.object).data) for code in (wide, narrow)]
    assert images[0] - images[1] > 0.45 * weights
    assert compiled(target, 8, pixels).interface.weights_size > weights


@pytest.mark.parametrize("target", TARGETS)
def test_only_many_pixels_need_working_memory(target: str) -> None:
    one, many = (compiled(target, 7, pixels) for pixels in (1, 40))
    before = [any(isinstance(launch.config, ConvConfig) and launch.config.parts for launch in code.launches) for code in (one, many)]
    assert before == [False, TARGETS[target].dot == "maddubs"]


@pytest.mark.parametrize("name", FORMS)
def test_a_pair_of_registers_becomes_one(name: str) -> None:
    """Every pair of weights, distinct from every other."""
    a, b = (m.ravel().astype(np.int8) for m in np.meshgrid(np.arange(-7, 8), np.arange(-7, 8)))
    packed = nibbles.pack(np.stack([a, b]), FORMS[name])
    assert packed.shape == (1, 225)
    assert packed.dtype == np.int8
    assert len(np.unique(packed)) == 225


def test_what_does_not_fit_stays_in_bytes() -> None:
    assert nibbles.fit(np.full((2, 1, 1, 64), -7, np.int8))
    assert not nibbles.fit(np.array([[0, -8]], np.int8))
    assert nibbles.fit(np.zeros((1, 1, 1, nibbles.MOST_PRODUCTS - 1), np.int8))
    assert not nibbles.fit(np.zeros((1, 1, 1, nibbles.MOST_PRODUCTS), np.int8))
    assert (nibbles.MOST_PRODUCTS - 1) * 255 * (16 * 7 + 7) < 1 << 31
