"""`IntCast`: integers of any width, signed or not, saturated to int8; uint8 with zero point -128 is moved there by the sign bit.

`Integers`: the other way, of one width, nothing saturated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Index, Kernel
from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.ops import Integers
from qcompiler.ir.types import DType
from qcompiler.passes.plan_memory import Run

from .reduce import stored_xor
from .rows import Operand, Strides, merged, operands, result_of, walk

LANES = 16


@dataclass(frozen=True)
class CastConfig:
    """Rows of `n` elements of `size` bytes, `step` bytes apart, to consecutive elements; outer axes with the strides of x and y."""

    shape: tuple[int, ...]
    x: Strides
    y: Strides
    n: int
    step: int
    size: int
    saturates: bool
    """To int8, for which some of the integers may be too great."""
    signed: bool
    stored: int
    """What a byte of x is xor-ed with to be what it means."""
    xor: int
    """What turns the number into a stored element of y."""


def plan_cast(run: Run, target: Target) -> Iterable[Launch]:
    """`IntCast`."""
    x, y = operands(run)[0], result_of(run)
    kind, quant = run.step.producer.inputs[0].type.dtype, run.step.producer.type.quant
    signed = kind is not DType.bool and kind.numpy.kind == "i"
    assert quant is not None
    offset = quant.zero_point[0] & 0xFF
    stored = stored_xor(x, target) if x.bits == 8 else 0
    config = CastConfig(*_rows(x, y), not offset, signed, stored, stored_xor(y, target) ^ offset)
    yield Launch(emit_cast, config, ("x", "y"), (x.argument, y.argument), run.step.result.name)


def plan_integers(run: Run, target: Target) -> Iterable[Launch]:
    """`Integers`."""
    x, y, v = operands(run)[0], result_of(run), run.step.producer
    assert isinstance(v.op, Integers)
    xor = stored_xor(y, target) ^ v.op.sign_bit(v.inputs[0].type)
    config = CastConfig(*_rows(x, y), False, False, stored_xor(x, target), xor)
    yield Launch(emit_cast, config, ("x", "y"), (x.argument, y.argument), run.step.result.name)


def _rows(x: Operand, y: Operand) -> tuple[tuple[int, ...], Strides, Strides, int, int, int]:
    """The outer axes with the strides of both, and the rows: elements, bytes between them, bytes of one."""
    shape, (read, written) = merged(x.shape, [x.layout.strides, y.layout.strides])
    if not shape or written[-1] != y.itemsize:
        shape, read, written = (*shape, 1), (*read, x.itemsize), (*written, y.itemsize)
    return shape[:-1], read[:-1], written[:-1], shape[-1], read[-1], x.itemsize


def emit_cast(k: Kernel, c: CastConfig) -> None:
    """The body of a function of ("x", "y"). Vectors where the elements of a row follow each other, the last one moved back inside."""
    lanes = LANES if c.n >= LANES and c.step == c.size else 1
    with walk(k, c.shape, (c.x, c.y), k.parameters) as ((x, y), _), k.split(-(-c.n // lanes)) as i:
        start = i * lanes
        first = start.minimum(c.n - lanes) if isinstance(start, Index) else start
        value = k.b.load((x + first * c.step).ir, align=1, typ=instrs.vector_type((lanes, 8 * c.size)))
        number = k.b.xor(value, instrs.splat(value.type, c.stored))
        octets = _saturated(k, number, c.signed) if c.saturates else number
        at = first * (octets.type.element.width // 8)
        k.b.store(k.b.xor(octets, instrs.splat(octets.type, c.xor)), (y + at).ir, align=1)


def _saturated(k: Kernel, x: Any, signed: bool) -> Any:
    """To int8; of 8 bits only those without a sign can be too great."""
    if signed:
        return x if x.type.element.width == 8 else instrs.saturated(k.b, x, 8)
    most = instrs.splat(x.type, 127)
    least = k.b.select(k.b.icmp_unsigned("<", x, most), x, most)
    return least if x.type.element.width == 8 else k.b.trunc(least, instrs.vector_type((x.type.count, 8)))
