"""Reductions over axes: sums with an epilogue, maximum, minimum, and the index of the maximum.

    IntReduceSum   acc = sum (x - z) = sum x - n z

The kept axes are a `Nest`, vectorized along the last of them; the reduced ones are taps, as in pooling. Where the reduced
ones end in a row of consecutive bytes, registers run along it instead and are combined across their lanes at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from llvmlite import ir

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, Sources, describe
from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntReduceSum
from qcompiler.ir.ops import ArgMax, Reduce, Reduction
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .elementwise import epilogue_arguments, for_constants
from .pool import fold, sum_window
from .rows import Nest, Operand, Strides, count, for_row, is_uniform, load_lanes, merged, nest, operands, result_of, store_lanes, store_row, walk

Taps = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ReduceConfig:
    """Operands of `nest` and `spaces` are x and y; `taps` are (number, byte step) of the reduced axes. No epilogue: max or min."""

    nest: Nest
    taps: Taps
    spaces: tuple[Space, Space]
    kind: Reduction
    epilogue: Epilogue | None = None
    bits: int = 8
    """Width of the elements of x."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element of x."""
        return self.bits // 8

    @property
    def along_row(self) -> bool:
        """Whether rows have one result, and the reduced elements come in runs of consecutive bytes."""
        return self.nest.n == 1 and bool(self.taps) and self.taps[-1][1] == self.itemsize


def split_axes(axes: tuple[int, ...], keepdims: bool, x: Operand, y: Operand) -> tuple[tuple[int, ...], tuple[Strides, Strides], Taps]:
    """(kept shape, strides of x and y along it, taps)."""
    rank = len(x.shape)
    kept = [a for a in range(rank) if a not in axes]
    written = tuple(y.layout.strides[a] for a in kept) if keepdims else y.layout.strides
    read = tuple(x.layout.strides[a] for a in kept)
    numbers, (steps,) = merged([x.shape[a] for a in axes], [tuple(x.layout.strides[a] for a in axes)])
    return tuple(x.shape[a] for a in kept), (read, written), tuple(zip(numbers, steps))


def plan_reduce_sum(run: Run, target: Target) -> Iterable[Launch]:
    """`IntReduceSum` and its epilogue."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntReduceSum)
    shape, strides, taps = split_axes(op.axes, op.keepdims, x, y)
    terms = count(x.shape) // max(count(y.shape), 1)
    epilogue, data = describe(run.step.epilogue, -x.zero_point * terms, run.step.producer)
    loops = nest(shape, strides, not is_uniform(run.step) and len(shape) > 0, (x.itemsize, y.itemsize))
    config = ReduceConfig(loops, taps, (x.space, y.space), Reduction.sum, epilogue, x.bits)
    arguments = (x.argument, y.argument, *epilogue_arguments(data, epilogue, target, loops.n))
    yield Launch(emit_reduce_sum, config, ("x", "y", "constants", "tables"), arguments, run.step.result.name)


def emit_reduce_sum(k: Kernel, c: ReduceConfig) -> None:
    """The body of a function of ("x", "y", "constants", "tables")."""
    x, y, constants, tables = k.parameters
    epilogue = c.epilogue
    assert epilogue is not None
    with c.nest.rows(k, [x, y]) as (source, out):

        def body(start: Index | int, nbytes: int, block: Ptr) -> None:
            at = source + start * c.itemsize
            window = sum_row(k, c, source) if c.along_row else sum_window(k, c.taps, at, nbytes, c.spaces[0], c.bits)
            acc = epilogue.initial(k, block, 4) + window
            y = epilogue.apply(k, acc, block, 4, Sources(tables=tables))
            store_row(k, out + start * epilogue.itemsize, y, nbytes, c.spaces[1])

        for_constants(k, c.nest.n, epilogue, constants, body)


def plan_reduce(run: Run, target: Target) -> Iterable[Launch]:
    """`Reduce` to the maximum or minimum."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, Reduce)
    shape, strides, taps = split_axes(op.axes, op.keepdims, x, y)
    loops = nest(shape, strides, sizes=(x.itemsize, y.itemsize))
    config = ReduceConfig(loops, taps, (x.space, y.space), op.kind, bits=x.bits)
    yield Launch(emit_reduce, config, ("x", "y"), (x.argument, y.argument), run.step.result.name)


def emit_reduce(k: Kernel, c: ReduceConfig) -> None:
    """The body of a function of ("x", "y")."""
    combine = Val.maximum if c.kind is Reduction.max else Val.minimum
    end = 1 << (c.bits - 1)
    first = k.splat(-end if c.kind is Reduction.max else end - 1, c.bits)

    def column(x: Ptr, nbytes: int) -> Val:
        return fold(k, c.taps, first, x, lambda acc, p: combine(acc, load_lanes(k, p, nbytes, c.spaces[0], bits=c.bits)))

    with c.nest.rows(k, k.parameters) as (source, out):

        def body(start: Index | int, nbytes: int) -> None:
            best = extreme_of_row(k, c, source, first, combine) if c.along_row else column(source + start, nbytes)
            store_lanes(k, out + start, best, nbytes, c.spaces[1])

        for_row(k, c.nest.n * c.itemsize, body)


# --- rows reduced across the lanes of a register --------------------------------------------------------------------------


def sum_row(k: Kernel, c: ReduceConfig, x: Ptr) -> Val:
    """The sum of all taps in every 32-bit lane."""
    zero = k.splat(0, c.bits)
    total = fold_row(k, c, x, k.splat(0, 32).repeat(4 // c.itemsize), zero, lambda acc, row: row.sext(32) + acc)
    lanes = reduce(Val.__add__, (total[i : i + 1] for i in range(len(total))))
    return across(k, "add", lanes).repeat(4)


def extreme_of_row(k: Kernel, c: ReduceConfig, x: Ptr, first: Val, combine: Callable[[Val, Val], Val]) -> Val:
    """The maximum or minimum of all taps in every lane."""
    return across(k, "smax" if c.kind is Reduction.max else "smin", fold_row(k, c, x, first, first, combine))


def fold_row(k: Kernel, c: ReduceConfig, x: Ptr, state: Val, neutral: Val, step: Callable[[Val, Val], Val]) -> Val:
    """step(state, register) over the elements of all taps; lanes behind the end of a row are `neutral`."""
    (*outer, (elements, _)), size = c.taps, k.target.vector_bytes
    n = elements * c.itemsize
    if n >= size:
        state = fold(k, (*outer, (n // size, size)), state, x, lambda s, p: step(s, load_lanes(k, p, size, c.spaces[0], bits=c.bits)))
    if n % size:
        tail = partial(_row_end, k, n % size, c.spaces[0], neutral)
        state = fold(k, outer, state, x + (n - n % size), lambda s, p: step(s, tail(p)))
    return state


def _row_end(k: Kernel, nbytes: int, space: Space, neutral: Val, p: Ptr) -> Val:
    row = load_lanes(k, p, nbytes, space, bits=neutral.bits)
    lanes, inside = k.target.vector_bits // row.bits, 8 * nbytes // row.bits
    return row.map(lambda a, b: instrs.shuffle(k.b, a, b, [i if i < inside else lanes + i for i in range(lanes)]), neutral)


def across(k: Kernel, operation: str, x: Val) -> Val:
    """All lanes of a register combined by an operation of LLVM's vector.reduce, in every lane."""
    (reg,) = x.regs
    kind = reg.type
    name = f"llvm.vector.reduce.{operation}.v{kind.count}i{kind.element.width}"
    function = k.module.globals.get(name) or ir.Function(k.module, ir.FunctionType(kind.element, [kind]), name)
    one = k.b.insert_element(ir.Constant(kind, ir.Undefined), k.b.call(function, [reg]), ir.Constant(ir.IntType(32), 0))
    return Val(k, (instrs.pick(k.b, one, [0] * kind.count),), x.bits)


# --- index of the maximum ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArgMaxConfig:
    """Kept axes with the strides of x and y, and the axis that is searched: `n` elements `step` bytes apart."""

    shape: tuple[int, ...]
    x: Strides
    y: Strides
    n: int
    step: int
    last: bool
    k: int
    advance: int
    """Bytes from one result to the next."""
    xor: int
    bits: int


def plan_argmax(run: Run, target: Target) -> Iterable[Launch]:
    """`ArgMax`, to int64, of 8 or 16 bits."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, ArgMax)
    shape, strides, _ = split_axes((op.axis,), op.keepdims, x, y)
    axes, (read, written) = merged(shape, strides)
    advance = y.layout.strides[op.axis] if op.k > 1 else 0
    config = ArgMaxConfig(axes, read, written, x.shape[op.axis], x.layout.strides[op.axis], op.last, op.k, advance, stored_xor(x, target), x.bits)
    yield Launch(emit_argmax, config, ("x", "y"), (x.argument, y.argument), run.step.result.name)


def stored_xor(x: Operand, target: Target) -> int:
    """What a stored byte is xor-ed with to be an int8 number."""
    return 0x80 if x.space is Space.arena and target.storage_offset and x.bits == 8 else 0


def emit_argmax(k: Kernel, c: ArgMaxConfig) -> None:
    """The body of a function of ("x", "y"): one search for each index, of what comes after the element found before."""
    with walk(k, c.shape, (c.x, c.y), k.parameters) as ((x, y), _):
        before = Index(k, k.i64(BEYOND)), Index(k, k.i64(-1))
        with k.loop(c.k, list(before)) as (rank, found):
            found[0], found[1] = _greatest(k, c, x, (found[0], found[1]))
            k.b.store(found[1].ir, (y + rank * c.advance).ir, align=1)


def _greatest(k: Kernel, c: ArgMaxConfig, x: Ptr, before: tuple[Index, Index]) -> tuple[Index, Index]:
    """The greatest element and its index, of those that order by (value descending, index ascending) places behind `before`."""
    with k.loop(c.n, [Index(k, k.i64(-BEYOND)), Index(k, k.i64(0))]) as (i, carried):
        value, index = load_number(k, x + i * c.step, c.xor, c.bits), Index(k, k.i64(i))
        better = k.b.icmp_signed(">=" if c.last else ">", value.ir, carried[0].ir)
        if c.k > 1:
            equal, later = k.b.icmp_signed("==", value.ir, before[0].ir), k.b.icmp_signed(">", index.ir, before[1].ir)
            behind = k.b.or_(k.b.icmp_signed("<", value.ir, before[0].ir), k.b.and_(equal, later))
            better = k.b.and_(better, behind)
        carried[0], carried[1] = chosen(k, better, value, carried[0]), chosen(k, better, index, carried[1])
    return carried[0], carried[1]


BEYOND = 1 << 16  # further from zero than what 16 bits hold


def load_number(k: Kernel, p: Ptr, xor: int, bits: int = 8) -> Index:
    """One number of 8 or 16 bits as a 64-bit integer."""
    kind = ir.IntType(bits)
    stored = k.b.load(p.ir, align=1, typ=kind)
    return Index(k, k.b.sext(k.b.xor(stored, ir.Constant(kind, xor)), ir.IntType(64)))


def chosen(k: Kernel, condition: Any, a: Index, b: Index) -> Index:
    """a where the condition holds, else b."""
    return Index(k, k.b.select(condition, a.ir, b.ir))
