"""Weights of four bits: when they are stored two in a byte, and what that saves."""

from __future__ import annotations

import numpy as np
import pytest
from integer_graphs import Builder
from kernel_program import KernelProgram, here

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import FORMS
from qcompiler.backends.llvm.kernels.unpack import emit_unpack
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.types import Quantization
from qcompiler.passes.quantize_weights import quantize_weights
from qcompiler.passes.weight_grid import multipliers_of

SAME = ((1, 1), (1, 1))


def compiled(target: str, reach: int, pixels: int, most: int = 1) -> ObjectCode:
    """A dense layer and a convolution of 3 x 3, of so many pixels."""
    b = Builder()
    x = b.conv(b.input(1, 1, pixels, 256), 192, reach=reach, most=most)
    return compile_object(b.graph(b.conv(x, 130, (3, 3), pads=SAME, reach=reach, most=most)), TARGETS[target])


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
@pytest.mark.parametrize("pixels", [1, 40])
def test_multipliers_of_groups_take_two_bits_each(target: str, pixels: int) -> None:
    """And where products are chained, a table of places for each block: of 16 weights along K and more for each byte of it."""
    wide, narrow = (compiled(target, *kind) for kind in ((127, pixels), (7, pixels, 4)))
    weights = 256 * 192 + 9 * 192 * 130
    saved = wide.interface.weights_size - narrow.interface.weights_size
    assert 0.28 * weights < saved < 0.6 * weights


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("c", [16, 40, 64])
def test_nibbles_with_multipliers_are_exact(target: str, c: int) -> None:
    """Whole bytes of multipliers along K and a rest; one pixel and several; blocks that are not full; reference and kernel to the bit."""
    b = Builder()
    made = [b.conv(b.input(1, 1, pixels, c), n, reach=7, most=4) for pixels in (1, 9) for n in (5, 37, 130)]
    made += [
        b.conv(b.input(1, 5, 6, 48), 37, (3, 3), pads=SAME, reach=7, most=4),
        b.conv(b.input(1, 7, 8, c + 1), 70, strides=(2, 2), reach=7, most=4),
    ]
    graph = b.graph(*made)
    program, feeds = KernelProgram(graph, here(target)), b.feeds()
    assert sum(launch.emit is emit_unpack for launch in program.launches) >= len(made)
    expected = reference.run(graph, feeds)
    for name, got in zip(graph.output_names, program.run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[name])
    certificate = certify(compile_object(graph, TARGETS[target]).object, "model_run", TARGETS[target].arch)
    assert certificate.ok, certificate.findings


def test_what_is_a_multiple() -> None:
    w = np.random.default_rng(1).integers(-7, 8, (5, 3, 3, 16)).astype(np.int8)
    assert nibbles.fit_multiples(w)
    assert nibbles.fit_multiples(w * 4)
    assert not nibbles.fit_multiples(w * 5)
    for second, fits in ((2, True), (3, False)):
        w[2, 0, 0, :4] = 8, second, 0, 0
        assert nibbles.fit_multiples(w) == fits
    assert not nibbles.fit_multiples(np.zeros((5, 3, 3, 17), np.int8))
    assert multipliers_of(np.array([[6, -9, 0, 15, -32, 8, 28, 4, 8, 1, 0, 0, -8, 7, 0, 0]]), 4).tolist() == [[3, 4, 0, 1]]
    assert nibbles.coded(np.array([[1, 4, 3, 2, 2]])).tolist() == [[0b01101100, 0b01]]


@pytest.mark.parametrize("target", TARGETS)
def test_only_many_pixels_need_working_memory(target: str) -> None:
    one, many = (compiled(target, 7, pixels) for pixels in (1, 40))
    before = [any(launch.emit is emit_unpack for launch in code.launches) for code in (one, many)]
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


def test_two_bits_are_three_levels() -> None:
    w = np.random.default_rng(0).normal(size=(9, 3, 3, 20))
    made = quantize_weights(w, None, Quantization.per_tensor(0.05), None, bits=2)
    assert set(np.unique(made.weights)) == {-1, 0, 1}
    assert nibbles.fit(made.weights)
    error = ((made.weights * made.scale.reshape(-1, 1, 1, 1) - w) ** 2).sum()
    assert error < 0.35 * (w**2).sum()
