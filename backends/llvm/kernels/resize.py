"""Two-tap interpolation of rows and columns with weights of 1/128, vectorized over channels.

h_i = (128 - u) x[y_i, x_0] + u x[y_i, x_1]       at most 2^14 in magnitude: 16 bits
acc = (128 - t) h_0 + t h_1 - 2^14 z              32 bits, pairs of 16-bit lanes at once
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, Sources, describe
from qcompiler.backends.llvm.launch import Data, Launch
from qcompiler.backends.llvm.products import weighted_pair
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntResize
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .elementwise import epilogue_arguments, for_constants
from .movement import load_index
from .rows import Strides, is_uniform, load_row, operands, result_of, store_row, walk

ENTRY = 24
"""Bytes of a table entry: two byte offsets and the two weights, as int16."""


@dataclass(frozen=True)
class ResizeConfig:
    """Output shape [N, OH, OW, C]; `x` is the stride of images, `y` those of images, rows and columns."""

    shape: tuple[int, ...]
    x: int
    y: Strides
    spaces: tuple[Space, Space]
    epilogue: Epilogue


def plan_resize(run: Run, target: Target) -> Iterable[Launch]:
    """`IntResize` and its epilogue."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntResize)
    epilogue, data = describe(run.step.epilogue, -x.zero_point << 14, run.step.producer)
    tables = [Data(_table(taps, x.layout.strides[axis])) for axis, taps in ((1, op.rows), (2, op.columns))]
    config = ResizeConfig(y.shape, x.layout.strides[0], y.layout.strides[:3], (x.space, y.space), epilogue)
    channels = 1 if is_uniform(run.step) else y.shape[3]
    arguments = (x.argument, y.argument, *tables, *epilogue_arguments(data, epilogue, target, channels))
    yield Launch(emit_resize, config, ("x", "y", "rows", "columns", "constants", "tables"), arguments, run.step.result.name)


def _table(taps: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], stride: int) -> bytes:
    i0, i1, t = (np.asarray(a, np.int64) for a in taps)
    entries = np.zeros(len(t), np.dtype([("at", np.int64, 2), ("weight", np.int16, 4)]))
    entries["at"] = np.stack([i0, i1], 1) * stride
    entries["weight"][:, :2] = np.stack([128 - t, t], 1)
    return entries.tobytes()


def emit_resize(k: Kernel, c: ResizeConfig) -> None:
    """The body of a function of ("x", "y", "rows", "columns", "constants", "tables")."""
    x, y, rows, columns, constants, tables = k.parameters
    steps = ((c.x, 0, 0), c.y, (0, ENTRY, 0), (0, 0, ENTRY))
    with walk(k, c.shape[:3], steps, [x, y, rows, columns]) as ((image, out, row, column), _):
        row_at, row_weights = _entry(k, row)
        column_at, column_weights = _entry(k, column)

        def body(start: Index | int, nbytes: int, block: Ptr) -> None:
            lines = [image + at + start for at in row_at]
            h = [_mix([load_row(k, line + at, nbytes, c.spaces[0]) for at in column_at], column_weights) for line in lines]
            acc = weighted_pair(h[0], row_weights[0], h[1], row_weights[1]) + c.epilogue.initial(k, block, 4)
            y = c.epilogue.apply(k, acc, block, 4, Sources(tables=tables))
            store_row(k, out + start * c.epilogue.itemsize, y, nbytes, c.spaces[1])

        for_constants(k, c.shape[3], c.epilogue, constants, body)


def _entry(k: Kernel, p: Ptr) -> tuple[list[Index], list[Val]]:
    """Byte offsets and weights of the two taps."""
    return [load_index(k, p), load_index(k, p + 8)], [k.broadcast(p + 16, 16), k.broadcast(p + 18, 16)]


def _mix(xs: list[Val], weights: list[Val]) -> Val:
    return xs[0].sext(16) * weights[0] + xs[1].sext(16) * weights[1]
