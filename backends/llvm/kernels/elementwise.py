"""Kernels on corresponding elements: weighted sums, products, minimum and maximum, clamp and table lookup, with broadcasting.

    IntSum   acc = sum_i m_i x_i + (half - sum_i m_i z_i)      pairs of 16-bit lanes, m_i and m_j at once (pmaddwd)
    IntMul   acc = (a - z_a) (b - z_b)                         nine bits each
    IntAdd   y = sat16(a + b)
    IntNarrow  y = sat8(sat16(r + 64 z + 32) >> 6)

Each row of a `Nest` is done a register of 8-bit values (or two of 16) at a time: widened to four registers of accumulators, then the epilogue.
Where the epilogue's constants differ per channel, rows are those of the last axis and each register has its own block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, EpilogueData, Sources, describe, zero_point
from qcompiler.backends.llvm.launch import Argument, Data, Launch, Nothing
from qcompiler.backends.llvm.lookup import emit_lookup
from qcompiler.backends.llvm.products import weighted_pair
from qcompiler.backends.llvm.reach import Loop, reach
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import Clamp, IntAdd, IntMax, IntMin, IntSum
from qcompiler.numerics.requantize import narrow_biased, output_offset
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .rows import (
    Nest,
    Operand,
    constant_data,
    count,
    data_of,
    for_blocks,
    for_row,
    is_uniform,
    load_lanes,
    load_row,
    nest,
    operands,
    result_of,
    store_lanes,
    store_row,
    walk,
)

# --- sums and products -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ElementwiseConfig:
    """The last operand of `nest` and `spaces` is the result; `widths` are the bits of the others. `wide`: multipliers that do not fit in 16 bits."""

    nest: Nest
    spaces: tuple[Space, ...]
    widths: tuple[int, ...]
    epilogue: Epilogue
    wide: bool = False

    @property
    def inputs(self) -> int:
        """Number of operands read."""
        return len(self.spaces) - 1


def plan_sum(run: Run, target: Target) -> Iterable[Launch]:
    """`IntSum` and its epilogue."""
    op, xs = run.step.producer.op, operands(run)
    assert isinstance(op, IntSum)
    wide = max(map(abs, op.multipliers)) >= 1 << 15
    numbers = np.array(op.multipliers, np.int32 if wide else np.int16)
    bias = -sum(m * x.zero_point for m, x in zip(op.multipliers, xs))
    yield _launch(run, target, xs, bias, emit_sum, numbers.tobytes(), wide)


def plan_mul(run: Run, target: Target) -> Iterable[Launch]:
    """`IntMul` and its epilogue."""
    xs = operands(run)
    numbers = np.array([-x.zero_point for x in xs], np.int16)
    yield _launch(run, target, xs, 0, emit_mul, numbers.tobytes())


def _launch(
    run: Run,
    target: Target,
    xs: Sequence[Operand],
    bias: int,
    emit: Callable[[Kernel, ElementwiseConfig], None],
    numbers: bytes,
    wide: bool = False,
) -> Launch:
    y = result_of(run)
    epilogue, data = describe(run.step.epilogue, bias, run.step.producer)
    loops = _loops(xs, y, not is_uniform(run.step))
    config = ElementwiseConfig(loops, tuple(x.space for x in (*xs, y)), tuple(x.bits for x in xs), epilogue, wide)
    names = [f"x{n}" for n in range(len(xs))]
    arguments = (*(x.argument for x in xs), y.argument, Data(numbers), *epilogue_arguments(data, epilogue, target, loops.n))
    return Launch(emit, config, (*names, "y", "numbers", "constants", "tables"), arguments, run.step.result.name)


def _loops(xs: Sequence[Operand], y: Operand, whole_rows: bool = False) -> Nest:
    """Loops over the result's elements and the operands that broadcast to them."""
    strides = [*(x.broadcast_strides(y.shape) for x in xs), y.layout.strides]
    return nest(y.shape, strides, whole_rows, [x.itemsize for x in (*xs, y)])


def epilogue_arguments(data: EpilogueData, epilogue: Epilogue, target: Target, channels: int) -> tuple[Argument, Argument]:
    """The constants of full registers of `channels` channels (of one register where they are uniform), and the tables."""
    constants = data.pack(target, 4, 1 if epilogue.uniform else channels)
    return Data(constants), Data(data.tables) if data.tables else Nothing()


Accumulate = Callable[[Kernel, ElementwiseConfig, Sequence[Val], Ptr, Val], Val]


def emit_sum(k: Kernel, c: ElementwiseConfig) -> None:
    """The body of a function of (operands, "y", "numbers", "constants", "tables")."""
    _emit(k, c, _weighted if not c.wide else _weighted_wide)


def emit_mul(k: Kernel, c: ElementwiseConfig) -> None:
    """The body of a function of ("x0", "x1", "y", "numbers", "constants", "tables")."""
    _emit(k, c, _multiplied)


def _emit(k: Kernel, c: ElementwiseConfig, accumulate: Accumulate) -> None:
    *pointers, numbers, constants, tables = k.parameters
    with c.nest.rows(k, pointers) as rows:

        def body(start: Index | int, nbytes: int, block: Ptr) -> None:
            at = zip(rows[:-1], c.nest.inner, c.spaces, c.widths)
            xs = [load_row(k, p + start * s, nbytes, space, s, bits) for p, s, space, bits in at]
            acc = accumulate(k, c, xs, numbers, c.epilogue.initial(k, block, 4))
            y = c.epilogue.apply(k, acc, block, 4, Sources(tables=tables))
            store_row(k, rows[-1] + start * c.epilogue.itemsize, y, nbytes, c.spaces[-1])

        for_constants(k, c.nest.n, c.epilogue, constants, body)


def for_constants(k: Kernel, n: int, epilogue: Epilogue, constants: Ptr, body: Callable[[Index | int, int, Ptr], None]) -> None:
    """body(start, nbytes, constants of these elements) over a row of n, a register at a time."""
    size, step = k.target.vector_bytes, epilogue.block_bytes(k.target, 4)
    if epilogue.uniform:
        for_row(k, n, lambda start, nbytes: body(start, nbytes, constants))
    else:
        for_blocks(k, n, lambda block, nbytes: body(block * size, nbytes, constants + block * step))


def _weighted(k: Kernel, c: ElementwiseConfig, xs: Sequence[Val], numbers: Ptr, acc: Val) -> Val:
    ms = [k.broadcast(numbers + 2 * i, 16) for i in range(len(xs))]
    for i in range(0, len(xs) - 1, 2):
        acc = weighted_pair(xs[i].sext(16), ms[i], xs[i + 1].sext(16), ms[i + 1]) + acc
    if len(xs) % 2:
        acc = acc + xs[-1].sext(32) * ms[-1].sext(32)[:1]
    return acc


def _weighted_wide(k: Kernel, c: ElementwiseConfig, xs: Sequence[Val], numbers: Ptr, acc: Val) -> Val:
    for i, x in enumerate(xs):
        acc = acc + x.sext(32) * k.broadcast(numbers + 4 * i, 32)
    return acc


def _multiplied(k: Kernel, c: ElementwiseConfig, xs: Sequence[Val], numbers: Ptr, acc: Val) -> Val:
    a, b = (x.sext(16) + k.broadcast(numbers + 2 * i, 16) for i, x in enumerate(xs))
    return a.sext(32) * b.sext(32) + acc


# --- without accumulators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointwise:
    """The last operand of `nest` and `spaces` is the result; `kind` is max, min, clamp, add or lookup, on elements of `bits`."""

    nest: Nest
    spaces: tuple[Space, ...]
    kind: str
    lo: int = -128
    hi: int = 127
    bits: int = 8


def plan_pointwise(run: Run, target: Target) -> Iterable[Launch]:
    """`IntMax`, `IntMin`, `IntAdd`, `Clamp`, and `Lookup` in one table."""
    op, y = run.step.producer.op, result_of(run)
    xs = _activations(run)
    kind = {IntMax: "max", IntMin: "min", IntAdd: "add", Clamp: "clamp"}.get(type(op), "lookup")
    bounds = (op.lo, op.hi) if isinstance(op, Clamp) else (-128, 127)
    config = Pointwise(_loops(xs, y), tuple(x.space for x in (*xs, y)), kind, *bounds, y.bits)
    table: Argument = constant_data(data_of(run.step.producer.inputs[1])) if kind == "lookup" else Nothing()
    names = tuple(f"x{n}" for n in range(len(xs)))
    yield Launch(emit_pointwise, config, (*names, "y", "table"), (*(x.argument for x in xs), y.argument, table), run.step.result.name)


def _activations(run: Run) -> list[Operand]:
    """The operands without the table."""
    every = operands(run)
    return every if isinstance(run.step.producer.op, (IntMax, IntMin, IntAdd)) else every[:1]


def emit_pointwise(k: Kernel, c: Pointwise) -> None:
    """The body of a function of (operands, "y", "table")."""
    *pointers, table = k.parameters
    with c.nest.rows(k, pointers) as rows:

        def body(start: Index | int, nbytes: int) -> None:
            moving = [int(s > 0) for s in c.nest.inner]
            xs = [load_lanes(k, p + start * s, nbytes, space, s, c.bits) for p, s, space in zip(rows[:-1], moving, c.spaces)]
            store_lanes(k, rows[-1] + start, _pointwise(c, xs, table), nbytes, c.spaces[-1])

        for_row(k, c.nest.n * (c.bits // 8), body)


def _pointwise(c: Pointwise, xs: Sequence[Val], table: Ptr) -> Val:
    match c.kind:
        case "max":
            return xs[0].maximum(xs[1])
        case "min":
            return xs[0].minimum(xs[1])
        case "clamp":
            return xs[0].clamp(c.lo, c.hi)
        case "add":
            return xs[0].add_sat(xs[1])
    return emit_lookup(xs[0], table)


@dataclass(frozen=True)
class Narrow:
    """16 bits to 8: spaces and strides of operand and result."""

    nest: Nest
    spaces: tuple[Space, Space]
    offset: int
    bands: int
    """Rows of an image without gaps, each at least a register long; 1 for other shapes."""


def plan_narrow(run: Run, target: Target) -> Iterable[Launch]:
    """`IntNarrow`."""
    (x,), y = operands(run), result_of(run)
    loops = _loops([x], y)
    bands = _bands(y.shape, loops, target)
    config = Narrow(loops, (x.space, y.space), output_offset(zero_point(run.step.producer)), bands)
    touched = reach([Loop(bands, loops.n // bands, loops.n)], [(x.argument, 2, 2)], (y.argument, 1, 1)) if bands > 1 else None
    yield Launch(emit_narrow, config, ("x", "y"), (x.argument, y.argument), run.step.result.name, touched)


def _bands(shape: Sequence[int], loops: Nest, target: Target) -> int:
    dense = len(shape) == 4 and shape[0] == 1 and loops.n == count(shape)
    return shape[1] if dense and loops.n // shape[1] >= target.vector_bytes else 1


def emit_narrow(k: Kernel, c: Narrow) -> None:
    """The body of a function of ("x", "y")."""
    with c.nest.rows(k, k.parameters) as (x, y):

        def body(start: Index | int, nbytes: int) -> None:
            r = load_row(k, x + start * c.nest.inner[0], nbytes, c.spaces[0], c.nest.inner[0], 16)
            store_row(k, y + start, narrow_biased(r, k.splat(c.offset, 16)), nbytes, c.spaces[1])

        for_row(k, c.nest.n, body, c.bands)


# --- one table per channel ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChannelLookup:
    """y[.., c] = table[c][x[.., c] + 128], element by element; strides of x and y along `shape`."""

    shape: tuple[int, ...]
    x: tuple[int, ...]
    y: tuple[int, ...]
    xor: int
    """What turns a stored byte of x into x + 128."""
    flip: int
    """What turns an int8 number into a stored byte of y."""


def plan_lookup(run: Run, target: Target) -> Iterable[Launch]:
    """`Lookup` in one table, or in one per channel of the last axis."""
    table = data_of(run.step.producer.inputs[1])
    if table.ndim == 1:
        yield from plan_pointwise(run, target)
        return
    x, y = operands(run)[0], result_of(run)
    offset = target.storage_offset
    xor = 0 if x.space is Space.arena and offset else 0x80
    flip = 0x80 if y.space is Space.arena and offset else 0
    config = ChannelLookup(y.shape, x.layout.strides, y.layout.strides, xor, flip)
    yield Launch(emit_channel_lookup, config, ("x", "y", "table"), (x.argument, y.argument, constant_data(table)), run.step.result.name)


def emit_channel_lookup(k: Kernel, c: ChannelLookup) -> None:
    """The body of a function of ("x", "y", "table")."""
    rank = len(c.shape)
    tables = (*(0,) * (rank - 1), 256)
    octet, word = ir.IntType(8), ir.IntType(64)
    with walk(k, c.shape, (c.x, c.y, tables), k.parameters) as ((x, y, table), _):
        stored = k.b.load(x.ir, align=1, typ=octet)
        index = Index(k, k.b.zext(k.b.xor(stored, ir.Constant(octet, c.xor)), word))
        found = k.b.load((table + index).ir, align=1, typ=octet)
        k.b.store(k.b.xor(found, ir.Constant(octet, c.flip)), y.ir, align=1)
