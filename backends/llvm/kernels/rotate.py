"""Rotary embedding: acc[b,n,h,i] = (x_i - z) cos[n,i] + (x_p(i) - z) sin[n,i], then the epilogue.

Heads that are shorter than a register are done several at once, as one longer row with p(i) and the angles repeated. The blocks of a row
(the last one moved back inside) are unrolled, since each has its own places of p(i): they are picked from as few registers of x as hold them.
Elements of 16 bits are picked into two registers, in the order in which bytes widen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Kernel, Ptr, Val, join
from qcompiler.backends.llvm.epilogue import Epilogue, EpilogueData, Sources, Writer, describe
from qcompiler.backends.llvm.launch import Argument, Data, Launch, Nothing
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntRotate
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .normalize import block_starts, fitted_bits
from .rows import Operand, Strides, data_of, is_uniform, load_lanes, operands, result_of, store_row, walk

ANGLE_REGISTERS = 4
"""Of a block: pairs of cosine and sine where pairs are multiplied (pmaddwd), else cosines, then sines."""


@dataclass(frozen=True)
class RotateConfig:
    """Axes (batch, position, group of heads) with the strides of x, y and the angles; `partners` are p within a row."""

    shape: tuple[int, int, int]
    x: Strides
    y: Strides
    angles: Strides
    partners: tuple[int, ...]
    zero_point: int
    spaces: tuple[Space, Space]
    sizes: tuple[int, int]
    """Bytes of an element of x and of y."""
    epilogue: Epilogue


def plan_rotate(run: Run, target: Target) -> Iterable[Launch]:
    """`IntRotate` and its epilogue."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntRotate)
    epilogue, data = describe(run.step.epilogue, 0, run.step.producer)
    heads = heads_per_row(x, y, target) if is_uniform(run.step) else 1
    batch, positions, count, d = x.shape
    partners = tuple(h * d + p for h in range(heads) for p in op.partners)
    fitted = target.narrowed(fitted_bits(target, len(partners)))
    angles = pack_angles(fitted, *(np.tile(data_of(v), (1, heads)).astype(np.int64) for v in run.step.producer.inputs[1:]))
    read, written = ((*o.layout.strides[:2], o.layout.strides[2] * heads) for o in (x, y))
    steps = (0, len(angles) // max(positions, 1), 0)
    shape, spaces = (batch, positions, count // heads), (x.space, y.space)
    config = RotateConfig(shape, read, written, steps, partners, x.zero_point, spaces, (x.itemsize, y.itemsize), epilogue)
    constants = Data(pack_epilogue(fitted, epilogue, data, d))
    tables: Argument = Data(data.tables) if data.tables else Nothing()
    arguments = (x.argument, y.argument, Data(angles), constants, tables)
    yield Launch(emit_rotate, config, ("x", "y", "angles", "constants", "tables"), arguments, run.step.result.name)


def heads_per_row(x: Operand, y: Operand, target: Target) -> int:
    """How many heads, side by side in x and y, fill a register best."""
    _, _, count, d = x.shape
    if any(o.layout.strides[2] != d * o.itemsize for o in (x, y)):
        return 1
    return max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * d <= target.vector_bytes))


def pack_angles(target: Target, cos: NDArray[np.int64], sin: NDArray[np.int64]) -> bytes:
    """Cosines and sines [N, row] of each position's blocks, as their lanes are ordered."""
    starts, size = block_starts(cos.shape[1], target.vector_bytes), target.vector_bytes
    writers = [Writer(target, 4, slice(start, start + size)) for start in starts]
    if target.arch == "aarch64":
        return b"".join(w.numbers(c, 16) + w.numbers(s, 16) for c, s in zip(cos, sin) for w in writers)
    return b"".join(w.numbers(pairs, 32) for pairs in cos & 0xFFFF | sin << 16 for w in writers)


def pack_epilogue(target: Target, epilogue: Epilogue, data: EpilogueData, d: int) -> bytes:
    """The constants of one block where they are uniform, else of each block of a row."""
    if epilogue.uniform:
        return data.pack(target, 4, 1)
    size = target.vector_bytes
    return b"".join(data.pack(target, 4, min(size, d), start) for start in block_starts(d, size))


def emit_rotate(k: Kernel, c: RotateConfig) -> None:
    """The body of a function of ("x", "y", "angles", "constants", "tables")."""
    x, y, angles, constants, tables = k.parameters
    n = len(c.partners)
    k = k.narrowed(fitted_bits(k.target, n))
    size = k.target.vector_bytes
    step = 0 if c.epilogue.uniform else c.epilogue.block_bytes(k.target, 4)
    with walk(k, c.shape, (c.x, c.y, c.angles), (x, y, angles)) as ((source, out, here), _):
        for block, start in enumerate(block_starts(n, size)):
            places, at = range(start, min(start + size, n)), constants + block * step
            own = _picked(k, c, source, list(places))
            partner = _picked(k, c, source, [c.partners[i] for i in places])
            acc = c.epilogue.initial(k, at, 4) + _products(k, c, own, partner, here + block * ANGLE_REGISTERS * size)
            store_row(k, out + start * c.sizes[1], c.epilogue.apply(k, acc, at, 4, Sources(tables=tables)), len(places), c.spaces[1])


def _picked(k: Kernel, c: RotateConfig, x: Ptr, places: Sequence[int]) -> Val:
    """The elements of a row at `places`, in two registers of 16 bits."""
    if c.sizes[0] == 1:
        return _gathered(k, c, x, places).sext(16)
    lanes = k.target.vector_bytes // 2
    spread = [*places, *[places[-1]] * (2 * lanes - len(places))]
    return join([_gathered(k, c, x, [spread[2 * (i - i % 8) + i % 8 + half] for i in range(lanes)]) for half in (0, 8)])


def _gathered(k: Kernel, c: RotateConfig, x: Ptr, places: Sequence[int]) -> Val:
    """The elements of a row at `places`, in one register of lanes of their own width."""
    itemsize, n = c.sizes[0], len(c.partners)
    lanes = k.target.vector_bytes // itemsize
    (whole,) = k.splat(0, 8 * itemsize).regs
    for first in windows(places, n, lanes):
        (window,) = load_lanes(k, x + first * itemsize, min(lanes, n) * itemsize, c.spaces[0], bits=8 * itemsize).regs
        held = [lanes + p - first if first <= p < first + lanes else lane for lane, p in enumerate(places)]
        whole = instrs.shuffle(k.b, whole, window, held + list(range(len(held), lanes)))
    return Val(k, (whole,), 8 * itemsize)


def windows(places: Sequence[int], n: int, size: int) -> list[int]:
    """Where to load registers of `size` within a row of n, so that every place is in one of them."""
    found = list[int]()
    for p in sorted(places):
        if not found or p >= found[-1] + size:
            found.append(max(min(p, n - size), 0))
    return found


def _products(k: Kernel, c: RotateConfig, own: Val, partner: Val, angles: Ptr) -> Val:
    """(x - z) cos + (x_p - z) sin in 32 bits."""
    a, b = (v + k.splat(-c.zero_point, 16) if c.zero_point else v for v in (own, partner))
    numbers = k.load(angles, 16, ANGLE_REGISTERS, k.target.vector_bytes)
    if k.target.arch == "aarch64":
        return a.mul_wide(numbers[:2]) + b.mul_wide(numbers[2:])
    pairs = (half.regs[0] for i in range(2) for half in k.zip(a[i : i + 1], b[i : i + 1]))
    return Val(k, tuple(instrs.MADD[k.target.vector_bytes * 8](k, p, w) for p, w in zip(pairs, numbers.regs)), 32)
