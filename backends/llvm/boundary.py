"""The float entry: quantize before and dequantize after the integer program, the only floating point there is.

q = clip(roundeven(x / scale) + zero_point, -128, 127)        x = scale * (q - zero_point)        in float32

16 bits are clipped to -32768 and 32767. Inputs whose channels have scales of their own have zero points that may lie between two integers, added
before rounding: they are walked channel by channel where channels are planes, else by as many numbers as hold whole pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.runtime.artifact import Tensor

from . import instrs
from .dsl import I32, PTR, Kernel, Ptr

F32 = ir.FloatType()
LANES = 16


@dataclass(frozen=True)
class Staged:
    """A tensor of the interface and where its integers are kept in the arena during a float run; None: used in place."""

    tensor: Tensor
    offset: int | None


def stage(tensors: Sequence[Tensor], start: int) -> tuple[tuple[Staged, ...], int]:
    """Places from `start` on for every tensor that is converted, and the end."""
    staged = list[Staged]()
    for t in tensors:
        converted = t.dtype != t.storage
        staged.append(Staged(t, start if converted else None))
        start += -(-t.nbytes(integer=True) // 64) * 64 + 64 if converted else 0
    return tuple(staged), start


def emit_quantize(k: Kernel, inputs: Sequence[Staged]) -> None:
    """Body of a divided function of ("inputs", "arena"): real numbers to their staged places."""
    given, arena = k.parameters
    for i, s in enumerate(inputs):
        if s.offset is not None:
            _quantize(k, s.tensor, _pointer(k, given, i), arena + s.offset)


def _quantize(k: Kernel, t: Tensor, source: Ptr, target: Ptr) -> None:
    """All numbers of an input: in one go, or plane after plane."""
    (before, after), count = t.offsets, len(t.scales)
    if t.axis is None or len(set(zip(t.scales, before))) == 1:
        return _each(k, t.size, source, F32, target, _integer(t), _quantizer(k, t, t.scales[:1], before[:1], after))
    outer, plane = prod(t.shape[: t.axis]), prod(t.shape[t.axis + 1 :])
    if plane == 1:
        return _each(k, t.size, source, F32, target, _integer(t), _quantizer(k, t, t.scales, before, after), LANES * count)
    for n in range(outer * count):
        at, c = n * plane, n % count
        convert = _quantizer(k, t, t.scales[c : c + 1], before[c : c + 1], after)
        _each(k, plane, source + 4 * at, F32, target + at * np.dtype(t.storage).itemsize, _integer(t), convert)


def emit_dequantize(k: Kernel, outputs: Sequence[Staged]) -> None:
    """Body of a divided function of ("outputs", "arena"): the inverse."""
    taken, arena = k.parameters
    for i, s in enumerate(outputs):
        if s.offset is not None:
            _each(k, s.tensor.size, arena + s.offset, _integer(s.tensor), _pointer(k, taken, i), F32, _dequantizer(k, s.tensor))


def staged_tables(k: Kernel, given: Ptr, taken: Ptr, arena: Ptr, inputs: Sequence[Staged], outputs: Sequence[Staged]) -> list[Ptr]:
    """The arrays of pointers that the integer entry is given, on the stack: the caller's pointers, or staged places instead of them."""
    tables = [_array(k, len(inputs)), _array(k, len(outputs))]
    for table, staged, source in zip(tables, (inputs, outputs), (given, taken)):
        _write(k, table, staged, [_pointer(k, source, i) for i in range(len(staged))], arena)
    return tables


def converted(staged: Sequence[Staged]) -> int:
    """How many numbers are quantized or dequantized."""
    return sum(s.tensor.size for s in staged if s.offset is not None)


def _pointer(k: Kernel, table: Ptr, index: int) -> Ptr:
    return Ptr(k, k.b.load((table + 8 * index).ir, typ=PTR))


def _array(k: Kernel, size: int) -> Ptr:
    """An array of pointers on the stack; in the entry block, so that its place is fixed."""
    return Ptr(k, k.b.alloca(PTR, size=max(1, size)))


def _write(k: Kernel, table: Ptr, staged: Sequence[Staged], pointers: Sequence[Ptr], arena: Ptr) -> None:
    """The caller's pointers, or staged places instead of them."""
    for i, (s, p) in enumerate(zip(staged, pointers)):
        k.b.store((p if s.offset is None else arena + s.offset).ir, (table + 8 * i).ir)


def _integer(t: Tensor) -> Any:
    """LLVM's type of the stored integers."""
    return ir.IntType(8 * np.dtype(t.storage).itemsize)


def _bytes(kind: Any) -> int:
    return 4 if kind is F32 else int(kind.width) // 8


def _each(k: Kernel, n: int, source: Ptr, read: Any, target: Ptr, written: Any, convert: Callable[[Any], Any], size: int = LANES) -> None:
    """convert() over n elements of type `read` to elements of `written`: vectors of `size`, the last moved back inside; one vector if few."""
    lanes = size if n >= size else 1 if size == LANES else n
    kind = ir.VectorType(read, lanes)
    with k.split(-(-n // lanes)) as i:
        start = i * lanes
        at = 0 if isinstance(start, int) else start.minimum(n - lanes)
        value = k.b.load((source + at * _bytes(read)).ir, align=1, typ=kind)
        k.b.store(convert(value), (target + at * _bytes(written)).ir, align=1)


def _quantizer(k: Kernel, t: Tensor, scales: Sequence[float], before: Sequence[float], after: int) -> Callable[[Any], Any]:
    """Of vectors whose elements have these scales and shifts in turn."""
    bounds, stored = np.iinfo(t.storage), _integer(t)

    def convert(x: Any) -> Any:
        kind = x.type
        steps = k.b.fdiv(x, _repeated(kind, scales))
        rounded = _roundeven(k, k.b.fadd(steps, _repeated(kind, before)) if any(before) else steps)
        q = k.b.fadd(rounded, _splat(kind, after))
        low, high = _splat(kind, float(bounds.min)), _splat(kind, float(bounds.max))
        q = k.b.select(k.b.fcmp_ordered(">", q, low), q, low)
        q = k.b.select(k.b.fcmp_ordered("<", q, high), q, high)
        return k.b.trunc(k.b.fptosi(q, ir.VectorType(I32, kind.count)), ir.VectorType(stored, kind.count))

    return convert


def _dequantizer(k: Kernel, t: Tensor) -> Callable[[Any], Any]:
    def convert(q: Any) -> Any:
        wide = k.b.sext(q, ir.VectorType(I32, q.type.count))
        centered = k.b.sub(wide, instrs.splat(wide.type, t.offsets[1]))
        kind = ir.VectorType(F32, q.type.count)
        return k.b.fmul(k.b.sitofp(centered, kind), _splat(kind, t.scales[0]))

    return convert


def _roundeven(k: Kernel, x: Any) -> Any:
    name = f"llvm.roundeven.v{x.type.count}f32"
    function = k.module.globals.get(name) or ir.Function(k.module, ir.FunctionType(x.type, [x.type]), name)
    return k.b.call(function, [x])


def _splat(kind: Any, value: float) -> Any:
    return _repeated(kind, (value,))


def _repeated(kind: Any, values: Sequence[float]) -> Any:
    """A vector of the values in turn."""
    return ir.Constant(kind, [float(np.float32(values[i % len(values)])) for i in range(kind.count)])
