"""Convolutions that `convolutions.py` does not draw, and matrix products."""

from __future__ import annotations

import numpy as np

from .registry import SAME, case, kept, stored, wide


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
def matrix_products(b):
    shapes = [((3, 5), (5, 7)), ((2, 4, 16), (2, 16, 65)), ((2, 1, 3, 8), (4, 8, 20)), ((1, 1), (1, 130))]
    return [b.matmul(stored(b, *x), stored(b, *y, zero_point=-9)) for x, y in shapes] + [b.matmul(b.input(3, 9), b.int8_const(9, 33))]


@wide
def wide_convolutions(b):
    made = []
    for channels in (1, 8, 17, 33, 50, 64, 130):
        x = stored(b, 1, 5, 7, 8)
        made.append(b.clamp(b.wide_conv(x, channels, (3, 3), pads=SAME), -30000, 20000) if channels % 3 else b.wide_conv(x, channels))
    x = stored(b, 2, 6, 5, 12)
    return [*made, b.wide_conv(x, 24, (3, 3), groups=4), b.wide_conv(x, 10, per_channel=False), b.wide_conv(x, 20, strides=(2, 2), lo=0, hi=9000)]


@wide
def wide_depthwise_convolutions(b):
    made = []
    for channels in (1, 5, 16, 33, 70):
        x = stored(b, 1, 6, 9, channels)
        made += [
            b.wide_conv(x, channels, (3, 3), pads=SAME, groups=channels),
            b.add16(b.wide_conv(x, channels, groups=channels), kept(b, 1, 6, 9, channels)),
        ]
    return made


@wide
def wide_streams(b):
    """Convolutions that add to a residual stream, read by another convolution through a rescaling."""
    made = []
    for channels in (1, 8, 21, 48):
        x, stream = stored(b, 1, 5, 7, 8), kept(b, 1, 5, 7, channels)
        first = b.add16(b.wide_conv(x, channels), stream)
        inner = b.conv(b.narrowed(first), 12)
        made += [b.add16(first, b.wide_conv(inner, channels, (3, 3), pads=SAME)), first]
    return made


@wide
def wide_residuals_of_either_width(b):
    x, made = stored(b, 1, 4, 7, 8), []
    for channels in (3, 16, 40):
        wide, narrow = kept(b, 1, 4, 7, channels), stored(b, 1, 4, 7, channels, zero_point=-100)
        made += [b.narrowed(b.wide_conv(x, channels), wide), b.summed(b.wide_conv(x, channels), narrow), b.narrowed(wide, b.conv(x, channels))]
        made += [b.summed(b.conv(x, channels), wide), b.summed(narrow, b.conv(x, channels))]
    return [*made, b.lookup(b.narrowed(b.wide_conv(x, 3), kept(b, 1, 4, 7, 3)))]


@wide
def wide_residuals_in_the_accumulator(b):
    made = []
    for channels in (3, 33, 70):
        r = stored(b, 1, 4, 5, channels)
        acc = b.conv_acc(stored(b, 1, 4, 5, 8), channels)
        m = b.const(b.rng.integers(1, 1 << 15, channels).astype(np.int32))
        made.append(b.widened(b.apply(acc.op, *acc.inputs, r, m), 900_000.0, channels))
    return made


@wide
def wide_dense_layers(b):
    return [b.wide_conv(stored(b, 1, 1, rows, 40), n) for rows, n in ((1, 10), (3, 100), (7, 65), (2, 3))]


@wide
def convolutions_of_16_bits(b):
    """Of a pixel and of many, with borders, in groups, inside of larger pixels, to either width, with what is added."""
    x, one = kept(b, 1, 5, 7, 10), kept(b, 1, 1, 1, 70)
    made = [b.of_words(one, n) for n in (1, 10, 33, 70)] + [b.of_words(b.wide_input(1, 1, 3, 5), 18, wide=True)]
    made += [b.of_words(x, n, (3, 3), pads=SAME, wide=n > 20) for n in (8, 17, 40)] + [b.of_words(x, 16, groups=2), b.of_words(x, 3, strides=(2, 2))]
    made += [
        b.of_words(b.channels(x, 2, 9), 12, (3, 3), pads=SAME),
        b.of_words(b.concat(3, x, kept(b, 1, 5, 7, 3)), 20, (3, 3), pads=SAME, wide=True),
    ]
    made += [b.of_words(b.clamp(kept(b, 1, 4, 4, 200), -4096, 4095), 9, (3, 3)), b.lookup(b.of_words(x, 21, reach=7))]
    made += [b.add16(b.of_words(x, 24, wide=True), kept(b, 1, 5, 7, 24)), b.narrowed(b.of_words(x, 24, wide=True), kept(b, 1, 5, 7, 24))]
    made += [b.of_words(kept(b, 1, 5, 7, c), c, (3, 3), pads=SAME, groups=c, wide=c > 9) for c in (5, 16, 70)]
    return [*made, *(b.of_words(x, r.shape[3], (3, 3), r, pads=SAME) for r in (stored(b, 1, 5, 7, 24), kept(b, 1, 5, 7, 6)))]
