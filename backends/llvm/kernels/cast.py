"""`IntCast`: integers of any width, signed or not, saturated to int8; uint8 with zero point -128 is moved there by the sign bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import Index, Kernel
from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.types import DType
from qcompiler.passes.plan_memory import Run

from .reduce import stored_xor
from .rows import Strides, merged, operands, result_of, walk

LANES = 16


@dataclass(frozen=True)
class CastConfig:
    """Rows of `n` elements of `size` bytes, `step` bytes apart, to consecutive bytes; outer axes with the strides of x and y."""

    shape: tuple[int, ...]
    x: Strides
    y: Strides
    n: int
    step: int
    size: int
    saturates: bool
    """Whether some of the integers may be too great for int8."""
    signed: bool
    stored: int
    """What a byte of x is xor-ed with to be what it means."""
    xor: int
    """What turns an int8 number into a stored byte of y."""


def plan_cast(run: Run, target: Target) -> Iterable[Launch]:
    """`IntCast`."""
    x, y = operands(run)[0], result_of(run)
    kind = run.step.producer.inputs[0].type.dtype
    shape, (read, written) = merged(x.shape, [x.layout.strides, y.layout.strides])
    if not shape or written[-1] != 1:
        shape, read, written = (*shape, 1), (*read, kind.numpy.itemsize), (*written, 1)
    signed = kind is not DType.bool and kind.numpy.kind == "i"
    rows, size = (shape[:-1], read[:-1], written[:-1], shape[-1], read[-1]), kind.numpy.itemsize
    quant = run.step.producer.type.quant
    assert quant is not None
    offset = quant.zero_point[0] & 0xFF
    xor = stored_xor(y, target) ^ offset
    config = CastConfig(*rows, size, not offset, signed, stored_xor(x, target) if size == 1 else 0, xor)
    yield Launch(emit_cast, config, ("x", "y"), (x.argument, y.argument), run.step.result.name)


def emit_cast(k: Kernel, c: CastConfig) -> None:
    """The body of a function of ("x", "y"). Vectors where the elements of a row follow each other, the last one moved back inside."""
    lanes = LANES if c.n >= LANES and c.step == c.size else 1
    with walk(k, c.shape, (c.x, c.y), k.parameters) as ((x, y), _), k.split(-(-c.n // lanes)) as i:
        start = i * lanes
        first = start.minimum(c.n - lanes) if isinstance(start, Index) else start
        value = k.b.load((x + first * c.step).ir, align=1, typ=instrs.vector_type((lanes, 8 * c.size)))
        number = k.b.xor(value, instrs.splat(value.type, c.stored))
        octets = _saturated(k, number, c.signed) if c.saturates else number
        k.b.store(k.b.xor(octets, instrs.splat(octets.type, c.xor)), (y + first).ir, align=1)


def _saturated(k: Kernel, x: Any, signed: bool) -> Any:
    """To int8; of 8 bits only those without a sign can be too great."""
    if signed:
        return x if x.type.element.width == 8 else instrs.saturated(k.b, x, 8)
    most = instrs.splat(x.type, 127)
    least = k.b.select(k.b.icmp_unsigned("<", x, most), x, most)
    return least if x.type.element.width == 8 else k.b.trunc(least, instrs.vector_type((x.type.count, 8)))
