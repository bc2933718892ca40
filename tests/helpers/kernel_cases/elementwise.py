"""Sums, products, tables and bounds of elements."""

from __future__ import annotations

from qcompiler.ir.integer import IntMatMul, IntMul, IntSum
from qcompiler.ir.ops import Reduction

from .registry import SAME, case, kept, stored, wide


@case
def sums(b):
    x, y, z = stored(b, 1, 5, 7, 9), stored(b, 1, 5, 7, 9, zero_point=-128), b.input(1, 5, 7, 9)
    return [b.add(x), b.add(x, y), b.add(z, z), b.add(x, y, z), b.clamp(b.add(x, y, z, x, b.int8_const(1, 5, 7, 9)))]


@case
def sums_that_broadcast(b):
    x, c = stored(b, 2, 3, 4, 21), stored(b, 2, 1, 1, 21)
    return [
        b.add(x, c),
        b.add(stored(b, 1, 3, 4, 1), x),
        b.add(x, b.int8_const(21)),
        b.add(x, b.int8_const(1)),
        b.add(stored(b, 2, 3, 1, 1), b.input(1, 4, 21)),
    ]


@case
def sums_with_constants_per_channel(b):
    x = [stored(b, 1, 3, 2, c) for c in (1, 5, 16, 40, 64, 130, 256)]
    return [b.add(v, v, channels=v.shape[3]) for v in x] + [b.add(x[3], b.input(1, 1, 1, 40), channels=40)]


@case
def sums_with_wide_multipliers(b):
    x, y = stored(b, 1, 50), stored(b, 1, 50)
    return [b.requantize(b.apply(IntSum((70000, -32768)), x, y), 70.0 * 50000)]


@case
def products(b):
    x, gate = stored(b, 1, 6, 5, 24), stored(b, 1, 1, 1, 24)
    wide = stored(b, 1, 4, 4, 72)
    return [
        b.mul(x, x),
        b.mul(x, gate),
        b.mul(stored(b, 1, 6, 5, 1), x),
        b.mul(wide, b.input(1, 1, 1, 72), channels=72),
        b.lookup(b.mul(x, b.int8_const(24))),
    ]


@case
def pointwise(b):
    x, y = stored(b, 1, 5, 7, 9), b.input(1, 5, 7, 9)
    return [
        b.clamp(x),
        b.clamp(y, -128, 5),
        b.maximum(x, y),
        b.minimum(x, b.int8_const(9)),
        b.maximum(stored(b, 1, 1, 1, 9), y),
        b.lookup(x),
        b.lookup(y),
    ]


@case
def tables_per_channel(b):
    return [
        b.lookup(stored(b, 1, 3, 2, 5), per_channel=True),
        b.lookup(b.input(1, 17), per_channel=True),
        b.clamp(b.lookup(b.add(stored(b, 2, 6)), per_channel=True)),
    ]


@case
def values_inside_of_larger_pixels(b):
    """Operands and results with gaps between their pixels, down to single channels."""
    x = stored(b, 1, 4, 5, 7)
    one, two = b.channels(x, 2, 3), b.channels(x, 3, 7)
    parts = [b.add(one, one, zero_point=1), b.mul(two, one, zero_point=1), b.lookup(b.add(two)), b.max_pool(two, (3, 3), pads=SAME)]
    return [b.clamp(b.concat(3, parts[0], parts[1], b.add(one, zero_point=1))), parts[2], b.concat(3, parts[3], b.reduce(Reduction.max, x, (3,)))]


@wide
def wide_sums(b):
    x, y, z = kept(b, 1, 5, 7, 9), stored(b, 1, 5, 7, 9, zero_point=-128), b.wide_input(1, 5, 7, 9)
    return [
        b.narrowed(x),
        b.summed(y),
        b.narrowed(z),
        b.summed(x, y),
        b.narrowed(y, z),
        b.narrowed(x, z),
        b.widened(b.weighted(x, y, z, great=3000), 3e7),
        b.clamp(b.narrowed(y, x, b.int8_const(1, 5, 7, 9), b.wide_const(1, 5, 7, 9))),
        b.summed(b.input(1, 5, 7, 9)),
    ]


@wide
def wide_sums_that_broadcast(b):
    x, c = kept(b, 2, 3, 4, 21), stored(b, 2, 1, 1, 21)
    return [
        b.summed(x, c),
        b.narrowed(kept(b, 1, 3, 4, 1), x),
        b.summed(x, b.wide_const(21)),
        b.narrowed(x, b.wide_const(1)),
        b.narrowed(stored(b, 2, 3, 1, 1), b.wide_input(1, 4, 21)),
    ]


@wide
def wide_sums_with_constants_per_channel(b):
    x = [kept(b, 1, 3, 2, c) for c in (1, 5, 16, 40, 64, 130, 256)]
    return [b.summed(v, v, channels=v.shape[3]) for v in x] + [b.narrowed(x[3], b.input(1, 1, 1, 40), channels=40)]


@wide
def wide_sums_with_wide_multipliers(b):
    x, y = stored(b, 1, 50), kept(b, 1, 50)
    return [b.widened(b.apply(IntSum((70000, -30000)), x, y), 4e8), b.requantize(b.apply(IntSum((40000,)), y), 6e8)]


@wide
def wide_additions(b):
    x, y = kept(b, 1, 5, 7, 9), b.wide_input(1, 5, 7, 9)
    return [b.add16(x, y), b.add16(y, y), b.add16(b.add16(x, b.wide_const(1, 5, 7, 9)), x), b.add16(kept(b, 3, 100), b.wide_input(3, 100))]


@wide
def wide_pointwise(b):
    x, y = kept(b, 1, 5, 7, 9), b.wide_input(1, 5, 7, 9)
    return [
        b.clamp(x, -20000, 32767),
        b.clamp(y, -32768, 500),
        b.maximum(x, y),
        b.minimum(x, b.wide_const(9)),
        b.maximum(kept(b, 1, 1, 1, 9), y),
        b.minimum(kept(b, 4, 1), b.wide_input(4, 70)),
    ]


@wide
def wide_products(b):
    x, y = stored(b, 1, 6, 5, 24), stored(b, 1, 6, 5, 24, zero_point=-20)
    acc = b.apply(IntMul(), x, y)
    shapes = [((3, 5), (5, 7)), ((2, 4, 16), (2, 16, 65)), ((1, 1), (1, 130))]
    made = [b.apply(IntMatMul(), stored(b, *p), stored(b, *q, zero_point=-9)) for p, q in shapes]
    return [b.widened(acc, 6000.0), b.widened(acc, 6000.0, 24), *(b.widened(m, 6000.0 * 4) for m in made)]


@wide
def wide_values_inside_of_larger_pixels(b):
    """Operands and results with gaps between their pixels, down to single channels."""
    x = kept(b, 1, 4, 5, 7)
    one, two = b.channels(x, 2, 3), b.channels(x, 3, 7)
    parts = [b.add16(one, one), b.maximum(two, one), b.summed(b.channels(stored(b, 1, 4, 5, 9), 1, 6)), b.wide_conv(stored(b, 1, 4, 5, 3), 6)]
    return [b.clamp(b.concat(3, *parts, b.add16(b.wide_conv(stored(b, 1, 4, 5, 3), 4), two)), -32000, 32000), b.narrowed(two)]
