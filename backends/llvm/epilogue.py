"""What every kernel does with its accumulators: requantize, activate, add the residual. Written once.

A kernel works on **blocks** of `count` (1, 2 or 4) registers of int32 accumulators, that is `count * lanes` consecutive channels
(or elements) in `order.wide_order`. It uses four functions here, with the block's `constants` pointer and an `Epilogue`:

    acc = epilogue.initial(k, constants, count)        # bias and rounding half: start the accumulators with it
    ... acc += x * w ...                               # count registers per pixel; join up to 4 / count pixels
    y = epilogue.apply(k, acc, constants, count, sources)  # 8 bits, in memory order where count is 4; or 16, see `words`
    store_pixels(k, y, pointers, count, channels, epilogue.stored)

`Epilogue` is structure: frozen, hashable, part of the kernel's configuration, so that layers that differ only in numbers share
one function. The numbers are `EpilogueData`, made by `describe(step, ...)`, and lie in read-only memory: `data.pack(...)`
gives `epilogue.block_bytes(target, count)` bytes per block, blocks in order. Where all is uniform (one multiplier for all channels, no bias per
channel) one block serves every place: `epilogue.uniform`.

Elementwise kernels take count = 4: `k.load_activation(p).sext(32)` is such a block, and stores need no shuffle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import Clamp, IntAdd, IntConv, IntSum, Lookup, Requantize
from qcompiler.ir.ops import const_data
from qcompiler.ir.types import DType
from qcompiler.numerics.requantize import FRACTION_BITS, output_offset, requantize_biased, requantize_wide_biased, rounding_half

from . import instrs
from .dsl import Index, Kernel, Ptr, Val, join
from .lookup import TABLE, emit_channel_lookup, emit_lookup
from .order import wide_order
from .products import factors, product_of_words, shifted_right, short, unsigned_words, weighted_pair
from .target import Target
from .words import from_memory, pieces, store_span, to_memory

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sources:
    """Where an epilogue reads other than constants: the residual's values (8 or 16 bits) for this block, and the lookup tables.

    Kernels that allow one table per channel say which `channel` the block begins with, and how many of its channels are `valid`."""

    residual: Callable[[], Val] | None = None
    tables: Ptr | None = None
    channel: Index | int | None = None
    valid: int = 0


@dataclass
class Reader:
    """Walks the constants of a block: each entry begins at a multiple of the register size."""

    k: Kernel
    at: Ptr

    def lanes(self, bits: int, count: int) -> Val:
        """`count` registers."""
        value = self.k.load(self.at, bits, count, align=self.k.target.vector_bytes)
        self.at += count * self.k.target.vector_bytes
        return value

    def scalar(self, bits: int) -> Val:
        """One number in all lanes."""
        value = self.k.broadcast(self.at, bits)
        self.at += self.k.target.vector_bytes
        return value

    def numbers(self, bits: int, count: int, uniform: bool) -> Val:
        """A number for all lanes, or one per lane in the order of a block of `count` registers."""
        return self.scalar(bits) if uniform else self.lanes(bits, registers(bits, count))


SHIFTS = -32
"""In place of bits: amounts, all of them `short`, by which lanes of 32 are shifted right, written as the target shifts."""


@dataclass(frozen=True)
class Writer:
    """Makes what `Reader` reads, for the channels of one block."""

    target: Target
    count: int
    channels: slice

    def numbers(self, values: Ints, bits: int) -> bytes:
        """`values` has one element, or one per channel; channels beyond the last are zero."""
        if bits == SHIFTS:
            return self.numbers(values if self.target.shifts_lanes else factors(values), 32)
        kind = np.int16 if bits == 16 else np.int32
        if values.size == 1:
            return values.astype(kind).tobytes().ljust(self.target.vector_bytes, b"\0")
        here = values[self.channels]
        padded = np.pad(here, (0, self.target.lanes * self.count - here.size))
        return padded[wide_order(self.target, bits, self.count)].astype(kind).tobytes()


def registers(bits: int, count: int) -> int:
    """Registers of `bits`-wide lanes of a block of `count` int32 registers."""
    return count if bits == 32 else max(1, count // 2)


def _spread(value: Val, over: Val) -> Val:
    """Constants of one block repeated for each of the pixels that are joined in `over`."""
    return value if len(value) == 1 else value.repeat(len(over) // len(value))


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Requant:
    """`Requantize`: int32 with the rounding half already in it, to int8 or int16, clamped to [lo, hi]."""

    uniform: bool
    left: bool
    """Whether some channel shifts left."""
    lo: int = -128
    hi: int = 127
    bits: int = 8
    short: bool = False
    """Whether right shifts are written as `SHIFTS`."""

    def emit(self, a: Val, r: Reader, count: int, sources: Sources) -> Val:
        """numerics.requantize_biased (or its wide form) over lanes that are registers. Left shifts are products with powers of two: SSE has no
        left shift per lane, and LLVM would go through floating point."""
        if self.left:
            a = a * _spread(r.numbers(32, count, self.uniform), a)
        right: Val | None = _spread(r.numbers(32, count, self.uniform), a)
        if self.short and right is not None and not a.k.target.shifts_lanes:
            a, right = shifted_right(a, right), None
        q = _halved(r.numbers(16, count, self.uniform), a)
        wide = self.bits == 16
        y = requantize_wide_biased(a, None, right, q) if wide else requantize_biased(a, None, right, q, r.scalar(16))
        return y.clamp(self.lo, self.hi)

    def sizes(self, count: int) -> int:
        """Registers of constants."""
        wide, narrow = (1, 1) if self.uniform else (registers(32, count), registers(16, count))
        return wide * (1 + self.left) + narrow + (self.bits == 8)


def _halved(q: Val, over: Val) -> Val:
    """16-bit constants repeated for the packed registers of `over`."""
    return q if len(q) == 1 else q.repeat(max(1, len(over) // 2) // len(q))


@dataclass(frozen=True)
class Clamped:
    """`Clamp`."""

    lo: int
    hi: int

    def emit(self, y: Val, r: Reader, count: int, sources: Sources) -> Val:
        return y.clamp(self.lo, self.hi)

    def sizes(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class Table:
    """`Lookup` in one table of 256 bytes at `tables + offset`, or in one per channel from there on."""

    offset: int
    per_channel: bool = False

    def emit(self, y: Val, r: Reader, count: int, sources: Sources) -> Val:
        if sources.tables is None:
            raise ValueError("an epilogue with a lookup needs the pointer to its tables")
        table = sources.tables + self.offset
        if not self.per_channel:
            return emit_lookup(y, table)
        if sources.channel is None:
            raise UnsupportedModel(["a table per channel cannot run in the epilogue of a kernel that does not walk channels"])
        return emit_channel_lookup(y, table + sources.channel * TABLE, _valid_channels(y.k.target, count, sources.valid))

    def sizes(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class Residual:
    """`IntSum((m, n))` with another operand: acc = m * y + n * other + correction, in 32 bits; multipliers of 16 bits."""

    bits: int = 8
    """Of the other operand."""

    def emit(self, y: Val, r: Reader, count: int, sources: Sources) -> Val:
        if sources.residual is None:
            raise ValueError("an epilogue with a residual needs its operand")
        other, m, n, correction = sources.residual(), r.scalar(16), r.scalar(16), r.scalar(32)
        words = y.sext(16)
        return weighted_pair(words, m, other.sext(16)[: len(words)], n) + correction

    def sizes(self, count: int) -> int:
        return 3


@dataclass(frozen=True)
class Added:
    """`IntAdd` with another operand: the sum of 16-bit values, saturated."""

    bits: int = 16

    def emit(self, y: Val, r: Reader, count: int, sources: Sources) -> Val:
        if sources.residual is None:
            raise ValueError("an epilogue with a residual needs its operand")
        return y.add_sat(sources.residual()[: len(y)])

    def sizes(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class Addend:
    """The residual operand of an `IntConv`: acc + m_o * r, in 32 bits, before anything is rounded (of 16 bits: acc + (m_o * r >> 6)); z_r is part
    of the bias, and so is `addend_offset`, which is added to r because bytes widen in half the instructions without their sign."""

    bits: int = 8

    def emit(self, acc: Val, r: Reader, count: int, sources: Sources) -> Val:
        if sources.residual is None:
            raise ValueError("an epilogue with a residual needs its operand")
        other, m = sources.residual(), _spread(r.lanes(32, count), acc)
        wide = unsigned_words(other) if addend_offset(acc.k.target, self.bits) else other.sext(32)
        words = product_of_words(wide[: len(acc)], m)
        return acc + (words if self.bits == 8 else words.shr(words.splat(FRACTION_BITS)))

    def sizes(self, count: int) -> int:
        return count


Stage = Requant | Clamped | Table | Residual | Addend | Added


def addend_offset(target: Target, bits: int) -> int:
    """What `Addend` adds to its operand."""
    return target.storage_offset if bits == 8 else 0


# --- the chain -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epilogue:
    """Structure of an epilogue."""

    stages: tuple[Stage, ...]
    bias_uniform: bool = False
    stored: bool = True
    """Whether results are written in the arena's storage form; False for plain int8 (program outputs)."""
    residual_stored: bool = True

    @property
    def uniform(self) -> bool:
        """Whether one block of constants serves all channels."""
        return self.bias_uniform and all(s.uniform for s in self.stages if isinstance(s, Requant))

    @property
    def has_residual(self) -> bool:
        """Whether another operand is added."""
        return any(isinstance(s, Residual | Addend | Added) for s in self.stages)

    @property
    def itemsize(self) -> int:
        """Bytes of a result."""
        return next((s.bits for s in reversed(self.stages) if isinstance(s, Requant)), 8) // 8

    @property
    def residual_bits(self) -> int:
        """Width of the other operand's elements."""
        return next((s.bits for s in self.stages if isinstance(s, Residual | Addend | Added)), 8)

    def block_bytes(self, target: Target, count: int) -> int:
        """Bytes of constants per block."""
        return target.vector_bytes * ((1 if self.bias_uniform else count) + sum(s.sizes(count) for s in self.stages))

    def initial(self, k: Kernel, constants: Ptr, count: int) -> Val:
        """The accumulators' start: bias and rounding half, `count` registers."""
        bias = Reader(k, constants).numbers(32, count, self.bias_uniform)
        return bias.repeat(count // len(bias))

    def apply(self, k: Kernel, acc: Val, constants: Ptr, count: int, sources: Sources = Sources()) -> Val:
        """From accumulators (of up to 4 registers: several pixels of `count`) to one register of 8-bit values, or half as many of 16."""
        reader = Reader(k, constants + k.target.vector_bytes * (1 if self.bias_uniform else count))
        y = acc
        for s in self.stages:
            y = s.emit(y, reader, count, sources)
        return y


@dataclass(frozen=True, eq=False)
class EpilogueData:
    """The numbers of an epilogue: `bias` (with the rounding half) and those of each stage in the order they are read."""

    bias: Ints
    numbers: tuple[tuple[Ints, int], ...]
    """(values, bits) in order: values has one element or one per channel."""
    tables: bytes = b""

    def pack(self, target: Target, count: int, channels: int, start: int = 0) -> bytes:
        """Constants of all blocks of `count` registers that cover channels [start, start + channels)."""
        size = target.lanes * count
        blocks = (Writer(target, count, slice(c, min(c + size, start + channels))) for c in range(start, start + channels, size))
        return b"".join(self._block(w) for w in blocks)

    def _block(self, w: Writer) -> bytes:
        return b"".join(w.numbers(values, bits) for values, bits in ((self.bias, 32), *self.numbers))


@dataclass
class _Description:
    stages: list[Stage] = field(default_factory=list)
    numbers: list[tuple[Ints, int]] = field(default_factory=list)
    tables: list[bytes] = field(default_factory=list)


def describe(epilogue: Sequence[Value], bias: NDArray[np.integer] | int, producer: Value) -> tuple[Epilogue, EpilogueData]:
    """Structure and numbers of a step's epilogue, its constants of one element or [C]. `bias` ([C] or one number) is what
    the producer's accumulator starts with, without the rounding half of the first Requantize, which is added here."""
    d, before = _Description(), producer
    total = np.atleast_1d(np.asarray(bias, np.int64))
    first = epilogue[0]
    total = total + rounding_half(_ints(first.inputs[1])) if isinstance(first.op, Requantize) else total
    if isinstance(producer.op, IntConv) and len(producer.inputs) > 3:
        multipliers = _ints(producer.inputs[4])
        total = total - multipliers * zero_point(producer.inputs[3])
        d.stages.append(Addend(bits_of(producer.inputs[3])))
        d.numbers.append((multipliers, 32))
    for n, v in enumerate(epilogue):
        after = epilogue[n + 1] if n + 1 < len(epilogue) else None
        _describe_one(d, v, before, after)
        before = v
    uniform = total.size == 1
    return Epilogue(tuple(d.stages), uniform), EpilogueData(total, tuple(d.numbers), b"".join(d.tables))


def _describe_one(d: _Description, v: Value, before: Value, after: Value | None) -> None:
    match v.op:
        case Requantize():
            _describe_requantize(d, v, v.op)
        case Clamp(lo, hi):
            d.stages.append(Clamped(lo, hi))
        case Lookup():
            table = _ints(v.inputs[1]).astype(np.int8).tobytes()
            d.stages.append(Table(sum(map(len, d.tables)), len(table) > TABLE))
            d.tables.append(table)
        case IntSum():
            d.stages.append(Residual(bits_of(v.inputs[1 - v.inputs.index(before)])))
            d.numbers.extend(_residual_numbers(v, v.op, before, after))
        case IntAdd():
            d.stages.append(Added())
        case _:
            raise TypeError(f"{type(v.op).__name__} '{v.name}' cannot run in an epilogue")


def _describe_requantize(d: _Description, v: Value, op: Requantize) -> None:
    shift, q = np.broadcast_arrays(_ints(v.inputs[1]), _ints(v.inputs[2]))
    left = bool((shift < 0).any())
    few = short(shift, q)
    d.stages.append(Requant(shift.size == 1, left, op.lo, op.hi, bits_of(v), few))
    amounts = [(np.int64(1) << np.maximum(-shift, 0), 32)] * left + [(np.maximum(shift, 0), SHIFTS if few else 32)]
    offset = [(np.array([output_offset(zero_point(v))]), 16)] if bits_of(v) == 8 else []
    d.numbers.extend([*amounts, (q, 16), *offset])


def _residual_numbers(v: Value, op: IntSum, before: Value, after: Value | None) -> Iterator[tuple[Ints, int]]:
    """Multiplier of the chain, of the other operand, and -m z - n z' with the rounding half of what follows."""
    own = v.inputs.index(before)
    other = 1 - own
    if max(map(abs, op.multipliers)) >= 1 << 15:
        raise ValueError(f"multipliers {op.multipliers} of '{v.name}' do not fit in 16 bits")
    correction = -sum(m * zero_point(x) for m, x in zip(op.multipliers, v.inputs))
    half = rounding_half(_ints(after.inputs[1])) if after is not None else np.zeros(1, np.int64)
    yield np.array([op.multipliers[own]]), 16
    yield np.array([op.multipliers[other]]), 16
    yield correction + half, 32


def bits_of(v: Value) -> int:
    """Width of the elements of a quantized value: 8 or 16."""
    return 16 if v.type.dtype is DType.i16 else 8


def zero_point(v: Value) -> int:
    """Zero point of a quantized value."""
    return v.type.quant.zero_point[0] if v.type.quant is not None else 0


def _ints(v: Value) -> Ints:
    data = const_data(v)
    if data is None:
        raise TypeError(f"'{v.name}' is not a constant")
    return data.astype(np.int64).reshape(-1)


def _valid_channels(target: Target, count: int, valid: int) -> list[int | None]:
    """The channel within the block of each 8-bit lane of a joined register; None where there is none."""
    octets, size = [4 * lane + i for lane in pixel_order(target, count) for i in range(4)], target.lanes * count
    found: list[int | None] = [None] * len(octets)
    for at, lane in enumerate(octets):
        found[lane] = at % size if at % size < valid else None
    return found


# --- pixels in memory ------------------------------------------------------------------------------------------------


def pixel_order(target: Target, count: int) -> list[int]:
    """int32 lanes of a joined 8-bit register in the order of memory, pixel after pixel.

    Part l of the register holds, for each of 4 / count pixels p, the 4 * count bytes of its channels from 4 * count * l on.
    """
    return [part * 4 + pixel * count + j for pixel in range(4 // count) for part in range(target.parts) for j in range(count)]


def store_pixels(k: Kernel, y: Val, pointers: Sequence[Ptr], count: int, channels: int, stored: bool = True) -> None:
    """`channels` channels of each joined pixel to its pointer; neighbours in memory are written at once. `stored` matters to 8 bits only."""
    item = y.bits // 8
    size, nbytes = k.target.lanes * count * item, channels * item
    ordered = to_memory(k, y, count) if item > 1 else _permuted(k, k.unbias(y) if stored else y, pixel_order(k.target, count))
    for first, number in _neighbours(pointers, size if nbytes == size else 0):
        store_span(k, pointers[first], ordered, first * size, (number - 1) * size + nbytes)


def load_pixels(k: Kernel, pointers: Sequence[Ptr], count: int, channels: int, stored: bool = True, bits: int = 8) -> Val:
    """The inverse: values of the pixels joined in one register of 8-bit lanes, or two of 16, as `sat` would leave them."""
    if bits == 16:
        return from_memory(k, _words_of_pixels(k, pointers, count, channels), count)
    size = k.target.lanes * count
    whole: Val | None = None
    for first, number in _neighbours(pointers, size if channels == size else 0):
        piece = k.load_lanes(pointers[first], 8, (number - 1) * size + channels)
        whole = piece if whole is None else _placed(k, whole, piece, first * size)
    assert whole is not None
    order = pixel_order(k.target, count)
    y = _permuted(k, whole, [order.index(i) for i in range(len(order))])
    return k.unbias(y) if stored else y


def _words_of_pixels(k: Kernel, pointers: Sequence[Ptr], count: int, channels: int) -> Val:
    """Two registers with the pixels' 16-bit values one after the other, as in memory."""
    found = [k.splat(0, 8)] * 2
    size, nbytes = 2 * k.target.lanes * count, 2 * channels
    for first, number in _neighbours(pointers, size if nbytes == size else 0):
        for at, register, inside, here in pieces(k.target, first * size, (number - 1) * size + nbytes):
            piece = k.load_lanes(pointers[first] + at, 8, here)
            found[register] = _placed(k, found[register], piece, inside) if inside else piece
    return k.reinterpret(join(found), 16)


def _placed(k: Kernel, whole: Val, piece: Val, at: int) -> Val:
    """`whole` with its bytes from `at` on replaced by those of `piece` from 0 on."""
    lanes = k.target.vector_bytes
    return whole.map(lambda a, b: instrs.shuffle(k.b, a, b, [i if i < at else lanes + i - at for i in range(lanes)]), piece)


def _permuted(k: Kernel, y: Val, order: list[int]) -> Val:
    if order == sorted(order):
        return y
    return k.reinterpret(k.permute(k.reinterpret(y, 32), order), 8)


def _neighbours(pointers: Sequence[Ptr], size: int) -> Iterator[tuple[int, int]]:
    """(first, number) of the runs of pointers that are `size` bytes apart."""
    first = 0
    for i in range(1, len(pointers) + 1):
        if i == len(pointers) or pointers[i].base is not pointers[i - 1].base or pointers[i].offset != pointers[i - 1].offset + size:
            yield first, i - first
            first = i


def plain(epilogue: Epilogue) -> Epilogue:
    """The same, writing plain int8."""
    return replace(epilogue, stored=False)
