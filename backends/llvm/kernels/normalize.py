"""Layer and root-mean-square normalization as `numerics.normalize` defines them: two passes over each row.

    sums      sum x, sum x^2                               pairs of 16-bit lanes (pmaddwd, saddlp), 64 bits where x has 16
    row       mu, V = 2^2F sum x^2 - 2 mu 2^F sum x + D mu^2 + E, its exponent and rho, in scalar 64-bit integers
    elements  numerics.normalize_lanes of (x << F) - mu    a block of one 8-bit register at a time

A row's last block is moved back inside of it: its sums leave out what was counted, its stores write the same again. Vectors are no longer than rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import I64, Index, Kernel, Ptr, Val, join
from qcompiler.backends.llvm.epilogue import Ints, Writer
from qcompiler.backends.llvm.launch import Data, Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.backends.llvm.words import pieces
from qcompiler.ir.integer import IntNormalize
from qcompiler.ir.types import Quantization
from qcompiler.numerics.normalize import ROOT_FRACTION, ROOT_PARTS, ROOT_SHIFT, UNIT_BITS, fraction_bits, normalize_lanes, root_table
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .rows import Strides, data_of, load_lanes, load_row, merged, operands, result_of, store_row, walk

CONSTANT_REGISTERS = 2 + 4
"""Of a block: g in 16 bits, b in 32."""


@dataclass(frozen=True)
class NormalizeConfig:
    """Leading axes with the strides of x and y, rows of `n` elements; `bits` and `spaces` of x and y. Results are clamped to [lo, hi]."""

    shape: tuple[int, ...]
    x: Strides
    y: Strides
    n: int
    bits: tuple[int, int]
    spaces: tuple[Space, Space]
    centered: bool
    zero_point: int
    epsilon: int
    shift: int
    lo: int
    hi: int

    @property
    def fraction(self) -> int:
        """F."""
        return fraction_bits(self.bits[0])


def plan_normalize(run: Run, target: Target) -> Iterable[Launch]:
    """`IntNormalize`."""
    v, op, x, y = run.step.producer, run.step.producer.op, operands(run)[0], result_of(run)
    assert isinstance(op, IntNormalize)
    shape, (read, written) = merged(x.shape[:-1], [x.layout.strides[:-1], y.layout.strides[:-1]])
    quant = v.type.quant or Quantization.per_tensor(1.0)
    settings = (op.centered, x.zero_point, op.epsilon, op.shift, quant.qmin, quant.qmax)
    config = NormalizeConfig(shape, read, written, x.shape[-1], (x.bits, y.bits), (x.space, y.space), *settings)
    g, b = (data_of(i).astype(np.int64) for i in v.inputs[1:])
    numbers = Data(pack_constants(target, g, b)), Data(root_table().astype(np.int32).tobytes())
    yield Launch(emit_normalize, config, ("x", "y", "constants", "roots"), (x.argument, y.argument, *numbers), run.step.result.name)


def fitted_bits(target: Target, n: int) -> int:
    """The longest vectors of which a row of `n` bytes has one; 128 bits where it has none."""
    bits = target.vector_bits
    while bits > max(128, 8 * n):
        bits //= 2
    return bits


def block_starts(n: int, size: int) -> list[int]:
    """The first elements of the blocks of a row, the last one moved back inside."""
    return [*range(0, n - size + 1, size), *[max(n - size, 0)] * (n % size > 0)]


def pack_constants(target: Target, g: Ints, b: Ints) -> bytes:
    """g and b of each block, as its lanes are ordered."""
    fitted = target.narrowed(fitted_bits(target, len(g)))
    size, n = fitted.vector_bytes, len(g)
    g, b = np.append(g, 0), np.append(b, 0)  # of one number `Writer` would make one for all lanes
    writers = (Writer(fitted, 4, slice(start, start + size)) for start in block_starts(n, size))
    return b"".join(w.numbers(g, 16) + w.numbers(b, 32) for w in writers)


@dataclass(frozen=True)
class Row:
    """What the elements of a row have in common, in all lanes of a register: the operands of `normalize_lanes`, and the mean mu."""

    mean: Val
    left: Val
    half: Val
    right: Val
    rho: Val


def emit_normalize(k: Kernel, c: NormalizeConfig) -> None:
    """The body of a function of ("x", "y", "constants", "roots")."""
    x, y, constants, roots = k.parameters
    fitted = k.narrowed(fitted_bits(k.target, c.n))
    with walk(fitted, c.shape, (c.x, c.y), (x, y)) as ((source, out), _):
        row = _row(fitted, c, *_sums(fitted, c, source), roots)
        _each_block(fitted, c, lambda i, start, count: _block(fitted, c, row, (source, out, constants), (i, start, count)))


Blocks = Callable[["Index | int", "Index | int", int], None]


def _each_block(k: Kernel, c: NormalizeConfig, body: Blocks) -> None:
    """body(block, first element, number of elements)."""
    size = k.target.vector_bytes
    if c.n >= size:
        with k.loop(c.n // size) as (i, _):
            body(i, i * size, size)
    if c.n % size:
        body(c.n // size, max(c.n - size, 0), min(c.n, size))


# --- sums ----------------------------------------------------------------------------------------------------------------


def blanked(k: Kernel, value: Val, keep: range) -> Val:
    """Zero in every lane of the bundle outside `keep`."""
    lanes = k.target.vector_bits // value.bits
    masks = (ir.Constant(k.register_type(value.bits), [-(n * lanes + i in keep) for i in range(lanes)]) for n in range(len(value)))
    return Val(k, tuple(k.b.and_(r, mask) for r, mask in zip(value.regs, masks)), value.bits)


def _sums(k: Kernel, c: NormalizeConfig, x: Ptr) -> tuple[Any, Any]:
    """sum x and sum x^2 of a row."""
    size, itemsize = k.target.vector_bytes, c.bits[0] // 8
    state = [k.splat(0, 32).repeat(2), k.splat(0, 32 if itemsize == 1 else 64).repeat(2)]
    if c.n >= size:
        with k.loop(c.n // size, state) as (i, carried):
            carried[:] = _added(k, carried, _words(k, c, x + i * (size * itemsize)))
        state = carried
    if tail := c.n % size:
        keep = range(tail) if c.n < size else range(size - tail, size)
        state = _added(k, state, _words(k, c, x + max(c.n - size, 0) * itemsize, keep))
    return _total(k, state[0]), _total(k, state[1])


def _words(k: Kernel, c: NormalizeConfig, p: Ptr, keep: range | None = None) -> Val:
    """A block in two registers of 16 bits, in any order; zero but for the elements in `keep`."""
    count, space, bits = min(c.n, k.target.vector_bytes), c.spaces[0], c.bits[0]
    found = [load_lanes(k, p + at, nbytes, space, bits=bits) for at, _, _, nbytes in pieces(k.target, 0, count * bits // 8)]
    block = join([*found, k.splat(0, 16)][:2] if bits == 16 else found)
    return (block if keep is None else blanked(k, block, keep)).sext(16)


def _added(k: Kernel, state: list[Val], x: Val) -> list[Val]:
    total, squares = state
    return [total + _pairs(k, x), _accumulated(k, squares, _pairs_of_squares(k, x))]


def _pairs(k: Kernel, x: Val) -> Val:
    """Sums of neighbours in 32 bits."""
    if k.target.arch == "aarch64":
        return Val(k, tuple(instrs.SADDLP(k, r) for r in x.regs), 32)
    ones = k.splat(1, 16).regs[0]
    return Val(k, tuple(instrs.MADD[k.target.vector_bits](k, r, ones) for r in x.regs), 32)


def _pairs_of_squares(k: Kernel, x: Val) -> Val:
    """Sums of two squares each, in 32 bits without a sign: at most 2^31."""
    if k.target.arch == "aarch64":
        squares = x.mul_wide(x)
        return Val(k, tuple(k.b.add(*squares.regs[n : n + 2]) for n in range(0, len(squares), 2)), 32)
    return Val(k, tuple(instrs.MADD[k.target.vector_bits](k, r, r) for r in x.regs), 32)


def _accumulated(k: Kernel, total: Val, pairs: Val) -> Val:
    """`pairs`, without a sign, added to lanes of 32 or 64 bits."""
    if total.bits == 32:
        return total + pairs
    words = k.reinterpret(pairs, 64)
    low = words.map(k.b.and_, words.splat((1 << 32) - 1))
    return total + low + words.map(k.b.lshr, words.splat(32))


def _total(k: Kernel, x: Val) -> Any:
    """The sum of all lanes as a 64-bit integer."""
    low, high = x.regs
    lanes = k.b.add(low, high)
    name = f"llvm.vector.reduce.add.v{lanes.type.count}i{x.bits}"
    function = k.module.globals.get(name) or ir.Function(k.module, ir.FunctionType(lanes.type.element, [lanes.type]), name)
    total = k.b.call(function, [lanes])
    return total if x.bits == 64 else k.b.sext(total, I64)


# --- numbers of a row ----------------------------------------------------------------------------------------------------


def _row(k: Kernel, c: NormalizeConfig, total: Any, squares: Any, roots: Ptr) -> Row:
    b, f = k.b, c.fraction
    mean = _mean(k, c, total) if c.centered else k.i64(c.zero_point << f)
    cross = b.sub(b.mul(k.i64(c.n), mean), b.shl(total, k.i64(f + 1)))
    v = b.add(b.add(b.shl(squares, k.i64(2 * f)), b.mul(mean, cross)), k.i64(c.epsilon))
    bits = b.sub(k.i64(64), b.ctlz(v, ir.Constant(ir.IntType(1), 1)))
    e = b.sub(b.lshr(b.add(bits, k.i64(1)), k.i64(1)), k.i64(15))
    left, right = _positive(k, b.neg(e)), _positive(k, e)
    m = b.lshr(b.shl(v, b.shl(left, k.i64(1))), b.shl(right, k.i64(1)))
    half = b.lshr(b.shl(k.i64(1), right), k.i64(1))
    word = partial(_spread, k, bits=32)
    return Row(word(mean), word(left), word(half), word(right), _spread(k, _reciprocal_root(k, m, roots), 16))


def _mean(k: Kernel, c: NormalizeConfig, total: Any) -> Any:
    """floor((2^(F+1) sum x + D) / 2D): a division without signs, of a sum moved up by a multiple of the divisor."""
    b, up = k.b, 1 << (c.bits[0] + c.fraction)
    moved = b.add(b.shl(total, k.i64(c.fraction + 1)), k.i64(c.n + up * 2 * c.n))
    return b.sub(b.udiv(moved, k.i64(2 * c.n)), k.i64(up))


def _reciprocal_root(k: Kernel, m: Any, roots: Ptr) -> Any:
    """numerics.normalize.reciprocal_root_by_table."""
    b = k.b
    place = b.sub(b.lshr(m, k.i64(ROOT_SHIFT)), k.i64(ROOT_PARTS // 3))
    at = roots + Index(k, b.shl(place, k.i64(3)))
    base, fall = k.load_index(at).ir, k.load_index(at + 4).ir
    fallen = b.lshr(b.mul(fall, b.and_(m, k.i64((1 << ROOT_SHIFT) - 1))), k.i64(ROOT_SHIFT))
    r = Index(k, b.lshr(b.sub(base, fallen), k.i64(ROOT_FRACTION))).minimum((1 << 15) - 1).ir
    above = b.icmp_unsigned(">", b.mul(b.mul(r, r), m), k.i64(1 << (4 * UNIT_BITS + 2)))
    return b.sub(r, b.zext(above, I64))


def _positive(k: Kernel, x: Any) -> Any:
    """max(x, 0)."""
    return k.b.select(k.b.icmp_signed(">", x, k.i64(0)), x, k.i64(0))


def _spread(k: Kernel, x: Any, bits: int) -> Val:
    """A 64-bit integer in every lane of one register of `bits`."""
    kind = k.register_type(bits)
    one = k.b.insert_element(ir.Constant(kind, ir.Undefined), k.b.trunc(x, kind.element), ir.Constant(ir.IntType(32), 0))
    return Val(k, (instrs.pick(k.b, one, [0] * kind.count),), bits)


# --- elements ------------------------------------------------------------------------------------------------------------


def _block(k: Kernel, c: NormalizeConfig, row: Row, pointers: tuple[Ptr, Ptr, Ptr], place: tuple[Index | int, Index | int, int]) -> None:
    """One block: (number, first element, elements)."""
    (x, y, constants), (i, start, count), size = pointers, place, k.target.vector_bytes
    at = constants + i * (CONSTANT_REGISTERS * size)
    g, b = k.load(at, 16, 2, size), k.load(at + 2 * size, 32, 4, size)
    centered = _scaled(k, c, load_row(k, x + start * (c.bits[0] // 8), count, c.spaces[0], bits=c.bits[0])) - row.mean
    result = normalize_lanes(centered, row.left, row.half, row.right, row.rho, g, b, c.shift, c.bits[1]).clamp(c.lo, c.hi)
    store_row(k, y + start * (c.bits[1] // 8), result, count, c.spaces[1])


def _scaled(k: Kernel, c: NormalizeConfig, x: Val) -> Val:
    """x << F of a block, in 32 bits. From 8 bits the shift is one in 16, which is part of widening."""
    wide = x.sext(16 if x.bits == 8 else 32)
    return wide.shl(wide.splat(c.fraction)).sext(32)
