"""What is moved, and how much of it: transposition, slices, concatenation, rows of tables, casts."""

from __future__ import annotations

import numpy as np

from qcompiler.ir.ops import Gather, PadMode
from qcompiler.ir.types import DType

from .registry import case, kept, stored, wide


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


@case
def casts(b):
    made = []
    for kind in (DType.i64, DType.i32, DType.i16, DType.i8, DType.u8, DType.u32, DType.bool):
        x, few = b.raw_input(kind, 3, 37), b.raw_input(kind, 5)
        made += [b.cast(x), b.clamp(b.cast(few)), b.cast(b.slice(x, (0, 2, 1), (30, 1, -3))), b.cast(b.transpose(x, 1, 0))]
    return made


@case
def stored_integers(b):
    made = [b.integers(x, kind) for x in (b.input(3, 37), stored(b, 2, 5, 70), b.input(5)) for kind in (DType.u8, DType.i8)]
    wide, x = [b.integers(b.wide_input(3, 21), kind) for kind in (DType.u16, DType.i16)], stored(b, 1, 4, 6, 5)
    moved = [b.transpose(b.integers(x, DType.u8), 0, 3, 1, 2), b.integers(b.transpose(x, 0, 3, 1, 2), DType.u8)]
    kept, parts = b.clamp(b.wide_input(2, 3, 9), -32768, 32767), [b.integers(x, DType.u8)] * 2
    return [
        *made,
        *wide,
        *moved,
        b.concat(3, *parts),
        b.integers(kept, DType.u16),
        b.transpose(b.integers(kept, DType.i16), 2, 0, 1),
    ]


@wide
def wide_movement(b):
    x, y = kept(b, 1, 3, 4, 5), b.wide_input(1, 3, 4, 5)
    joined = [b.concat(axis, b.clamp(x, -9, 9000), y, b.wide_const(1, 3, 4, 5), x) for axis in range(4)]
    made = [b.add16(b.concat(3, b.add16(x, y), b.max_pool(x, (1, 1))), b.wide_input(1, 3, 4, 10)), b.reshape(x, 60), b.reshape(y, 4, 15)]
    moved = [b.transpose(kept(b, 1, 9, 23), 0, 2, 1), b.transpose(b.wide_input(2, 3, 17), 0, 2, 1), b.transpose(kept(b, 1, 6, 5, 24), 0, 3, 1, 2)]
    cut = [
        b.slice(x, (0, 1, 1), (2, -1, -2), (1, 4, 2), (0, 5, 1)),
        b.clamp(b.channels(x, 2, 5), -999, 999),
        b.slice(y, (0, 1, 1), (0, 3, 1), (0, 4, 1), (4, -1, -2)),
    ]
    return [
        *joined,
        *made,
        *moved,
        *cut,
        b.tile(kept(b, 2, 3, 5), 2, 1, 3),
        b.expand(b.wide_input(1, 3, 1), 4, 3, 6),
        b.expand(kept(b, 1, 20), 3, 20),
    ]


@wide
def wide_pads_and_gathers(b):
    x, y = kept(b, 1, 5, 6, 3), kept(b, 4, 5, 20)
    spatial = ((0, 0), (2, 1), (1, 3), (0, 0))
    return [
        *(b.pad(x, *spatial, mode=m) for m in (PadMode.reflect, PadMode.edge)),
        b.pad(x, *spatial, value=1.3),
        b.pad(b.wide_input(2, 3), (1, 0), (-1, 2), value=-2.0),
        b.gather(y, 0, [3, -1, 0]),
        b.gather(y, 2, [0, 19, -2, 5, 5]),
        b.gather(y, 1, np.array([[1, 2, 0], [4, -5, 3]])),
        b.gather(b.wide_input(3, 70), 0, [2, 0]),
        b.nearest(kept(b, 1, 3, 4, 5), 1, 6, 7, 5),
    ]


@case
def channel_of_one_number_behind_pixels(b):
    behind = ((0, 0), (0, 0), (0, 0), (0, 1))
    planes = [b.pad(b.transpose(b.input(1, c, 5, w), 0, 2, 3, 1), *behind, value=0.3) for c, w in ((2, 16), (3, 40), (3, 17), (3, 7), (4, 16))]
    pixels = [b.pad(b.input(1, 4, w, c), *behind, value=-0.2) for c, w in ((2, 19), (3, 16), (3, 33), (3, 5))]
    return [*planes, *pixels, b.conv(planes[1], 6, (3, 3), pads=((1, 1), (1, 1)))]
