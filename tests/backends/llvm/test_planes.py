"""Integers of two to four bits with multipliers: how many bytes they take, and that kernels see the same integers again."""

from __future__ import annotations

import numpy as np
import pytest
from integer_graphs import Builder
from kernel_program import KernelProgram, here

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.llvm import nibbles, planes
from qcompiler.backends.llvm.dot import GROUP
from qcompiler.backends.llvm.kernels.conv import ConvConfig
from qcompiler.backends.llvm.kernels.unpack import MOST_GROUPS, kept_bits
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.types import Quantization
from qcompiler.passes.quantize_weights import quantize_weights
from qcompiler.passes.weight_grid import bytes_of_multipliers, ends_of, multipliers_of

SAME = ((1, 1), (1, 1))
BITS = (2, 3, 4)


def compiled(target: str, multiples: int | None, pixels: int) -> ObjectCode:
    """A dense layer and a convolution of 3 x 3, of so many pixels."""
    b = Builder()
    x = b.conv(b.input(1, 1, pixels, 256), 192, multiples=multiples)
    return compile_object(b.graph(b.conv(x, 130, (3, 3), pads=SAME, multiples=multiples)), TARGETS[target])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("pixels", [1, 40])
def test_integers_take_their_bits_and_three_quarters_of_one_for_multipliers(target: str, pixels: int, bits: int) -> None:
    """And sometimes a little less: where weights of eight bits have a header for each block, these have half of one."""
    wide, narrow = (compiled(target, multiples, pixels) for multiples in (None, bits))
    weights = 256 * 192 + 9 * 192 * 130
    saved = (wide.interface.weights_size - narrow.interface.weights_size) / weights
    assert -0.01 < saved - (7.25 - bits) / 8 < 0.08


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("c", "bits"), [(16, 4), (40, 2), (40, 3), (64, 4)])
def test_integers_with_multipliers_are_exact(target: str, c: int, bits: int) -> None:
    """Whole bytes of multipliers along K and a rest; one pixel and several; blocks that are not full; reference and kernel to the bit."""
    b = Builder()
    made = [b.conv(b.input(1, 1, pixels, c), n, multiples=bits) for pixels in (1, 9) for n in (5, 37, 130)]
    made += [
        b.conv(b.input(1, 5, 6, 48), 37, (3, 3), pads=SAME, multiples=bits),
        b.conv(b.input(1, 7, 8, c + 1), 70, strides=(2, 2), multiples=bits),
    ]
    graph = b.graph(*made)
    program, feeds = KernelProgram(graph, here(target)), b.feeds()
    assert sum(isinstance(launch.config, ConvConfig) and bool(launch.config.parts) for launch in program.launches) >= len(made)
    expected = reference.run(graph, feeds)
    for name, got in zip(graph.output_names, program.run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[name])
    certificate = certify(compile_object(graph, TARGETS[target]).object, "model_run", TARGETS[target].arch)
    assert certificate.ok, certificate.findings


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 2, 5, 8, 16])
def test_every_register_has_its_field(bits: int, count: int) -> None:
    q = np.random.default_rng(count).integers(1 << bits, size=(3, count, 32)).astype(np.uint8)
    packed = planes.pack(q, bits)
    assert packed.shape == (3, planes.registers(bits, count), 32)
    found, at = np.zeros(q.shape, np.int64), 0
    for plane in planes.planes_of(bits):
        for i in range(count):
            register = packed[:, at + i // plane.fields].view(np.uint8).astype(np.int64)
            found[:, i] += (register >> plane.width * (i % plane.fields)) % (1 << plane.width) << plane.place
        at += plane.registers(count)
    np.testing.assert_array_equal(found, q)


def test_what_is_a_multiple() -> None:
    low, high = ends_of(4)
    w = np.random.default_rng(1).integers(low, high + 1, (5, 3, 3, 16)).astype(np.int8)
    assert [planes.bits_of_multiples(w * m) for m in (1, 4, -3, 5)] == [4, 4, 4, None]
    assert planes.bits_of_multiples(np.clip(w, *ends_of(3)) * 3) == 3
    assert planes.bits_of_multiples(np.clip(w, *ends_of(2)) * -4) == 2
    for second, bits in ((-4, 4), (-3, None)):
        w[2, 0, 0, :4] = 20, second, 0, 0
        assert planes.bits_of_multiples(w) == bits
    assert planes.bits_of_multiples(np.zeros((5, 3, 3, 17), np.int8)) is None
    rows = np.array([[6, -9, 0, 15, -40, 8, 20, 4, 6, 1, 0, 0, -7, 10, 0, 0, -10, 5, 0, 0, 40, -20, 4, 0]])
    assert multipliers_of(rows, 4).tolist() == [[3, 4, -1, 0, 1, -4]]


def test_bytes_of_multipliers_follow_weights_along_k() -> None:
    """Signs of eight before magnitudes of four and of four; of a rest as many as it takes."""
    m = np.array([[1, -4, 3, 2, 2, -1, -1, 4, -3, 1]])
    assert planes.coded(m).view(np.uint8).tolist() == [[0b01100010, 0b01101100, 0b11000001, 0b1, 0b0010]]
    for n in (1, 2, 4, 5, 8, 9, 12, 16, 17):
        assert planes.coded(np.ones((3, n), int)).shape == (3, bytes_of_multipliers(n * GROUP))
    assert [planes.places_of(k) for k in (0, 12, 16, 31, 32, 48)] == [(0, 1), (0, 1), (0, 2), (0, 2), (3, 4), (3, 5)]


def test_numbers_of_groups_fit_in_their_bytes() -> None:
    """Beyond, weights that are no nibbles stay bytes."""
    few, many = (np.full((1, 1, 1, GROUP * n), 8, np.int8) for n in (MOST_GROUPS, MOST_GROUPS + 1))
    assert kept_bits(few) is not None
    assert kept_bits(many) is None


def test_two_bits_are_three_levels() -> None:
    w = np.random.default_rng(0).normal(size=(9, 3, 3, 20))
    made = quantize_weights(w, None, Quantization.per_tensor(0.05), None, bits=2)
    assert set(np.unique(made.weights)) == {-1, 0, 1}
    assert nibbles.fit(made.weights)
    error = ((made.weights * made.scale.reshape(-1, 1, 1, 1) - w) ** 2).sum()
    assert error < 0.35 * (w**2).sum()
