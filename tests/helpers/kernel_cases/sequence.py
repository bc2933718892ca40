"""Attention, normalization and rotation."""

from __future__ import annotations

import numpy as np
from integer_graphs import Builder

from qcompiler.ir.graph import Value
from qcompiler.numerics.attention import MASKED

from .registry import case, stored


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
