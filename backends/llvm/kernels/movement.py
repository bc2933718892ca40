"""Kernels that only move bytes: fill, strided copies with transposition, and copies through index tables.

A copy is the loop nest `target[i] = source[i]` with the axes merged that both sides walk without a gap. Where source and target
walk different axes by one byte, tiles of 8x8 or 16x16 are transposed in registers, and two to four planes are interleaved
(an image NCHW -> NHWC). Between the arena and the caller's buffers the storage form changes: xor 0x80.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.launch import Address, Argument, Data, Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.ops import Gather, Pad, Resize
from qcompiler.passes.layouts import Layout, Space, dense_strides, itemsize
from qcompiler.passes.plan_memory import Copy, Fill, Run

from .rows import Strides, constant_data, data_of, for_row, load_exactly, merged, operands, result_of, walk


def stored_byte(q: int, layout: Layout, target: Target) -> int:
    """How the 8-bit number q lies in memory at `layout`, as an unsigned byte."""
    return (q + (target.storage_offset if layout.in_arena else 0)) & 0xFF


# --- fill --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FillConfig:
    """Rows of `n` elements of `bits`, each set to `number`."""

    shape: tuple[int, ...]
    strides: Strides
    n: int
    number: int
    bits: int


def plan_fill(fill: Fill, target: Target) -> Iterable[Launch]:
    """A halo or border set to one number."""
    shape, (strides,) = merged(fill.shape, [fill.target.strides])
    size = itemsize(fill.value.type)
    if not shape or strides[-1] != size:
        shape, strides = (*shape, 1), (*strides, size)
    number = stored_byte(fill.q, fill.target, target) if size == 1 else fill.q
    config = FillConfig(shape[:-1], strides[:-1], shape[-1], number, 8 * size)
    yield Launch(emit_fill, config, ("target",), (Address.of(fill.target),), f"{fill.value.name} (border)")


def emit_fill(k: Kernel, config: FillConfig) -> None:
    """The body of a function of ("target",)."""
    value = k.splat(config.number - 256 if config.bits == 8 and config.number > 127 else config.number, config.bits)
    with walk(k, config.shape, [config.strides], k.parameters) as ((row,), _):
        for_row(k, config.n * (config.bits // 8), lambda start, nbytes: k.store(row + start, value, nbytes))


# --- copy --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CopyConfig:
    """target[i] = source[i] ^ (0x80 where `flip`), in units of `size` bytes; `exact` forbids reading past the source's end.

    `trailing` is a byte that goes behind each row of the last axis."""

    shape: tuple[int, ...]
    source: Strides
    target: Strides
    size: int
    flip: bool
    exact: bool
    trailing: int | None = None


def plan_copy(copy: Copy, target: Target) -> Iterable[Launch]:
    """A strided copy."""
    argument, strides = _source(copy)
    shape, (source, written) = merged(copy.shape, [strides, copy.target.strides])
    size = itemsize(copy.value.type)
    flip = size == 1 and bool(target.storage_offset) and copy.source.in_arena != copy.target.in_arena
    exact = copy.source.buffer.space in (Space.input, Space.output)
    trailing = None if copy.trailing is None else stored_byte(copy.trailing, copy.target, target)
    config = CopyConfig(shape, source, written, size, flip, exact, trailing)
    yield Launch(emit_copy, config, ("source", "target"), (argument, Address.of(copy.target)), f"{copy.value.name} (copy)")


def _source(copy: Copy) -> tuple[Argument, Strides]:
    """The address of the source, or the copied part of a constant, which is gathered at compile time."""
    if copy.source.buffer.space is not Space.constant:
        return Address.of(copy.source), copy.source.strides
    data = np.ascontiguousarray(data_of(copy.value))
    octets = data.reshape(-1).view(np.uint8)[copy.source.offset :]
    part = as_strided(octets[: data.itemsize].view(data.dtype), copy.shape, copy.source.strides)
    return constant_data(part), dense_strides(copy.shape, data.itemsize)


def emit_copy(k: Kernel, c: CopyConfig) -> None:
    """The body of a function of ("source", "target")."""
    if c.trailing is not None and c.source[-1] == 1:
        _widen(k, c)
    elif _moves_rows(c):
        _copy_rows(k, c)
    elif (axes := _planes(c)) is not None:
        _interleave(k, c, axes)
    elif (tile := _tile(c)) is not None:
        _transpose_tiles(k, c, *tile)
    else:
        _copy_elements(k, c)


def _moves_rows(c: CopyConfig) -> bool:
    return not c.shape or c.source[-1] == c.target[-1] == c.size


def _copy_rows(k: Kernel, c: CopyConfig) -> None:
    n = c.shape[-1] if c.shape else 1
    with walk(k, c.shape[:-1], (c.source[:-1], c.target[:-1]), k.parameters) as ((source, target), _):
        copy_row(k, source, target, n * c.size, c.flip, c.exact)


def copy_row(k: Kernel, source: Ptr, target: Ptr, n: int, flip: bool, exact: bool) -> None:
    """`n` consecutive bytes."""

    def body(at: Index | int, nbytes: int) -> None:
        row = _loaded(k, source + at, nbytes, exact)
        k.store(target + at, row ^ row.splat(-128) if flip else row, nbytes)

    for_row(k, n, body)


def _loaded(k: Kernel, p: Ptr, nbytes: int, exact: bool) -> Val:
    if nbytes == k.target.vector_bytes:
        return k.load(p, 8)
    return load_exactly(k, p, nbytes) if exact else k.load_lanes(p, 8, nbytes)


def _copy_elements(k: Kernel, c: CopyConfig) -> None:
    kind = ir.IntType(8 * c.size)
    with walk(k, c.shape, (c.source, c.target), k.parameters) as ((source, target), _):
        value = k.b.load(source.ir, align=1, typ=kind)
        k.b.store(k.b.xor(value, ir.Constant(kind, 0x80)) if c.flip else value, target.ir, align=1)


# --- transposition in registers ------------------------------------------------------------------------------------------


def _planes(c: CopyConfig) -> tuple[int, int] | None:
    """(axis of 2 to 4 planes, axis along the plane) where the target interleaves planes that the source has one by one."""
    last = len(c.shape) - 1
    if c.size != 1 or c.target[-1] != 1 or c.shape[-1] > 4:
        return None
    along = [a for a in range(last) if c.source[a] == 1 and c.target[a] == _pixel(c) and c.shape[a] >= 16]
    return (last, along[0]) if along else None


def _pixel(c: CopyConfig) -> int:
    """Bytes of a pixel of the target."""
    return c.shape[-1] + (c.trailing is not None)


def _trailing(c: CopyConfig) -> list[Any]:
    """16 times the trailing byte, as it is before `flip`."""
    if c.trailing is None:
        return []
    byte = c.trailing ^ (0x80 if c.flip else 0)
    return [instrs.splat(instrs.vector_type((16, 8)), byte - 256 * (byte > 127))]


def _widen(k: Kernel, c: CopyConfig) -> None:
    """16 pixels at a time, each with one byte more."""
    last, n = len(c.shape) - 1, c.shape[-1]
    along = next(a for a in range(last) if c.source[a] == n and c.target[a] == n + 1)
    picks = [i for p in range(16) for i in (*range(n * p, n * p + n), 16 * n)]
    with _others(k, c, (last, along)) as (source, target), k.split(-(-c.shape[along] // 16)) as i:
        start = _inside(i, 16, c.shape[along])
        pixels = _octets(k, source + start * n, 16 * n)
        number = instrs.pick(k.b, _trailing(c)[0], [0] * (16 * n))
        k.b.store(_flip_raw(k, instrs.shuffle(k.b, pixels, number, picks), c.flip), (target + start * (n + 1)).ir, align=1)


def _interleave(k: Kernel, c: CopyConfig, axes: tuple[int, int]) -> None:
    """16 bytes of each plane at a time, woven into 16 pixels."""
    plane, along = axes
    planes, n = c.shape[plane], c.shape[along]
    with _others(k, c, axes) as (source, target), k.split(-(-n // 16)) as i:
        start = _inside(i, 16, n)
        woven = _woven(k, [*(_octets(k, source + start + p * c.source[plane], 16) for p in range(planes)), *_trailing(c)])
        k.b.store(_flip_raw(k, woven, c.flip), (target + start * _pixel(c)).ir, align=1)


def _woven(k: Kernel, rows: Sequence[Any]) -> Any:
    """Byte i of every row, then byte i + 1 of every row ..."""
    n, whole = len(rows), rows[0]
    if n in (2, 4):  # one number of 16 or 32 bits for each pixel: fewer instructions than shuffling
        wide = instrs.vector_type((16, 8 * n))
        parts = [k.b.shl(k.b.zext(r, wide), instrs.splat(wide, 8 * i)) for i, r in enumerate(rows)]
        return k.b.bitcast(reduce(k.b.or_, parts), instrs.vector_type((16 * n, 8)))
    for r in rows[1:]:
        have = whole.type.count
        padded = instrs.pick(k.b, r, [min(i, 15) for i in range(have)])
        whole = instrs.shuffle(k.b, whole, padded, [*range(have), *range(have, have + 16)])
    return instrs.pick(k.b, whole, [p * 16 + i for i in range(16) for p in range(n)])


def _tile(c: CopyConfig) -> tuple[int, tuple[int, int]] | None:
    """(side, (axis that the source walks by one, axis that the target does)), or None where the axes are too short."""
    if c.size != 1 or 1 not in c.source or 1 not in c.target:
        return None
    axes = c.source.index(1), c.target.index(1)
    shortest = min(c.shape[a] for a in axes)
    return (16 if shortest >= 16 else 8, axes) if shortest >= 8 and axes[0] != axes[1] else None


def _transpose_tiles(k: Kernel, c: CopyConfig, side: int, axes: tuple[int, int]) -> None:
    read, written = axes
    with _others(k, c, axes) as (source, target), k.split(-(-c.shape[read] // side), c.shape[read] >= c.shape[written]) as i:
        u = _inside(i, side, c.shape[read])
        with k.split(-(-c.shape[written] // side)) as j:
            w = _inside(j, side, c.shape[written])
            rows = [_octets(k, source + u + w * c.source[written] + r * c.source[written], side) for r in range(side)]
            for r, row in enumerate(_transposed(k, rows)):
                at = target + u * c.target[read] + w + r * c.target[read]
                k.b.store(_flip_raw(k, row, c.flip), at.ir, align=1)


def _transposed(k: Kernel, rows: list[Any]) -> list[Any]:
    """A square of bytes transposed: log2(side) rounds that zip row i with row i + side / 2."""
    side = len(rows)
    low = [x for i in range(side // 2) for x in (i, side + i)]
    high = [x + side // 2 for x in low]
    for _ in range(side.bit_length() - 1):
        pairs = list(zip(rows[: side // 2], rows[side // 2 :]))
        rows = [instrs.shuffle(k.b, a, b, picks) for a, b in pairs for picks in (low, high)]
    return rows


@contextmanager
def _others(k: Kernel, c: CopyConfig, axes: tuple[int, int]) -> Iterator[list[Ptr]]:
    """Loops over all axes but `axes`; within them, the pointers to source and target."""
    kept = [a for a in range(len(c.shape)) if a not in axes]
    strides = [tuple(s[a] for a in kept) for s in (c.source, c.target)]
    with walk(k, [c.shape[a] for a in kept], strides, k.parameters) as (at, _):
        yield at


def _octets(k: Kernel, p: Ptr, n: int) -> Any:
    return k.b.load(p.ir, align=1, typ=instrs.vector_type((n, 8)))


def _flip_raw(k: Kernel, x: Any, flip: bool) -> Any:
    return k.b.xor(x, instrs.splat(x.type, -128)) if flip else x


def _inside(i: Index | int, size: int, whole: int) -> Index | int:
    """Start of piece i; the last one is moved back inside."""
    start = i * size
    return start.minimum(whole - size) if isinstance(start, Index) and whole % size else start


# --- copies through tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TakeConfig:
    """target[i] = source at the sum over axes of ``tables[axis][i_axis]`` (bytes), or of ``i_axis * source[axis]``.

    `tables` has the position of each axis' table in the table argument, or None.
    """

    shape: tuple[int, ...]
    source: Strides
    target: Strides
    tables: tuple[int | None, ...]
    size: int
    flip: bool
    exact: bool


def plan_take(run: Run, target: Target) -> Iterable[Launch]:
    """Gather, nearest Resize, and Pad that repeats elements: each axis of the result has a list of source indices."""
    x, y = operands(run)[0], result_of(run)
    indices = take_indices(run, x.shape)
    lists = [None if a is None else np.asarray(a, np.int64) * s for a, s in zip(indices, x.layout.strides)]
    shape = tuple(d if a is None else len(a) for d, a in zip(x.shape, indices))
    starts = tuple(None if a is None else sum(len(b) for b in lists[:n] if b is not None) for n, a in enumerate(lists))
    table = np.concatenate([np.zeros(0, np.int64), *(a for a in lists if a is not None)])
    size = x.itemsize
    flip = size == 1 and bool(target.storage_offset) and x.layout.in_arena != y.layout.in_arena
    written = _grouped(run, y.layout.strides)
    config = TakeConfig(shape, x.layout.strides, written, starts, size, flip, x.space in (Space.input, Space.output))
    yield Launch(emit_take, config, ("source", "table", "target"), (x.argument, Data(table.tobytes()), y.argument), run.step.result.name)


def _grouped(run: Run, strides: Strides) -> Strides:
    """The result's strides with the axes that come from the index array of a Gather as one axis, which is dense or alone."""
    op = run.step.producer.op
    if not isinstance(op, Gather):
        return strides
    after = op.axis + run.step.producer.inputs[1].type.rank
    shape = run.step.result.shape[op.axis : after]
    found, (steps,) = merged(shape, [strides[op.axis : after]])
    if len(found) > 1:
        raise UnsupportedModel(
            [f"Gather '{run.step.result.name}' by indices of several axes feeds a padded convolution; reshape its indices to one axis"]
        )
    return (*strides[: op.axis], steps[0] if steps else 0, *strides[after:])


def take_indices(run: Run, shape: tuple[int, ...]) -> list[NDArray[np.integer] | None]:
    """For each axis of the operand, the source index of every result position, or None where it is the same."""
    v = run.step.producer
    match v.op:
        case Gather(axis):
            index = data_of(v.inputs[1]).astype(np.int64).reshape(-1)
            return [np.where(index < 0, index + d, index) if n == axis else None for n, d in enumerate(shape)]
        case Resize(taps):
            return [None if t is None else np.asarray(t[0]) for t in taps]
        case Pad(pads, mode):
            return [None if p == (0, 0) else padded_indices(d, p, mode.value) for d, p in zip(shape, pads)]
    raise TypeError(f"{type(v.op).__name__} takes no elements by index")


def padded_indices(size: int, pads: tuple[int, int], mode: Any) -> NDArray[np.integer]:
    """Source index of each position of an axis grown by `pads` in numpy's `mode`, or cropped where they are negative."""
    grown = np.pad(np.arange(size), [(max(p, 0)) for p in pads], mode=mode)
    return grown[max(-pads[0], 0) : len(grown) - max(-pads[1], 0)]


def emit_take(k: Kernel, c: TakeConfig) -> None:
    """The body of a function of ("source", "table", "target")."""
    source, table, target = k.parameters
    row = c.tables[-1] is None and c.source[-1] == c.target[-1] == c.size
    axes = len(c.shape) - row
    with walk(k, c.shape[:axes], [c.target[:axes]], [target]) as ((out,), index):
        at = source
        for axis, i in enumerate(index):
            start = c.tables[axis]
            at += i * c.source[axis] if start is None else load_index(k, table + start * 8 + i * 8)
        copy_row(k, at, out, (c.shape[-1] if row else 1) * c.size, c.flip, c.exact)


def load_index(k: Kernel, p: Ptr) -> Index:
    """A 64-bit integer from a table."""
    return Index(k, k.b.load(p.ir, align=8, typ=ir.IntType(64)))
