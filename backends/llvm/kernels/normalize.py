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
from qcompiler.backends.llvm.dsl import I64, Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Ints, Writer
from qcompiler.backends.llvm.launch import Data, Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntNormalize
from qcompiler.ir.types import Quantization
from qcompiler.numerics.normalize import UNIT_BITS, fraction_bits, normalize_lanes
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .rows import Strides, data_of, load_exactly, load_row, merged, operands, result_of, store_row, walk

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
    bits = 8 * v.inputs[0].type.dtype.numpy.itemsize, 8 * v.type.dtype.numpy.itemsize
    quant = v.type.quant or Quantization.per_tensor(1.0)
    numbers = (op.centered, x.zero_point, op.epsilon, op.shift, quant.qmin, quant.qmax)
    config = NormalizeConfig(shape, read, written, x.shape[-1], bits, (x.space, y.space), *numbers)
    g, b = (data_of(i).astype(np.int64) for i in v.inputs[1:])
    constants = Data(pack_constants(target, g, b))
    yield Launch(emit_normalize, config, ("x", "y", "constants"), (x.argument, y.argument, constants), run.step.result.name)


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
    """The body of a function of ("x", "y", "constants")."""
    x, y, constants = k.parameters
    fitted = k.narrowed(fitted_bits(k.target, c.n))
    with walk(fitted, c.shape, (c.x, c.y), (x, y)) as ((source, out), _):
        row = _row(fitted, c, *_sums(fitted, c, source))
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


# --- blocks of elements --------------------------------------------------------------------------------------------------


def _at(p: Ptr, start: Index | int, bits: int) -> Ptr:
    return p + start * (bits // 8)


def load_wide(k: Kernel, p: Ptr, count: int, space: Space) -> Val:
    """`count` 16-bit elements, at most as many as a register has bytes, in two registers as they lie in memory; the rest unspecified."""
    size = k.target.vector_bytes
    if count == size:
        return k.load(p, 16, 2)
    load = load_exactly if space is not Space.arena else lambda k, p, nbytes: k.load_lanes(p, 8, nbytes)
    pieces = [load(k, p, min(2 * count, size)), load(k, p + size, 2 * count - size) if 2 * count > size else k.splat(0, 8)]
    return Val(k, tuple(k.reinterpret(piece, 16).regs[0] for piece in pieces), 16)


def store_wide(k: Kernel, p: Ptr, value: Val, count: int) -> None:
    """`count` 16-bit elements of two registers in memory order."""
    size = k.target.vector_bytes
    for n in range(-(-2 * count // size)):
        k.store(p + n * size, value[n : n + 1], min(size, 2 * count - n * size))


def to_parts(k: Kernel, value: Val) -> Val:
    """Two registers of 16 bits from memory order to that of an 8-bit register widened within 128-bit parts."""
    return _shuffled(value, [[16 * part + 8 * half + e for part in range(k.target.parts) for e in range(8)] for half in (0, 1)])


def from_parts(k: Kernel, value: Val) -> Val:
    """The inverse of `to_parts`."""
    lanes = 8 * k.target.parts
    places = [lanes * (channel // 8 % 2) + channel // 16 * 8 + channel % 8 for channel in range(2 * lanes)]
    return _shuffled(value, [places[:lanes], places[lanes:]])


def _shuffled(value: Val, picks: list[list[int]]) -> Val:
    low, high = value.regs
    return Val(value.k, tuple(instrs.shuffle(value.k.b, low, high, p) for p in picks), value.bits)


def blanked(k: Kernel, value: Val, keep: range) -> Val:
    """Zero in every lane of the bundle outside `keep`."""
    lanes = k.target.vector_bits // value.bits
    masks = (ir.Constant(k.register_type(value.bits), [-(n * lanes + i in keep) for i in range(lanes)]) for n in range(len(value)))
    return Val(k, tuple(k.b.and_(r, mask) for r, mask in zip(value.regs, masks)), value.bits)


# --- sums ----------------------------------------------------------------------------------------------------------------


def _sums(k: Kernel, c: NormalizeConfig, x: Ptr) -> tuple[Any, Any]:
    """sum x and sum x^2 of a row."""
    size, bits = k.target.vector_bytes, c.bits[0]
    state = [k.splat(0, 32).repeat(2), k.splat(0, 32 if bits == 8 else 64).repeat(2)]
    if c.n >= size:
        with k.loop(c.n // size, state) as (i, carried):
            carried[:] = _added(k, carried, _halves(k, c, _at(x, i * size, bits), range(size)))
        state = carried
    if tail := c.n % size:
        start = max(c.n - size, 0)
        keep = range(tail) if c.n < size else range(size - tail, size)
        state = _added(k, state, _halves(k, c, _at(x, start, bits), keep))
    return _total(k, state[0]), _total(k, state[1])


def _halves(k: Kernel, c: NormalizeConfig, p: Ptr, keep: range) -> Val:
    """A block in two registers of 16 bits, in any order, zero but for the elements in `keep`."""
    size = k.target.vector_bytes
    count = min(c.n, size)
    load = load_row if c.bits[0] == 8 else load_wide
    value = load(k, p, count, c.spaces[0])
    return (value if len(keep) == size else blanked(k, value, keep)).sext(16)


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


def _row(k: Kernel, c: NormalizeConfig, total: Any, squares: Any) -> Row:
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
    return Row(word(mean), word(left), word(half), word(right), _spread(k, _reciprocal_root(k, m), 16))


def _mean(k: Kernel, c: NormalizeConfig, total: Any) -> Any:
    """floor((2^(F+1) sum x + D) / 2D): a division without signs, of a sum moved up by a multiple of the divisor."""
    b, up = k.b, 1 << (c.bits[0] + c.fraction)
    moved = b.add(b.shl(total, k.i64(c.fraction + 1)), k.i64(c.n + up * 2 * c.n))
    return b.sub(b.udiv(moved, k.i64(2 * c.n)), k.i64(up))


def _reciprocal_root(k: Kernel, m: Any) -> Any:
    """numerics.normalize.reciprocal_root, bit by bit as there: with r the bits so far, `left` is 2^58 - r^2 m and `twice` r m 2^(i+1), so that
    bit i is set where (r + 2^i)^2 m - r^2 m = twice + 2^2i m is not more than what is left. No step multiplies."""
    b, r = k.b, k.i64(1 << UNIT_BITS)
    twice = b.shl(m, k.i64(2 * UNIT_BITS))
    left = b.sub(k.i64(1 << (4 * UNIT_BITS + 2)), twice)
    for i in range(UNIT_BITS - 1, -1, -1):
        square = b.shl(m, k.i64(2 * i))
        more = b.add(twice, square)
        fits, halved = b.icmp_unsigned("<=", more, left), b.lshr(twice, k.i64(1))
        left = b.select(fits, b.sub(left, more), left)
        twice = b.select(fits, b.add(halved, square), halved)
        r = b.select(fits, b.add(r, k.i64(1 << i)), r)
    return r


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
    (x, y, constants), (i, start, count) = pointers, place
    at = constants + i * (CONSTANT_REGISTERS * k.target.vector_bytes)
    g, b = k.load(at, 16, 2, k.target.vector_bytes), k.load(at + 2 * k.target.vector_bytes, 32, 4, k.target.vector_bytes)
    centered = _scaled(k, c, _at(x, start, c.bits[0]), count) - row.mean
    result = normalize_lanes(centered, row.left, row.half, row.right, row.rho, g, b, c.shift, c.bits[1]).clamp(c.lo, c.hi)
    if c.bits[1] == 8:
        store_row(k, y + start, result, count, c.spaces[1])
    else:
        store_wide(k, _at(y, start, 16), from_parts(k, result), count)


def _scaled(k: Kernel, c: NormalizeConfig, p: Ptr, count: int) -> Val:
    """x << F of a block, in 32 bits. From 8 bits the shift is one in 16, which is part of widening."""
    if c.bits[0] == 8:
        halves = load_row(k, p, count, c.spaces[0]).sext(16)
        return halves.shl(halves.splat(c.fraction)).sext(32)
    words = to_parts(k, load_wide(k, p, count, c.spaces[0])).sext(32)
    return words.shl(words.splat(c.fraction))
