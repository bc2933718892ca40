"""Every kernel but convolution, on every target (natively or by the meaning of its instructions), equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from integer_graphs import SCALE, Builder
from kernel_program import KernelProgram, here
from random_graphs import random_graphs

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import IntSoftmax, IntSum
from qcompiler.ir.ops import Gather, PadMode, Reduction
from qcompiler.ir.types import DType, Quantization, quantized
from qcompiler.numerics.attention import MASKED
from qcompiler.numerics.softmax import log_tables

Outputs = list[Value]
CASES: dict[str, Callable[[Builder], Outputs]] = {}
SAME = ((1, 1), (1, 1))


def case(build: Callable[[Builder], Outputs]) -> Callable[[Builder], Outputs]:
    """Registers a graph: a function of a builder that returns the outputs."""
    CASES[build.__name__] = build
    return build


def stored(b: Builder, *shape: int, zero_point: int = 3) -> Value:
    """A value in the arena: the kernels see the target's own storage form."""
    return b.clamp(b.input(*shape, zero_point=zero_point), -128, 127)


# --- movement --------------------------------------------------------------------------------------------------------


@case
def residuals_in_the_accumulator(b):
    made = []
    for channels in (3, 16, 33, 70):
        x, r = stored(b, 1, 5, 7, 8, zero_point=-11), stored(b, 1, 5, 7, channels, zero_point=-128)
        made += [b.residual_conv(x, r), b.residual_conv(x, r, (3, 3), pads=SAME)]
    x = stored(b, 1, 4, 6, 24)
    return [*made, b.residual_conv(x, x, (3, 3), pads=SAME), b.residual_conv(x, x, (3, 3), pads=SAME, groups=24)]


@case
def weights_of_few_bits(b):
    """Two in a byte: one pixel and many, halves of blocks, groups, a residual in the accumulator."""
    made = []
    for reach in (1, 7, 31):
        x, one = stored(b, 1, 5, 7, 22), stored(b, 1, 1, 1, 90)
        made += [b.conv(one, n, reach=reach) for n in (10, 33, 70)] + [b.conv(x, 41, (3, 3), pads=SAME, reach=reach)]
        made += [b.conv(x, 40, groups=2, reach=reach), b.lookup(b.residual_conv(x, stored(b, 1, 5, 7, 37), (3, 3), pads=SAME, reach=reach))]
    return made


@case
def copies_between_storage_forms(b):
    x = stored(b, 1, 3, 5, 7)
    return [x, x, b.inputs[0], b.reshape(x, 105)]


@case
def image_to_channels_last(b):
    return [b.clamp(b.transpose(b.input(1, c, 5, w), 0, 2, 3, 1)) for c, w in ((1, 7), (2, 16), (3, 19), (4, 40), (5, 33))]


@case
def image_rows_shorter_than_a_register(b):
    return [b.transpose(b.input(2, 3, 2, 5), 0, 2, 3, 1), b.transpose(b.input(2, 3, 17), 0, 2, 1)]


@case
def transposition_in_tiles(b):
    shapes = ((1, 8, 8), (1, 9, 23), (2, 16, 16), (1, 21, 40), (1, 64, 7), (1, 70, 17))
    return [b.transpose(stored(b, *s), 0, 2, 1) for s in shapes] + [b.transpose(b.input(1, 6, 5, 24), 0, 3, 1, 2)]


@case
def shuffles_of_channels(b):
    x = stored(b, 1, 4, 3, 12)
    return [b.reshape(b.transpose(b.reshape(x, 1, 4, 3, g, 12 // g), 0, 1, 2, 4, 3), 1, 4, 3, 12) for g in (2, 3)]


@case
def slices(b):
    x = stored(b, 1, 6, 7, 10)
    y = b.slice(x, (0, 1, 1), (5, -1, -2), (1, 7, 3), (0, 10, 1))
    return [y, b.slice(x, (0, 1, 1), (0, 6, 1), (6, -1, -1), (9, 0, -2)), b.clamp(b.channels(x, 2, 9))]


@case
def concatenations(b):
    x, y = stored(b, 1, 3, 4, 5), b.input(1, 3, 4, 5, zero_point=3)
    joined = [b.concat(axis, b.clamp(x), y, b.int8_const(1, 3, 4, 5), x) for axis in range(4)]
    return [*joined, b.clamp(b.concat(3, b.clamp(x, -3, 3), b.max_pool(x, (1, 1))))]


@case
def repetitions(b):
    x = stored(b, 2, 3, 5)
    return [b.tile(x, 2, 1, 3), b.tile(x, 1, 2, 1), b.expand(b.input(1, 3, 1), 4, 3, 6), b.expand(stored(b, 1, 1, 20), 3, 2, 20)]


@case
def pads(b):
    x = stored(b, 1, 5, 6, 3)
    spatial = ((0, 0), (2, 1), (1, 3), (0, 0))
    repeating = [b.pad(x, *spatial, mode=m) for m in (PadMode.reflect, PadMode.edge, PadMode.wrap)]
    return [
        *repeating,
        b.pad(x, *spatial, value=0.4),
        b.pad(x, (1, 0), (-1, 2), (0, -2), (2, 2)),
        b.pad(x, (0, 0), (-1, 2), (0, 0), (2, 1), mode=PadMode.edge),
    ]


@case
def gathers(b):
    x = stored(b, 4, 5, 20)
    return [
        b.gather(x, 0, [3, -1, 0]),
        b.gather(x, 2, [0, 19, -2, 5, 5]),
        b.gather(x, 1, np.array([[1, 2, 0], [4, -5, 3]])),
        b.gather(b.input(3, 70), 0, [2, 0]),
    ]


@case
def embeddings(b):
    ids, short = b.ids(2, 9, rows=50), b.ids(5, rows=7, dtype=DType.i32)
    wide = b.embedding(ids, 50, 96)
    return [
        wide,
        b.clamp(wide, -30, 60),
        b.clamp(b.embedding(short, 7, 3), -100, 100),
        b.embedding(short, 7, 2, 33),
        b.embedding(short, 5, 7, 40, axis=1),
        b.clamp(b.embedding(b.reshape(ids, 18), 4, 50, axis=1)),
        b.clamp(b.embedding(b.slice(ids, (0, 2, 1), (1, 9, 2)), 50, 24)),
        b.embedding(b.slice(b.transpose(ids, 1, 0), (8, 1, -3), (0, 2, 1)), 60, 70),
    ]


@case
def wide_embeddings(b):
    ids = b.ids(3, 6, rows=20, dtype=DType.i32)
    return [b.embedding(ids, 20, 48, bits=16), b.embedding(b.reshape(ids, 18), 20, 5, bits=16), b.embedding(b.ids(rows=9), 9, 7, bits=16)]


@case
def indices_moved_about(b):
    """Movement of integers of 8 and of 4 bytes, with constants among them, on the way to a table."""
    ids, short = b.ids(2, 9, rows=50), b.ids(4, 5, rows=50, dtype=DType.i32)
    joined = b.concat(0, ids, b.const(np.array([[3, -1] * 4 + [0]])))
    moved = [b.gather(ids, 1, [0, 5, 3]), b.tile(ids, 1, 2), b.expand(b.ids(1, 4, rows=50), 3, 4)]
    return [b.embedding(i, 50, 8) for i in (joined, *moved, b.transpose(short, 1, 0), b.concat(1, short, short))]


@case
def gathers_from_activations(b):
    x, y = stored(b, 6, 40), b.input(6, 5)
    return [b.apply(Gather(0), x, b.ids(4, rows=6)), b.clamp(b.apply(Gather(0), y, b.ids(rows=6))), b.apply(Gather(1), x, b.argmax(y, 1))]


@case
def embeddings_side_by_side(b):
    ids = b.ids(1, 11, rows=13)
    return [b.clamp(b.concat(2, b.embedding(ids, 13, 20, zero_point=3), b.embedding(ids, 13, 7, zero_point=3)), -90, 90)]


@case
def nearest_neighbours(b):
    return [b.nearest(stored(b, 1, 3, 4, c), 1, 6, 7, c) for c in (1, 5, 16, 80)] + [b.nearest(b.input(1, 4, 4, 5), 1, 2, 8, 5)]


# --- elementwise -----------------------------------------------------------------------------------------------------


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


# --- pooling and reduction ---------------------------------------------------------------------------------------------


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


# --- the rest ------------------------------------------------------------------------------------------------------------


@case
def matrix_products(b):
    shapes = [((3, 5), (5, 7)), ((2, 4, 16), (2, 16, 65)), ((2, 1, 3, 8), (4, 8, 20)), ((1, 1), (1, 130))]
    return [b.matmul(stored(b, *x), stored(b, *y, zero_point=-9)) for x, y in shapes] + [b.matmul(b.input(3, 9), b.int8_const(9, 33))]


@case
def interpolations(b):
    return [b.int_resize(stored(b, 2, 4, 5, c), 7, 3) for c in (1, 20, 64)] + [b.int_resize(b.input(1, 3, 3, 5), 6, 6)]


def heads(b: Builder, q: tuple[int, ...], m: int, g: int, e: int, **kw) -> Value:
    """Attention from q [b,n,h,d] to m positions of g heads with values of e channels."""
    k, v = stored(b, q[0], m, g, q[3], zero_point=-7), stored(b, q[0], m, g, e, zero_point=11)
    return b.attention(stored(b, *q, zero_point=5), k, v, **kw)


def bias_of(b: Builder, *shape: int) -> np.ndarray:
    """Anything, a fifth of it hidden, some of it barely not."""
    bias = b.rng.integers(-300, 300, shape)
    return np.where(b.rng.random(shape) < 0.2, MASKED, np.where(b.rng.random(shape) < 0.05, b.rng.choice([MASKED + 1, 32767], shape), bias))


@case
def attention_of_all_sizes(b):
    plain = b.attention(b.input(1, 9, 2, 26, zero_point=5), b.input(1, 33, 2, 26, zero_point=-128), b.input(1, 33, 2, 30, zero_point=127))
    wide = heads(b, (1, 2, 1, 70), 130, 1, 130)
    return [plain, wide, heads(b, (1, 1, 1, 1), 1, 1, 1), heads(b, (1, 65, 1, 16), 65, 1, 16), heads(b, (2, 3, 6, 8), 17, 2, 40)]


@case
def attention_within_one_buffer(b):
    """Queries, keys and values side by side, as a dense layer leaves them; the result is read by channels."""
    x = stored(b, 2, 20, 3 * 24)
    parts = [b.reshape(b.channels(x, 24 * i, 24 * i + 24), 2, 20, 3, 8) for i in range(3)]
    return [b.clamp(b.concat(3, b.attention(*parts), parts[1]))]


@case
def attention_to_the_past(b):
    shapes = ((70, 70, 2), (9, 140, 1), (140, 9, 1))
    return [heads(b, (1, n, 2, 8), m, g, 8, causal=True) for n, m, g in shapes]


@case
def attention_with_bias_and_mask(b):
    mask = b.clamp(b.input(2, 1, 1, 130, zero_point=0), 0, 1)
    rows = b.clamp(b.input(3, 1, 7, 49, zero_point=0), 0, 1)
    return [
        heads(b, (3, 7, 2, 8), 49, 2, 8, bias=bias_of(b, 1, 2, 7, 49)),
        heads(b, (3, 7, 2, 8), 49, 2, 8, bias=bias_of(b, 2, 1, 1), mask=rows),
        heads(b, (2, 5, 2, 8), 130, 1, 8, mask=mask),
        heads(b, (2, 5, 2, 8), 130, 2, 8, bias=bias_of(b, 5, 130), mask=mask, causal=True),
        heads(b, (1, 4, 1, 8), 20, 1, 8, mask=b.input(1, 1, 4, 1, zero_point=0)),
        heads(b, (1, 4, 1, 8), 20, 1, 8, mask=b.clamp(b.input(20, zero_point=0), 0, 0)),
    ]


@case
def attention_at_extremes(b):
    """Logits that saturate, that all are alike, tables of few levels, results finer than values, shifts to the left."""
    gains = [heads(b, (1, 7, 1, 16), 40, 1, 8, gain=gain) for gain in (1e5, 3e3, 1e-2)]
    return [
        *gains,
        heads(b, (1, 7, 1, 16), 40, 1, 8, fine=60.0),
        heads(b, (1, 7, 1, 16), 40, 1, 8, bits=4),
        heads(b, (1, 3, 1, 2), 70, 1, 3, gain=1e6),
    ]


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


@case
def normalizations(b):
    made = [b.normalize(stored(b, 2, 3, d), centered) for d in (1, 7, 16, 65, 192) for centered in (True, False)]
    x, positive = stored(b, 2, 384), b.input(2, 20, zero_point=-128)
    return [*made, b.normalize(x, bits=16), b.normalize(x, epsilon=1e30), b.normalize(b.input(5), bits=16), b.normalize(positive, False)]


@case
def normalizations_of_equal_and_of_almost_equal_numbers(b):
    x = stored(b, 3, 40)
    made = [b.normalize(b.clamp(x, lo, hi), centered) for lo, hi in ((-128, -128), (126, 127), (3, 3), (-1, 1)) for centered in (True, False)]
    outlier = b.concat(1, b.clamp(x, 3, 3), b.channels(x, 0, 1))
    return [*made, b.normalize(outlier), b.normalize(outlier, bits=16)]


@case
def normalizations_of_16_bits(b):
    made = [b.normalize(b.wide_input(3, d), d % 2 == 0, bits) for d in (1, 3, 7, 8, 12, 33, 64, 96, 384) for bits in (8, 16)]
    return [*made, b.normalize(made[5]), b.normalize(b.normalize(made[-1], bits=16), bits=16), b.normalize(b.wide_input(1, 1 << 14))]


@case
def normalizations_of_strided_rows(b):
    x, wide = stored(b, 2, 5, 90), b.normalize(stored(b, 4, 80), bits=16)
    rows = b.slice(x, (0, 2, 1), (4, -1, -2), (0, 90, 1))
    parts = [b.channels(x, 3, 68), rows, b.channels(rows, 1, 40), b.channels(wide, 1, 77), b.slice(wide, (1, 4, 2), (0, 80, 1))]
    return [b.normalize(p, bits=bits) for p in parts for bits in (8, 16)] + [b.clamp(b.concat(2, b.normalize(x), x, b.normalize(x, False)), -100, 99)]


@case
def rotations(b):
    """Halves and neighbours change places, or any do; heads shorter and longer than registers; constants per channel."""
    made = []
    for shape in ((1, 5, 4, 8), (2, 3, 3, 32), (1, 3, 2, 64), (1, 2, 1, 6), (1, 2, 3, 80), (1, 3, 8, 2)):
        x, d = stored(b, *shape, zero_point=-77), shape[3]
        made += [b.rotate(x, np.roll(np.arange(d), d // 2)), b.rotate(x, np.arange(d) ^ 1)]
    made += [b.lookup(b.rotate(b.input(1, 2, 3, d), b.rng.permutation(d), channels=d)) for d in (10, 48)]
    rows = b.channels(stored(b, 1, 4, 3, 90), 3, 43)
    heads = b.slice(stored(b, 2, 7, 6, 16), (0, 2, 1), (1, 7, 2), (1, 5, 2), (0, 16, 1))
    return [*made, b.rotate(rows, np.arange(40) ^ 1), b.rotate(heads, np.roll(np.arange(16), 8))]


@case
def rotations_of_sixteen_bits(b):
    """The same, the extremes of 16 bits among the elements; rows of the caller's and of the arena."""
    made = []
    for shape in ((1, 5, 4, 8), (2, 3, 3, 32), (1, 3, 2, 64), (1, 2, 1, 6), (1, 2, 3, 80), (1, 3, 8, 2)):
        x, d = b.wide_input(*shape), shape[3]
        made += [b.rotate(x, np.roll(np.arange(d), d // 2)), b.rotate(b.clamp(x, -32768, 32767), np.arange(d) ^ 1)]
    made += [b.lookup(b.rotate(b.wide_input(1, 2, 3, d), b.rng.permutation(d), channels=d)) for d in (10, 48)]
    x = b.clamp(b.wide_input(2, 7, 6, 90), -32768, 32767)
    heads = b.slice(x, (0, 2, 1), (1, 7, 2), (1, 5, 2), (0, 90, 1))
    return [*made, b.rotate(b.channels(x, 3, 43), np.arange(40) ^ 1), b.rotate(heads, np.roll(np.arange(90), 45))]


@case
def casts(b):
    made = []
    for kind in (DType.i64, DType.i32, DType.i16, DType.i8, DType.u8, DType.u32, DType.bool):
        x, few = b.raw_input(kind, 3, 37), b.raw_input(kind, 5)
        made += [b.cast(x), b.clamp(b.cast(few)), b.cast(b.slice(x, (0, 2, 1), (30, 1, -3))), b.cast(b.transpose(x, 1, 0))]
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str, target: str) -> None:
    b = Builder(seed=len(name))
    graph = b.graph(*CASES[name](b))
    program = KernelProgram(graph, here(target))
    for _ in range(2):
        feeds = b.feeds()
        expected = reference.run(graph, feeds)
        for output, got in zip(graph.output_names, program.run(feeds), strict=True):
            np.testing.assert_array_equal(got, expected[output])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_widest_sums_of_a_normalization(bits: int, target: str) -> None:
    """2^14 channels at the ends of their range."""
    b, low, high = Builder(), -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    shape = (4, 1 << 14)
    x = b.input(*shape, zero_point=127) if bits == 8 else b.wide_input(*shape)
    graph = b.graph(b.normalize(x), b.normalize(x, centered=False))
    rows = np.full(shape, low)
    rows[1], rows[2, ::2], rows[3, -1] = high, high, high
    feeds = {x.name: rows.astype(x.type.dtype.numpy)}
    expected = reference.run(graph, feeds)
    for name, got in zip(graph.output_names, KernelProgram(graph, here(target)).run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[name])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["normalizations", "normalizations_of_16_bits", "rotations", "casts", "weights_of_few_bits"])
def test_kernels_are_integer(name: str, target: str) -> None:
    """Shifts by amounts that are known at run time, divisions by constants and saturation, without floats and without calls."""
    b = Builder()
    certificate = certify(compile_object(b.graph(*CASES[name](b)), TARGETS[target]).object, "model_run", TARGETS[target].arch)
    assert certificate.ok, certificate.findings


@pytest.mark.parametrize("target", TARGETS)
def test_casts_saturate(target: str) -> None:
    """Numbers that a program's entry would refuse, but that casts within it may meet."""
    b = Builder()
    inputs = [b.raw_input(kind, n) for kind in (DType.i64, DType.i32, DType.u32, DType.i16) for n in (3, 70)]
    graph, feeds = b.graph(*map(b.cast, inputs)), {}
    for v in inputs:
        bounds = np.iinfo(v.type.dtype.numpy)
        ends = np.array([bounds.min, bounds.max, 127, 128, 129, 255, 256, 300], v.type.dtype.numpy)
        feeds[v.name] = b.rng.choice(np.append(ends, -ends[2:]) if bounds.min else ends, v.shape)
    expected = reference.run(graph, feeds)
    for name, got in zip(graph.output_names, KernelProgram(graph, here(target)).run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[name])


@pytest.mark.parametrize("target", ["x86-64-avx512vnni", "arm64-dotprod"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs())
def test_random_graphs_equal_the_reference(target: str, grown: tuple[Builder, Outputs]) -> None:
    b, outputs = grown
    graph, feeds = b.graph(*outputs), b.feeds()
    expected = reference.run(graph, feeds)
    for name, got in zip(graph.output_names, KernelProgram(graph, here(target)).run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[name])


@pytest.mark.parametrize("target", ["arm64", "arm64-dotprod", "x86-64"])
@pytest.mark.parametrize("name", CASES)
def test_machine_code_reads_nothing_behind_the_callers_buffers(name: str, target: str) -> None:
    """Real machine code in an emulated CPU, where every input and output ends at the end of a page with nothing mapped behind it."""
    b = Builder(seed=len(name))
    graph = b.graph(*CASES[name](b))
    code = compile_object(graph, TARGETS[target])
    feeds = b.feeds()
    expected = reference.run(graph, feeds)
    got = emulated(code.interface, flatten(code.object), TARGETS[target].features).run_integer(feeds)
    for output in graph.output_names:
        np.testing.assert_array_equal(got[output], expected[output])
