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
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import zero_point
from qcompiler.backends.llvm.launch import Address, Argument, Data
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import Requantize
from qcompiler.ir.ops import const_data
from qcompiler.passes.layouts import CONSTANT, Layout, Space, dense
from qcompiler.passes.partition import Step
from qcompiler.passes.plan_memory import Run

Strides = tuple[int, ...]


# --- operands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """An int8 tensor that a kernel reads or writes: where it lies, its zero point, and the argument that passes it."""

    shape: tuple[int, ...]
    layout: Layout
    zero_point: int
    argument: Argument

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
    return Operand(v.shape, layout, zero_point(v), Address.of(layout))


def operands(run: Run) -> list[Operand]:
    """The inputs of a step's producer, constants among them."""
    placed = dict(zip(run.step.operands, run.operands))
    return [operand(v, placed[v]) if v in placed else constant_operand(v) for v in run.step.producer.inputs]


def constant_operand(v: Value) -> Operand:
    """A constant int8 tensor, dense in read-only memory, with slack behind it."""
    return Operand(v.shape, dense(v.type, CONSTANT), zero_point(v), constant_data(data_of(v)))


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


# --- one row of 8-bit values -------------------------------------------------------------------------------------------


def load_row(k: Kernel, p: Ptr, nbytes: int, space: Space, stride: int = 1) -> Val:
    """Up to a register of signed 8-bit values from `p`; with stride 0, the one at `p` in all lanes. The callers' buffers are
    never read past `nbytes`."""
    if stride == 0:
        value = k.broadcast(p, 8)
    elif nbytes == k.target.vector_bytes:
        value = k.load(p, 8)
    elif space in (Space.input, Space.output):
        value = load_exactly(k, p, nbytes)
    else:
        value = k.load_lanes(p, 8, nbytes)
    return k.unbias(value) if space is Space.arena else value


def store_row(k: Kernel, p: Ptr, value: Val, nbytes: int, space: Space) -> None:
    """`nbytes` signed 8-bit values to `p`."""
    k.store(p, k.unbias(value) if space is Space.arena else value, nbytes)


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


def for_row(k: Kernel, n: int, body: Callable[[Index | int, int], None]) -> None:
    """body(start, nbytes) over n elements, a register at a time; the last one is moved back inside: some are done twice."""
    size = k.target.vector_bytes
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
    """Outer loops of `shape` with the strides of each operand, around rows of `n` elements walked by stride 0 or 1."""

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


def nest(shape: Sequence[int], strides: Sequence[Strides], whole_rows: bool = False) -> Nest:
    """The fewest loops over `shape`; with `whole_rows` the last axis stays a row of its own (its constants differ)."""
    if whole_rows:
        axes, columns = merged(shape[:-1], [s[:-1] for s in strides])
        axes, columns = (*axes, shape[-1]), tuple((*c, s[-1]) for c, s in zip(columns, strides))
    else:
        axes, columns = merged(shape, strides)
    if not axes or any(c[-1] not in (0, 1) for c in columns):
        axes, columns = (*axes, 1), tuple((*c, 1) for c in columns)
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
