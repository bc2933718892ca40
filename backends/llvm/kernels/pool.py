"""Pooling over windows of channels-last images, vectorized over channels.

    MaxPool      y   = max over the window's elements inside of the operand
    IntSumPool   acc = sum over the window of x - z      the operand's halo holds z: padding adds nothing

`MaxPool` needs no halo (its padding would have to be -128): each tap outside of the operand is replaced by one inside of the
same window, by tables of byte offsets per output row and per output column; without padding offsets are affine. Sums run in
16 bits for as many taps as fit (255), then in 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, EpilogueData, Requant, Sources, describe
from qcompiler.backends.llvm.launch import Address, Data, Launch, Nothing
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntSumPool
from qcompiler.ir.ops import MaxPool
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .elementwise import for_constants
from .movement import load_index
from .rows import Operand, Strides, for_row, load_lanes, load_row, operands, result_of, store_lanes, store_row, walk

MOST_16_BIT_TAPS = 255
"""255 * 128 < 2^15."""
WRITTEN_OUT = 3
"""Axes of at most as many taps become no loop."""

# --- maximum -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """Byte offsets of the taps of a window along one axis: position * step + tap * dilation, or from a table [out][taps]."""

    out: int
    taps: int
    step: int
    dilation: int
    table: bool


@dataclass(frozen=True)
class MaxPoolConfig:
    """`x` and `y` are strides of images; those of y also of rows and columns."""

    images: int
    channels: int
    rows: Taps
    columns: Taps
    x: int
    y: Strides
    spaces: tuple[Space, Space]
    bits: int = 8


def plan_max_pool(run: Run, target: Target) -> Iterable[Launch]:
    """`MaxPool`."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, MaxPool)
    rows, columns = (_taps(op, axis, x, y) for axis in (0, 1))
    tables = [_tap_table(op, axis, x, y) if t.table else np.zeros(0, np.int64) for axis, t in enumerate((rows, columns))]
    config = MaxPoolConfig(y.shape[0], y.shape[3], rows, columns, x.layout.strides[0], y.layout.strides[:3], (x.space, y.space), x.bits)
    arguments = (x.argument, y.argument, *(Data(t.tobytes()) if t.size else Nothing() for t in tables))
    yield Launch(emit_max_pool, config, ("x", "y", "rows", "columns"), arguments, run.step.result.name)


def _taps(op: MaxPool, axis: int, x: Operand, y: Operand) -> Taps:
    stride, inside = x.layout.strides[1 + axis], _positions(op, axis, y)
    outside = bool(inside.min() < 0 or inside.max() >= x.shape[1 + axis])
    return Taps(y.shape[1 + axis], op.kernel[axis], op.strides[axis] * stride, op.dilations[axis] * stride, outside)


def _positions(op: MaxPool, axis: int, y: Operand) -> NDArray[np.int64]:
    """[out, taps]: the row (or column) that each tap reads, padding included."""
    starts = np.arange(y.shape[1 + axis]) * op.strides[axis] - op.pads[axis][0]
    return starts[:, None] + np.arange(op.kernel[axis]) * op.dilations[axis]


def _tap_table(op: MaxPool, axis: int, x: Operand, y: Operand) -> NDArray[np.int64]:
    """Byte offsets [out, taps], taps outside replaced by the window's first one inside."""
    at = _positions(op, axis, y)
    inside = (at >= 0) & (at < x.shape[1 + axis])
    first = np.take_along_axis(at, inside.argmax(1)[:, None], 1)
    return np.where(inside, at, first) * x.layout.strides[1 + axis]


def emit_max_pool(k: Kernel, c: MaxPoolConfig) -> None:
    """The body of a function of ("x", "y", "rows", "columns")."""
    x, y, rows, columns = k.parameters
    with walk(k, (c.images, c.rows.out, c.columns.out), (c.y,), [y]) as ((out,), (n, i, j)):
        image = x + n * c.x
        row_table, column_table = rows + i * (8 * c.rows.taps), columns + j * (8 * c.columns.taps)
        offsets = [_offset(k, c.columns, column_table, j, t) for t in range(c.columns.taps)]

        def body(start: Index | int, nbytes: int) -> None:
            best = k.splat(-(1 << (c.bits - 1)), c.bits)
            for r in range(c.rows.taps):
                row = image + _offset(k, c.rows, row_table, i, r) + start
                for offset in offsets:
                    best = load_lanes(k, row + offset, nbytes, c.spaces[0], bits=c.bits).maximum(best)
            store_lanes(k, out + start, best, nbytes, c.spaces[1])

        for_row(k, c.channels * (c.bits // 8), body)


def _offset(k: Kernel, t: Taps, table: Ptr, position: Index | int, tap: int) -> Index | int:
    return load_index(k, table + 8 * tap) if t.table else position * t.step + tap * t.dilation


# --- sums --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SumPoolConfig:
    """Strides of x and y along images, output rows and columns; `taps` are the numbers and byte steps within a window.

    `per_position`: every output position has its own constants.
    """

    shape: tuple[int, int, int]
    channels: int
    x: Strides
    y: Strides
    taps: tuple[tuple[int, int], tuple[int, int]]
    spaces: tuple[Space, Space]
    epilogue: Epilogue
    per_position: bool
    bits: int = 8
    """Width of the elements of x."""


def plan_sum_pool(run: Run, target: Target) -> Iterable[Launch]:
    """`IntSumPool` and its epilogue."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntSumPool)
    n, h, w, _ = x.layout.strides
    epilogue, data = describe(run.step.epilogue, -x.zero_point * op.kernel[0] * op.kernel[1], run.step.producer)
    per_position = len(run.step.epilogue[0].inputs[1].shape) == 3 and run.step.epilogue[0].inputs[1].type.size > 1
    if per_position:
        epilogue, constants = _per_position(epilogue, data, target)
    else:
        constants = data.pack(target, 4, 1 if epilogue.uniform else y.shape[3])
    config = SumPoolConfig(
        (y.shape[0], y.shape[1], y.shape[2]),
        y.shape[3],
        (n, h * op.strides[0], w * op.strides[1]),
        y.layout.strides[:3],
        ((op.kernel[0], op.dilations[0] * h), (op.kernel[1], op.dilations[1] * w)),
        (x.space, y.space),
        epilogue,
        per_position,
        x.bits,
    )
    source = Address.of(x.layout, -op.pads[0][0] * h - op.pads[1][0] * w)
    arguments = (source, y.argument, Data(constants), Data(data.tables) if data.tables else Nothing())
    yield Launch(emit_sum_pool, config, ("x", "y", "constants", "tables"), arguments, run.step.result.name)


def _per_position(epilogue: Epilogue, data: EpilogueData, target: Target) -> tuple[Epilogue, bytes]:
    """The epilogue as one of uniform blocks, and one block for each output position."""
    stages = tuple(replace(s, uniform=True) if isinstance(s, Requant) else s for s in epilogue.stages)
    size = max(values.size for values, _ in data.numbers)
    blocks = (_block_at(data, p).pack(target, 4, 1) for p in range(size))
    return replace(epilogue, stages=stages, bias_uniform=True), b"".join(blocks)


def _block_at(data: EpilogueData, position: int) -> EpilogueData:
    def at(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return values if values.size == 1 else values[position : position + 1]

    return EpilogueData(at(data.bias), tuple((at(values), bits) for values, bits in data.numbers))


def emit_sum_pool(k: Kernel, c: SumPoolConfig) -> None:
    """The body of a function of ("x", "y", "constants", "tables")."""
    x, y, constants, tables = k.parameters
    size = c.epilogue.block_bytes(k.target, 4) if c.per_position else 0
    steps = (0, c.shape[2] * size, size)
    with walk(k, c.shape, (c.x, c.y, steps), [x, y, constants]) as ((window, out, here), _):

        def body(start: Index | int, nbytes: int, block: Ptr) -> None:
            acc = c.epilogue.initial(k, block, 4) + sum_window(k, c.taps, window + start * (c.bits // 8), nbytes, c.spaces[0], c.bits)
            result = c.epilogue.apply(k, acc, block, 4, Sources(tables=tables))
            store_row(k, out + start * c.epilogue.itemsize, result, nbytes, c.spaces[1])

        for_constants(k, c.channels, c.epilogue, here, body)


def sum_window(k: Kernel, taps: Sequence[tuple[int, int]], x: Ptr, nbytes: int, space: Space, bits: int = 8) -> Val:
    """The sum over all taps, (number, byte step) per axis, of a register of 8-bit values (or two of 16), in 32 bits."""
    if bits == 16:
        zero = k.splat(0, 32).repeat(4)
        return fold(k, taps, zero, x, lambda acc, p: load_row(k, p, nbytes, space, bits=16).sext(32) + acc)
    total, (n, by) = k.splat(0, 32).repeat(4), taps[-1] if taps else (1, 0)

    def add_short(total: Val, p: Ptr, short: Sequence[tuple[int, int]]) -> Val:
        zero = k.splat(0, 16).repeat(2)
        return fold(k, short, zero, p, lambda acc, q: load_row(k, q, nbytes, space).sext(16) + acc).sext(32) + total

    whole, rest = divmod(n, MOST_16_BIT_TAPS)
    if whole:
        total = fold(k, (*taps[:-1], (whole, MOST_16_BIT_TAPS * by)), total, x, lambda t, p: add_short(t, p, [(MOST_16_BIT_TAPS, by)]))
        at = x + whole * MOST_16_BIT_TAPS * by
        return fold(k, taps[:-1], total, at, lambda t, p: add_short(t, p, [(rest, by)])) if rest else total
    inner = _fitting(taps)
    short, outer = taps[len(taps) - inner :], taps[: len(taps) - inner]
    return fold(k, outer, total, x, lambda t, p: add_short(t, p, short))


def fold(k: Kernel, taps: Sequence[tuple[int, int]], state: Val, x: Ptr, step: Callable[[Val, Ptr], Val]) -> Val:
    """`state` after step(state, pointer) at every tap, outermost axis first; short axes are written out."""
    if not taps:
        return step(state, x)
    (n, by), inner = taps[0], taps[1:]
    if n <= WRITTEN_OUT:
        for tap in range(n):
            state = fold(k, inner, state, x + tap * by, step)
        return state
    with k.loop(n, [state]) as (i, carried):
        carried[0] = fold(k, inner, carried[0], x + i * by, step)
    return carried[0]


def _fitting(taps: Sequence[tuple[int, int]]) -> int:
    """How many of the last axes have at most 255 taps together."""
    total = 1
    for count, (number, _) in enumerate(reversed(taps)):
        total *= number
        if total > MOST_16_BIT_TAPS:
            return count
    return len(taps)
