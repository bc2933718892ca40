"""Pooling, reduction, interpolation and softmax."""

from __future__ import annotations

from integer_graphs import SCALE

from qcompiler.ir.integer import IntResize, IntSoftmax, IntSumPool
from qcompiler.ir.ops import Reduction
from qcompiler.ir.types import Quantization, quantized
from qcompiler.numerics.softmax import log_tables

from .registry import SAME, case, kept, stored, wide


@case
def max_pools(b):
    x = stored(b, 1, 9, 8, 20)
    return [
        b.max_pool(x, (2, 2), (2, 2)),
        b.max_pool(x, (3, 3), (2, 2), SAME),
        b.max_pool(x, (3, 2), (1, 2), ((1, 0), (0, 1)), (2, 3)),
        b.max_pool(b.input(2, 5, 5, 3), (3, 3), (1, 1), SAME),
        b.max_pool(stored(b, 1, 6, 6, 70), (5, 5), (1, 1), ((2, 2), (2, 2))),
        b.max_pool(stored(b, 1, 1, 12, 4), (1, 3), (1, 2), ((0, 0), (0, 1))),
    ]


@case
def sum_pools(b):
    x = stored(b, 1, 9, 8, 20)
    return [
        b.sum_pool(x, (2, 2), (2, 2)),
        b.sum_pool(x, (3, 3), (2, 2), SAME),
        b.sum_pool(x, (3, 2), (1, 2), ((1, 0), (0, 1)), (2, 3)),
        b.sum_pool(x, (3, 3), (1, 1), SAME, spatial=True),
        b.sum_pool(b.input(2, 5, 5, 70), (3, 3), (1, 1), SAME),
        b.clamp(b.sum_pool(stored(b, 1, 17, 20, 5), (16, 18))),
    ]


@case
def reduced_sums(b):
    x = stored(b, 2, 7, 6, 20)
    return [
        b.reduce_sum(x, (1, 2)),
        b.reduce_sum(x, (1, 2), keepdims=False),
        b.reduce_sum(x, (3,)),
        b.reduce_sum(x, (0, 1, 2, 3)),
        b.reduce_sum(x, (2,), keepdims=False),
        b.reduce_sum(x, (1, 3)),
        b.reduce_sum(b.input(1, 30, 26, 70), (1, 2)),
        b.reduce_sum(stored(b, 600, 3), (0,)),
        b.reduce_sum(b.input(3, 2, 150), (1, 2)),
        b.reduce_sum(b.channels(stored(b, 1, 4, 2, 90), 3, 83), (1, 3)),
        b.reduce_sum(stored(b, 5, 64), (1,), keepdims=False),
    ]


@case
def reduced_extremes(b):
    x = stored(b, 2, 7, 6, 20)
    axes = ((1, 2), (3,), (0, 1, 2, 3), (0, 2))
    wide = b.input(3, 150)
    rows = [b.reduce(Reduction.max, wide, (1,)), b.reduce(Reduction.min, b.clamp(wide, -50, 127), (0, 1))]
    return rows + [b.reduce(kind, x, a, keepdims) for kind in (Reduction.max, Reduction.min) for a in axes for keepdims in (True, False)]


@case
def argmax(b):
    x = b.clamp(b.input(2, 5, 4, 21), -3, 3)
    return [b.argmax(x, a, keepdims, last) for a in (1, 3) for keepdims in (True, False) for last in (True, False)] + [b.argmax(b.inputs[0], 3)]


@case
def several_greatest(b):
    x, wide = b.clamp(b.input(2, 5, 4, 21), -3, 3), b.wide_input(3, 40)
    return [b.argmax(x, 1, k=2), b.argmax(x, 3, k=5), b.argmax(b.inputs[0], 3, k=21), b.argmax(wide, 1), b.argmax(wide, 1, k=5)]


@case
def interpolations(b):
    return [b.int_resize(stored(b, 2, 4, 5, c), 7, 3) for c in (1, 20, 64)] + [b.int_resize(b.input(1, 3, 3, 5), 6, 6)]


@case
def softmaxes(b):
    x = stored(b, 2, 3, 40)
    wide = b.input(1, 1000)
    return [b.softmax(x, 2), b.softmax(x, 1), b.softmax(wide, 1), b.softmax(b.clamp(wide, -128, -128), 1)]


@case
def logarithms_of_softmax(b):
    x = stored(b, 3, 50)
    table = b.const(log_tables(SCALE, 0.02))
    quant = Quantization.per_tensor(0.02, 100)
    return [b.apply(IntSoftmax(axis, quantized(x.shape, quant), log=True), x, table) for axis in (0, 1)]


@wide
def wide_pools(b):
    x, wide = stored(b, 1, 9, 8, 20), kept(b, 1, 9, 8, 20)
    sums = [b.apply(IntSumPool(k, s, p, (1, 1)), x) for k, s, p in (((2, 2), (2, 2), ((0, 0), (0, 0))), ((3, 3), (1, 1), SAME))]
    return [
        *(b.widened(a, 150.0) for a in sums),
        b.widened(sums[1], 150.0, shape=(9, 8, 1)),
        b.max_pool(wide, (2, 2), (2, 2)),
        b.max_pool(wide, (3, 3), (2, 2), SAME),
        b.max_pool(b.wide_input(2, 5, 5, 3), (3, 3), (1, 1), SAME),
        b.max_pool(kept(b, 1, 4, 4, 70), (3, 3), (1, 1), SAME),
    ]


@wide
def sum_pools_of_16_bits(b):
    x, none = kept(b, 1, 9, 8, 20), ((0, 0), (0, 0))
    pools = [IntSumPool((2, 2), (2, 2), none, (1, 1)), IntSumPool((3, 3), (2, 2), SAME, (1, 1)), IntSumPool((9, 8), (1, 1), none, (1, 1))]
    sums = [b.apply(p, x) for p in (*pools, IntSumPool((3, 2), (1, 2), ((1, 0), (0, 1)), (2, 3)))]
    made = [b.requantize(s, 1e5) for s in sums] + [b.widened(s, 1e5) for s in sums]
    return [*made, b.requantize(b.apply(IntSumPool((3, 3), (1, 1), SAME, (1, 1)), b.wide_input(2, 5, 5, 70)), 1e5, shape=(5, 5, 1))]


@wide
def wide_reductions(b):
    x, narrow = kept(b, 2, 7, 6, 20), stored(b, 2, 7, 6, 20)
    sums = [b.reduced(x, a, keep) for a, keep in (((1, 2), True), ((1, 2), False), ((3,), True), ((0, 1, 2, 3), True), ((2,), False), ((1, 3), True))]
    sums += [b.reduced(b.wide_input(1, 30, 26, 70), (1, 2)), b.reduced(b.wide_input(3, 2, 150), (1, 2)), b.reduced(kept(b, 5, 64), (1,))]
    made = [b.requantize(s, 1e6) for s in sums] + [b.widened(s, 1e6) for s in sums] + [b.widened(b.reduced(narrow, (1, 2)), 800.0)]
    made.append(b.widened(b.reduced(x, (1, 2), False), 1e6, 20))
    made += [b.reduce(kind, x, a, keep) for kind in (Reduction.max, Reduction.min) for a in ((1, 2), (3,), (0, 1, 2, 3)) for keep in (True, False)]
    return [*made, b.reduce(Reduction.max, b.wide_input(3, 150), (1,)), b.reduce(Reduction.min, b.wide_input(3, 150), (0, 1))]


@wide
def wide_interpolations(b):
    made = [(stored(b, 2, 4, 5, c), 7, 3) for c in (1, 20, 64)]
    return [b.widened(b.apply(IntResize(b.taps(x.shape[1], oh), b.taps(x.shape[2], ow)), x), 60.0 * 2**14) for x, oh, ow in made]
