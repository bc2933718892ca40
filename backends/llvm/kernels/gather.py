"""Rows of a table by indices that are known at run time: embeddings.

    y[o.., i.., r..] = x[o.., n(i), r..]        n = index[i..] + (V where it is negative), x [.., V, ..]

The program's first step has checked that indices given to it lie in [-V, V) (`check`); others are proven to (`index_ranges`). A
table of constants lies in memory in the storage form of the result, so that rows are copied as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm.dsl import I64, Index, Kernel, Ptr
from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Const, Gather
from qcompiler.passes.index_ranges import index_problem
from qcompiler.passes.layouts import Space, itemsize
from qcompiler.passes.plan_memory import Run

from .movement import copy_row, plan_take
from .rows import Operand, Strides, constant_data, data_of, merged, operands, result_of, walk


@dataclass(frozen=True)
class GatherConfig:
    """Loops over `shape` with the strides of table, indices and result; in each, the row that the index of `bits` bits names among
    `rows`, `step` bytes apart, is copied: `inner` with the strides of both sides, of bytes at the end."""

    shape: tuple[int, ...]
    strides: tuple[Strides, Strides, Strides]
    inner: tuple[int, ...]
    inner_strides: tuple[Strides, Strides]
    rows: int
    step: int
    bits: int
    flip: bool
    exact: bool


def plan_gather(run: Run, target: Target) -> Iterable[Launch]:
    """`Gather`: by a kernel of its own where the indices are not constants."""
    v = run.step.producer
    if isinstance(v.inputs[1].op, Const):
        return plan_take(run, target)
    assert isinstance(v.op, Gather)
    axis = v.op.axis
    if problem := index_problem(v.inputs[1], v.inputs[0].shape[axis]):
        raise UnsupportedModel([f"Gather '{v.name}': {problem}"])
    (x, index), y = operands(run), result_of(run)
    flip = itemsize(v.type) == 1 and bool(target.storage_offset) and x.layout.in_arena != y.layout.in_arena
    if flip and isinstance(v.inputs[0].op, Const):
        x, flip = replace(x, argument=constant_data(data_of(v.inputs[0]).view(np.uint8) ^ np.uint8(0x80))), False
    config = _config(v, axis, (x, index, y), flip)
    return [Launch(emit_gather, config, ("table", "indices", "target"), (x.argument, index.argument, y.argument), run.step.result.name)]


def _config(v: Value, axis: int, of: tuple[Operand, Operand, Operand], flip: bool) -> GatherConfig:
    x, index, y = of
    size, rank = itemsize(v.type), len(index.shape)
    outer, read, written = x.shape[:axis], x.layout.strides, y.layout.strides
    columns = (read[:axis] + (0,) * rank, (0,) * axis + index.layout.strides, written[: axis + rank])
    shape, strides = merged((*outer, *index.shape), columns)
    inner, (source, target) = merged(x.shape[axis + 1 :], (read[axis + 1 :], written[axis + rank :]))
    if not inner or source[-1] != size or target[-1] != size:
        inner, source, target = (*inner, 1), (*source, size), (*target, size)
    row, along = (*inner[:-1], inner[-1] * size), ((*source[:-1], 1), (*target[:-1], 1))
    exact, bits = x.space in (Space.input, Space.output), 8 * itemsize(v.inputs[1].type)
    return GatherConfig(shape, (strides[0], strides[1], strides[2]), row, along, x.shape[axis], read[axis], bits, flip, exact)


def emit_gather(k: Kernel, c: GatherConfig) -> None:
    """The body of a function of ("table", "indices", "target")."""
    with walk(k, c.shape, c.strides, k.parameters) as ((table, at, target), _):
        outer = c.inner[:-1]
        row = table + _position(k, at, c) * c.step
        with walk(k, outer, [s[:-1] for s in c.inner_strides], (row, target)) as ((source, out), _):
            copy_row(k, source, out, c.inner[-1], c.flip, c.exact)


def _position(k: Kernel, at: Ptr, c: GatherConfig) -> Index:
    """The index at `at`, counted from the first row."""
    found = k.b.load(at.ir, align=1, typ=ir.IntType(c.bits))
    wide = found if c.bits == 64 else k.b.sext(found, I64)
    below = k.b.icmp_signed("<", wide, k.i64(0))
    return Index(k, k.b.select(below, k.b.add(wide, k.i64(c.rows)), wide))
