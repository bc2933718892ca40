"""Softmax and its logarithm as `numerics.softmax` defines them, in scalar 64-bit integers: three passes over each row.

max; s = sum table[255 + x - max]; then p = min((512 e + s) / (2 s), 255) - 128, one division per element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr
from qcompiler.backends.llvm.launch import Data, Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntSoftmax
from qcompiler.numerics.softmax import EXP_ONE, LOG_FRACTION_BITS
from qcompiler.passes.plan_memory import Run

from .reduce import chosen, load_number, split_axes, stored_xor
from .rows import Strides, data_of, merged, operands, result_of, walk

I64 = ir.IntType(64)
ONE_BITS = EXP_ONE.bit_length() - 1
LOG_TABLE, LN2, SCALE = 256, 512, 513
"""Positions in the constants of log-softmax."""


@dataclass(frozen=True)
class SoftmaxConfig:
    """Other axes with the strides of x and y; the normalized axis has `n` elements, `x_step` and `y_step` bytes apart."""

    shape: tuple[int, ...]
    x: Strides
    y: Strides
    n: int
    x_step: int
    y_step: int
    x_xor: int
    y_xor: int
    log: bool
    zero_point: int


def plan_softmax(run: Run, target: Target) -> Iterable[Launch]:
    """`IntSoftmax`."""
    op, x, y = run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntSoftmax)
    kept, strides, _ = split_axes((op.axis,), True, x, y)
    shape, (read, written) = merged(kept, strides)
    steps = x.layout.strides[op.axis], y.layout.strides[op.axis]
    config = SoftmaxConfig(shape, read, written, x.shape[op.axis], *steps, stored_xor(x, target), stored_xor(y, target), op.log, y.zero_point)
    table = Data(data_of(run.step.producer.inputs[1]).astype(np.int32).tobytes())
    yield Launch(emit_softmax, config, ("x", "y", "table"), (x.argument, y.argument, table), run.step.result.name)


def emit_softmax(k: Kernel, c: SoftmaxConfig) -> None:
    """The body of a function of ("x", "y", "table")."""
    table = k.parameters[2]
    with walk(k, c.shape, (c.x, c.y), k.parameters[:2]) as ((x, y), _):
        greatest = _greatest(k, c, x)
        total = _total(k, c, x, table, greatest)
        finish = _logarithm(k, table, total, c.zero_point) if c.log else _probability(k, table, total)
        with k.loop(c.n) as (i, _):
            difference = _minus(k, load_number(k, x + i * c.x_step, c.x_xor), greatest)
            octet = k.b.trunc(finish(difference).ir, ir.IntType(8))
            k.b.store(k.b.xor(octet, ir.Constant(ir.IntType(8), c.y_xor)), (y + i * c.y_step).ir, align=1)


def _greatest(k: Kernel, c: SoftmaxConfig, x: Ptr) -> Index:
    with k.loop(c.n, [Index(k, k.i64(-128))]) as (i, carried):
        value = load_number(k, x + i * c.x_step, c.x_xor)
        carried[0] = chosen(k, k.b.icmp_signed(">", value.ir, carried[0].ir), value, carried[0])
    return carried[0]


def _total(k: Kernel, c: SoftmaxConfig, x: Ptr, table: Ptr, greatest: Index) -> Index:
    """s, the sum of the exponentials."""
    with k.loop(c.n, [Index(k, k.i64(0))]) as (i, carried):
        difference = _minus(k, load_number(k, x + i * c.x_step, c.x_xor), greatest)
        carried[0] = carried[0] + _entry(k, table, difference + 255)
    return carried[0]


def _probability(k: Kernel, table: Ptr, total: Index) -> Callable[[Index], Index]:
    """min((512 e + s) / (2 s), 255) - 128 of a difference."""

    def finish(difference: Index) -> Index:
        e = _entry(k, table, difference + 255)
        quotient = k.b.udiv(k.b.add(k.b.shl(e.ir, k.i64(9)), total.ir), k.b.shl(total.ir, k.i64(1)))
        return Index(k, quotient).minimum(255) - 128

    return finish


def _logarithm(k: Kernel, table: Ptr, total: Index, zero_point: int) -> Callable[[Index], Index]:
    """clip((difference S - e ln 2 - log_table[f] + half) >> 12 + z), where s = 2^(15 + e) (1 + f / 256)."""
    zeros = k.b.ctlz(total.ir, ir.Constant(ir.IntType(1), 1))
    e = k.b.sub(k.i64(63 - ONE_BITS), zeros)
    f = k.b.and_(k.b.lshr(total.ir, k.b.add(e, k.i64(ONE_BITS - 8))), k.i64(255))
    log = k.b.add(k.b.mul(e, _entry(k, table, _constant(k, LN2)).ir), _entry(k, table, Index(k, f) + LOG_TABLE).ir)
    scale = _entry(k, table, _constant(k, SCALE))
    offset = k.b.sub(k.i64(1 << (LOG_FRACTION_BITS - 1)), log)

    def finish(difference: Index) -> Index:
        y = k.b.add(k.b.mul(difference.ir, scale.ir), offset)
        whole = Index(k, k.b.ashr(y, k.i64(LOG_FRACTION_BITS))) + zero_point
        low = chosen(k, k.b.icmp_signed(">", whole.ir, k.i64(-128)), whole, _constant(k, -128))
        return low.minimum(127)

    return finish


def _constant(k: Kernel, value: int) -> Index:
    """A constant as an `Index`."""
    return Index(k, k.i64(value))


def _minus(k: Kernel, a: Index, b: Index) -> Index:
    return Index(k, k.b.sub(a.ir, b.ir))


def _entry(k: Kernel, table: Ptr, position: Index) -> Index:
    """An int32 number of the table as a 64-bit integer."""
    at = table + Index(k, k.b.shl(position.ir, k.i64(2)))
    return Index(k, k.b.sext(k.b.load(at.ir, align=4, typ=ir.IntType(32)), I64))
