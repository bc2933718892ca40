"""Loops and memory access shared by the kernels that walk strided arrays row by row.

A `Nest` is a loop nest over the elements of several operands at once: outer axes with a stride per operand, and an
innermost row of `n` elements on which each operand either walks consecutive bytes or stands still (a broadcast). Axes that
every operand walks without a gap are merged, so that dense arrays become one long row and equal loops equal code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val, join
from qcompiler.backends.llvm.epilogue import zero_point
from qcompiler.backends.llvm.launch import Address, Argument, Data
from qcompiler.backends.llvm.words import from_memory, pieces, store_span, to_memory
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import Requantize
from qcompiler.ir.ops import const_data
from qcompiler.passes.layouts import CONSTANT, Layout, Space, dense, itemsize
from qcompiler.passes.partition import Step
from qcompiler.passes.plan_memory import Run

Strides = tuple[int, ...]


# --- operands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes: where it lies, its zero point, the argument that passes it, and its elements' width."""

    shape: tuple[int, ...]
    layout: Layout
    zero_point: int
    argument: Argument
    bits: int = 8

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.bits // 8

    @property
    def space(self) -> Space:
        """Whose memory it is: decides the storage form, and whether reading past the end is allowed."""
        return self.layout.buffer.space

    def broadcast_strides(self, shape: Sequence[int]) -> Strides:
        """Its strides along the axes of a `shape` that it broadcasts to."""
        fill = len(shape) - len(self.shape)
        return (0,) * fill + tuple(0 if d == 1 else s for d, s in zip(self.shape, self.layout.strides))


def operand(v: Value, layout: Layout) -> Operand:
    """The operand `v` at `layout` of the program's memory."""
    return Operand(v.shape, layout, zero_point(v), Address.of(layout), 8 * itemsize(v.type))


def operands(run: Run) -> list[Operand]:
    """The inputs of a step's producer, constants among them."""
    placed = dict(zip(run.step.operands, run.operands))
    return [operand(v, placed[v]) if v in placed else constant_operand(v) for v in run.step.producer.inputs]


def constant_operand(v: Value) -> Operand:
    """A constant tensor, dense in read-only memory, with slack behind it."""
    return Operand(v.shape, dense(v.type, CONSTANT), zero_point(v), constant_data(data_of(v)), 8 * itemsize(v.type))


def constant_data(data: NDArray[np.generic]) -> Data:
    """`data` in read-only memory, with slack behind it."""
    return Data(np.ascontiguousarray(data).tobytes() + bytes(64))


def data_of(v: Value) -> NDArray[np.generic]:
    """The array of a constant; TypeError where `v` is none."""
    data = const_data(v)
    if data is None:
        raise TypeError(f"expected a constant, found {v!r}")
    return data


def result_of(run: Run) -> Operand:
    """What a run writes."""
    return operand(run.step.result, run.result)


def is_uniform(step: Step) -> bool:
    """Whether one multiplier serves all elements in every `Requantize` of the epilogue."""
    return all(i.type.size == 1 for v in step.epilogue if isinstance(v.op, Requantize) for i in v.inputs[1:])


# --- one row of values ---------------------------------------------------------------------------------------------------


def load_row(k: Kernel, p: Ptr, n: int, space: Space, stride: int = 1, bits: int = 8) -> Val:
    """Up to `vector_bytes` signed values from `p`; with stride 0, the one at `p` in all lanes. The callers' buffers are never read past
    n elements. Values of 16 bits come in two registers, in the order of 8-bit values after `sext(16)`."""
    if stride == 0:
        return _signed(k, k.broadcast(p, bits), space).repeat(bits // 8)
    if bits == 8:
        return _signed(k, _octets(k, p, n, space), space)
    found = [k.splat(0, 8)] * 2
    for at, register, _, here in pieces(k.target, 0, 2 * n):
        found[register] = _octets(k, p + at, here, space)
    return from_memory(k, k.reinterpret(join(found), 16), 4)


def load_lanes(k: Kernel, p: Ptr, nbytes: int, space: Space, stride: int = 1, bits: int = 8) -> Val:
    """Up to one register of signed values of `bits` from `p`, in memory order; with stride 0, the one at `p` in all lanes."""
    if stride == 0 or bits == 8:
        return load_row(k, p, nbytes, space, stride, bits)[:1]
    return k.reinterpret(_octets(k, p, nbytes, space), bits)


def store_lanes(k: Kernel, p: Ptr, value: Val, nbytes: int, space: Space) -> None:
    """The inverse of `load_lanes`."""
    k.store(p, _signed(k, value, space), nbytes)


def store_row(k: Kernel, p: Ptr, value: Val, n: int, space: Space) -> None:
    """n values to `p`: a register of 8-bit ones, or two of 16, in the order that an epilogue leaves them in."""
    ordered = to_memory(k, value, 4) if value.bits == 16 else _signed(k, value, space)
    store_span(k, p, ordered, 0, n * value.bits // 8)


def _octets(k: Kernel, p: Ptr, nbytes: int, space: Space) -> Val:
    """Up to a register as it lies in memory; the callers' buffers are never read past `nbytes`."""
    if nbytes == k.target.vector_bytes:
        return k.load(p, 8)
    return load_exactly(k, p, nbytes) if space in (Space.input, Space.output) else k.load_lanes(p, 8, nbytes)


def _signed(k: Kernel, value: Val, space: Space) -> Val:
    """Stored values as signed ones and back: those of 8 bits in the arena may be offset."""
    return k.unbias(value) if space is Space.arena and value.bits == 8 else value


def load_exactly(k: Kernel, p: Ptr, nbytes: int) -> Val:
    """`nbytes` bytes in one register, the rest unspecified, in pieces that are powers of two."""
    size, done = k.target.vector_bytes, 0
    whole = k.splat(0, 8).regs[0]
    while done < nbytes:
        width = 1 << ((nbytes - done).bit_length() - 1)
        piece = k.b.load((p + done).ir, align=1, typ=instrs.vector_type((width, 8)))
        spread = instrs.pick(k.b, piece, [i % width for i in range(size)])
        whole = instrs.shuffle(k.b, whole, spread, [size + i - done if done <= i < done + width else i for i in range(size)])
        done += width
    return Val(k, (whole,), 8)


def for_row(k: Kernel, n: int, body: Callable[[Index | int, int], None], bands: int = 1) -> None:
    """body(start, nbytes) over n elements, a register at a time; the last one is moved back inside: some are done twice. Of several `bands` of
    equal length threads share whole ones."""
    size = k.target.vector_bytes
    if bands > 1:
        with k.bands(bands, n // bands, size) as start:
            body(start, size)
        return
    with k.split(-(-n // size)) as i:
        start = i * size
        body(start.minimum(n - size) if isinstance(start, Index) and n % size else start, min(n, size))


def for_blocks(k: Kernel, n: int, body: Callable[[Index | int, int], None]) -> None:
    """body(block, nbytes) over the registers of n elements, the last one perhaps partly filled."""
    size = k.target.vector_bytes
    if n >= size:
        with k.split(n // size) as i:
            body(i, size)
    if n % size:
        with k.split(1):
            body(n // size, n % size)


# --- loop nests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nest:
    """Outer loops of `shape` with the strides of each operand in bytes, around rows of `n` elements: broadcast, or one after the other."""

    shape: tuple[int, ...]
    strides: tuple[Strides, ...]
    n: int
    inner: tuple[int, ...]

    @contextmanager
    def rows(self, k: Kernel, pointers: Sequence[Ptr]) -> Iterator[list[Ptr]]:
        """Within it, the pointers to the current row of each operand."""
        with walk(k, self.shape, self.strides, pointers) as (at, _):
            yield at


@contextmanager
def walk(k: Kernel, shape: Sequence[int], strides: Sequence[Strides], pointers: Sequence[Ptr]) -> Iterator[tuple[list[Ptr], list[Index | int]]]:
    """Loops over `shape`, split on the longest axis: within them, pointers moved along their strides, and the index on each axis."""
    at, index = list(pointers), list[Index | int]()
    with ExitStack() as loops:
        for axis, n in enumerate(shape):
            i = loops.enter_context(k.split(n, n > 1 and axis == longest(shape)))
            at = [p + i * s[axis] for p, s in zip(at, strides)]
            index.append(i)
        yield at, index


def longest(shape: Sequence[int]) -> int:
    """The first of the axes with the most elements."""
    return max(range(len(shape)), key=lambda a: shape[a])


def nest(shape: Sequence[int], strides: Sequence[Strides], whole_rows: bool = False, sizes: Sequence[int] | None = None) -> Nest:
    """The fewest loops over `shape`; with `whole_rows` the last axis stays a row of its own (its constants differ). `sizes` are the
    bytes of each operand's elements, where not all have one."""
    sizes = sizes or (1,) * len(strides)
    if whole_rows:
        axes, columns = merged(shape[:-1], [s[:-1] for s in strides])
        axes, columns = (*axes, shape[-1]), tuple((*c, s[-1]) for c, s in zip(columns, strides))
    else:
        axes, columns = merged(shape, strides)
    if not axes or any(c[-1] not in (0, size) for c, size in zip(columns, sizes)):
        axes, columns = (*axes, 1), tuple((*c, size) for c, size in zip(columns, sizes))
    return Nest(axes[:-1], tuple(c[:-1] for c in columns), axes[-1], tuple(c[-1] for c in columns))


def merged(shape: Sequence[int], strides: Sequence[Strides]) -> tuple[tuple[int, ...], tuple[Strides, ...]]:
    """`shape` without axes of one element, neighbours merged where all operands walk both without a gap."""
    axes = list[tuple[int, list[int]]]()
    for d, *steps in zip(shape, *strides, strict=True):
        if d == 1:
            continue
        if axes and all(before == d * s for before, s in zip(axes[-1][1], steps)):
            axes[-1] = (axes[-1][0] * d, steps)
        else:
            axes.append((d, steps))
    return tuple(d for d, _ in axes), tuple(tuple(steps[n] for _, steps in axes) for n in range(len(strides)))


def count(shape: Sequence[int]) -> int:
    """Number of elements."""
    return prod(shape)
