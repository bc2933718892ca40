"""The kernel language: loops, packing order, memory access that stays inside, the requantization read as code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

from qcompiler.backends.llvm.codegen import jit
from qcompiler.backends.llvm.dsl import Kernel, MixedWidths, Ptr
from qcompiler.backends.llvm.epilogue import load_pixels, pixel_order, store_pixels
from qcompiler.backends.llvm.lookup import emit_lookup
from qcompiler.backends.llvm.order import wide_order
from qcompiler.backends.llvm.target import TARGETS, Target
from qcompiler.numerics.requantize import output_offset, requantize, requantize_biased, rounding_half

MACHINES = {n: t if t.runs_here else t.generic() for n, t in TARGETS.items()}
everywhere = pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
Bytes = NDArray[np.int8]


def run(target: Target, body: Callable[[Kernel, Ptr, Ptr], None], x: NDArray[np.generic], size: int) -> Bytes:
    """`body(k, x, out)` with `out` of `size` bytes, all 77 before."""
    module = ir.Module()
    k = Kernel(module, target, "f", ["x", "out"], internal=False)
    body(k, *k.parameters)
    k.ret()
    out = np.full(size, 77, np.int8)
    (function,) = jit(module, target, ["f"])
    function(x.ctypes.data, out.ctypes.data)
    return out


def random_bytes(n: int) -> Bytes:
    return np.random.default_rng(n).integers(-128, 128, n).astype(np.int8)


@everywhere
def test_widening_and_narrowing_are_inverse(target: Target) -> None:
    n = target.vector_bytes
    x = random_bytes(n)
    np.testing.assert_array_equal(run(target, lambda k, p, q: k.store(q, k.load(p, 8).sext(32).sat(8)), x, n), x)


@everywhere
def test_wide_order_names_the_channel_of_each_lane(target: Target) -> None:
    n = target.vector_bytes
    x = random_bytes(n)

    def body(k: Kernel, p: Ptr, q: Ptr) -> None:
        for i, reg in enumerate(k.load(p, 8).sext(32).regs):
            k.b.store(reg, (q + i * n).ir, align=1)

    found = run(target, body, x, 4 * n).view(np.int32)
    np.testing.assert_array_equal(found, x[wide_order(target, 32, 4)])


@everywhere
@pytest.mark.parametrize("nbytes", [1, 3, 7, 8, 13])
def test_store_writes_only_its_bytes(target: Target, nbytes: int) -> None:
    n = target.vector_bytes
    x = random_bytes(n)
    found = run(target, lambda k, p, q: k.store(q + 2, k.load(p, 8), nbytes, start=1), x, n)
    np.testing.assert_array_equal(found[2 : 2 + nbytes], x[1 : 1 + nbytes])
    assert (np.delete(found, range(2, 2 + nbytes)) == 77).all()


@everywhere
def test_loop_carries_registers(target: Target) -> None:
    n = target.vector_bytes
    x = np.arange(5 * n, dtype=np.int64).astype(np.int8) // 16

    def body(k: Kernel, p: Ptr, q: Ptr) -> None:
        with k.loop(5, [k.splat(3, 8), p]) as (_, carried):
            total, at = carried
            carried[:] = [total + k.load(at, 8), at + n]  # type: ignore[operator, arg-type]
        k.store(q, carried[0])  # type: ignore[arg-type]

    np.testing.assert_array_equal(run(target, body, x, n), (x.reshape(5, n).sum(0) + 3).astype(np.int8))


@everywhere
@pytest.mark.parametrize("count", [1, 2, 4])
def test_pixels_go_where_they_belong(target: Target, count: int) -> None:
    size, pixels = count * target.lanes, 4 // count
    x = random_bytes(target.vector_bytes)

    def body(k: Kernel, p: Ptr, q: Ptr) -> None:
        y = load_pixels(k, [p + i * size for i in range(pixels)], count, size, stored=False)
        store_pixels(k, y, [q + i * (size + 3) for i in range(pixels)], count, size - 1, stored=False)

    found = run(target, body, x, pixels * (size + 3)).reshape(pixels, size + 3)
    np.testing.assert_array_equal(found[:, : size - 1], x.reshape(pixels, size)[:, : size - 1])
    assert (found[:, size - 1 :] == 77).all()


def test_pixel_order_is_a_permutation() -> None:
    for t in TARGETS.values():
        assert all(sorted(pixel_order(t, c)) == list(range(t.lanes)) for c in (1, 2, 4))


@everywhere
@pytest.mark.parametrize("shift", [-6, 0, 1, 9, 31])
def test_requantize_reads_the_same(target: Target, shift: int) -> None:
    n = target.vector_bytes
    rng = np.random.default_rng(shift + 6)
    limit = 1 << min(30, 12 + max(shift, 0))
    acc = rng.integers(-limit, limit, n).astype(np.int32)
    acc[:2] = (1 << 31) - 1 - int(rounding_half(np.array(shift))), -(1 << 31)
    acc[:2] >>= max(-shift, 0)
    q, zero = int(rng.integers(1 << 14, 1 << 15)), -37

    def body(k: Kernel, p: Ptr, out: Ptr) -> None:
        a = k.load(p, 32, 4) + k.splat(int(rounding_half(np.array(shift))), 32)
        left = k.splat(-shift, 32) if shift < 0 else None
        y = requantize_biased(a, left, k.splat(max(shift, 0), 32), k.splat(q, 16), k.splat(output_offset(zero), 16))
        k.store(out, y)

    found = run(target, body, acc[wide_order(target, 32, 4)].copy(), n)
    np.testing.assert_array_equal(found, requantize(acc, np.array(shift), np.array(q), zero))


@pytest.mark.parametrize("name", ["x86-64", "x86-64-avx2", "x86-64-avx512vnni", "arm64"])
def test_lookup(name: str) -> None:
    target = MACHINES[name]
    table, every = random_bytes(256), np.arange(-128, 128).astype(np.int8)
    x = np.concatenate([table, every])

    def body(k: Kernel, p: Ptr, q: Ptr) -> None:
        with k.loop(256 // target.vector_bytes) as (i, _):
            k.store(q + i * target.vector_bytes, emit_lookup(k.load(p + 256 + i * target.vector_bytes, 8), p))

    np.testing.assert_array_equal(run(target, body, x, 256), table)


def test_mixed_widths_are_refused() -> None:
    k = Kernel(ir.Module(), TARGETS["x86-64"], "f", [])
    with pytest.raises(MixedWidths, match="8 and 16 bits"):
        k.splat(1, 8) + k.splat(1, 16)
    with pytest.raises(MixedWidths, match="registers"):
        k.splat(1, 8).repeat(2) + k.splat(1, 8).repeat(3)
    with pytest.raises(MixedWidths, match="16-bit"):
        k.splat(1, 8).mul_q15(k.splat(1, 8))


def test_loop_refuses_a_changed_bundle() -> None:
    k = Kernel(ir.Module(), TARGETS["x86-64"], "f", [])
    with pytest.raises(ValueError, match="zip"), k.loop(2, [k.splat(0, 32)]) as (_, carried):
        carried[0] = carried[0].repeat(2)
