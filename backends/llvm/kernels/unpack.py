"""A layer's weights of few bits to bytes in working memory, a block of channels at a time, for all of its pixels.

Where products are added up in 16 bits, nibbles must be taken apart before they are multiplied: 2.5 instructions for a register of weights,
in every tile of pixels. A layer of many pixels does it when a block begins, and then runs the kernel of eight bits:

    in each tile:   pixels / TILE * unpacking              beforehand:   unpacking + STORE + LOAD

Integers with multipliers, and those of two and three bits, are always taken apart so, to the bytes m q. Every 32 along K share registers of
multipliers, three bytes for each channel of a register (`planes.coded`). Where the kernel of eight bits walks K in an order of its own
(`chain`), they lie in that order, and each block tells how many chains it has of each form, and the number of each of their groups along K. Where it
lies in the window, which the kernel's header says, is the same for all blocks:

    layer before:   where each group lies in the window, if blocks have orders | blocks
    block before:   chains of each form, numbers of the groups | multipliers | planes
    block after:    header | registers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles, planes
from qcompiler.backends.llvm.dot import FORMS, GROUP, Dot, Maddubs, dot_of
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import const_data
from qcompiler.ir.types import DType
from qcompiler.passes.partition import Step
from qcompiler.passes.weight_grid import GROUP as MULTIPLE
from qcompiler.passes.weight_grid import SIGNED, bytes_of_multipliers, multipliers_of

from .chain import WORD, header_bytes

PARAMETERS = ("window", "packed", "unpacked")
TILE = 4
"""Pixels of a tile."""
MOVED = 4.0
"""Instructions' worth of storing a register and of loading it from the second-level cache."""
MOST_FORMS = 8
LINE = 64
NUMBER = 2
"""Bytes of a group's number along K."""
MOST_GROUPS = (1 << 8 * NUMBER) - 1
STEP = 16
"""Bytes of K in the longest step of a form."""
LEAST = -8
"""Integer of a nibble without multipliers."""
UNDER_NIBBLES = (2, 3)
"""Bits of integers that kernels of nibbles would not keep small."""


@dataclass(frozen=True)
class Part:
    """`blocks` blocks of a header and `depth * count` registers of `form`. Headers are of `forms` forms of chains; without any there is none.

    `forms`: of so many forms the header counts chains, before it tells the numbers of groups along K.
    `bits`: of the integers that have multipliers; None: these are nibbles without."""

    blocks: int
    depth: int
    count: int
    forms: int
    form: str
    bits: int | None

    @property
    def dot(self) -> Dot:
        """The form of the dot product."""
        return FORMS[self.form]

    @property
    def shared(self) -> int:
        """Groups of K that share bytes of multipliers."""
        return SIGNED // self.dot.group

    def multipliers(self, groups: int) -> int:
        """Bytes of the multipliers of a channel, of so many groups."""
        return bytes_of_multipliers(groups * self.dot.group)

    def channels(self, target: Target) -> int:
        """In a register."""
        return target.vector_bytes // self.dot.group

    @property
    def header(self) -> int:
        """Bytes of a block's header, taken apart."""
        return header_bytes(self.forms, self.depth) if self.forms else 0

    @property
    def registers(self) -> int:
        """Of weights."""
        return self.depth * self.count

    @property
    def unit(self) -> int:
        """Groups of K that are taken apart at once: they share bytes of multipliers, and fill the registers of their planes."""
        return lcm(self.shared * self.count, planes.fields(self.bits or nibbles.BITS)) // self.count

    @property
    def units(self) -> tuple[int, int]:
        """(how many times so many groups, groups that are left)."""
        return divmod(self.depth, self.unit)

    def packed(self, groups: int) -> int:
        """Registers that so many groups take."""
        return planes.registers(self.bits or nibbles.BITS, groups * self.count)

    def before(self, target: Target) -> Before:
        """Where the parts of a packed block are."""
        if self.bits is None:
            return Before(0, self.header, self.header, self.header + self.packed(self.depth) * target.vector_bytes)
        (whole, rest), table = self.units, WORD * self.forms
        multipliers = _lines(table + NUMBER * self.depth) if self.forms else 0
        weights = multipliers + _lines(self.multipliers(self.depth) * self.count * self.channels(target))
        return Before(table, multipliers, weights, weights + (whole * self.packed(self.unit) + self.packed(rest)) * target.vector_bytes)

    @property
    def window(self) -> int:
        """Bytes that tell where groups lie in the window, before all blocks."""
        return _lines(WORD * self.depth) if self.forms and self.bits is not None else 0

    def after(self, target: Target) -> int:
        """Bytes of a block taken apart."""
        return self.header + self.registers * target.vector_bytes


@dataclass(frozen=True)
class Before:
    """Offsets in a packed block."""

    table: int
    multipliers: int
    weights: int
    end: int


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE


def kept_bits(w: NDArray[np.generic]) -> int | None:
    """Bits of the integers with multipliers as which weights [O, kh, kw, C] are kept; None: they are nibbles without, or bytes, as are those of
    more groups than numbers can tell."""
    bits = planes.bits_of_multiples(w) if w[0].size <= GROUP * MOST_GROUPS else None
    return None if nibbles.fit(w) and bits not in UNDER_NIBBLES else bits


def unpacks_before(step: Step, target: Target) -> bool:
    """Whether a convolution's weights of few bits are taken apart in working memory."""
    v, dot = step.producer, dot_of(target)
    if not isinstance(v.op, IntConv) or v.op.groups > 1 or v.inputs[0].type.dtype is DType.i16 or (w := const_data(v.inputs[1])) is None:
        return False
    if kept_bits(w) is not None:
        return True
    pixels, each = int(np.prod(v.shape[:3])), nibbles.unpacking(dot)
    return nibbles.fit(w) and isinstance(dot, Maddubs) and pixels / TILE * each > each + MOVED


def unpack_scratch(step: Step, target: Target) -> int:
    """Bytes of working memory of a convolution, for whatever tiles it will have; 0: none."""
    if not unpacks_before(step, target):
        return 0
    channels, kh, kw, c = step.producer.inputs[1].shape
    registers = -(-channels // (4 * target.lanes)) * 4
    depth = kh * kw * -(-c // STEP) * (STEP // GROUP)
    return registers * (depth * target.vector_bytes + header_bytes(MOST_FORMS, depth))


def pack_parts(weights: bytes, parts: tuple[Part, ...], target: Target) -> bytes:
    """Bytes as the kernel of eight bits reads them, with registers as planes."""
    blocks = list(_blocks(weights, parts, target))
    part, first = blocks[0]
    window = np.sort(_window(first, part)).tobytes().ljust(part.window, b"\0") if part.window else b""
    return window + b"".join(_pack_block(block, part, target) for part, block in blocks)


def _blocks(weights: bytes, parts: tuple[Part, ...], target: Target) -> Iterator[tuple[Part, NDArray[np.int8]]]:
    data, at = np.frombuffer(weights, np.int8), 0
    for part in parts:
        size = part.after(target)
        for _ in range(part.blocks):
            yield part, data[at : at + size]
            at += size


def _pack_block(block: NDArray[np.int8], part: Part, target: Target) -> bytes:
    header, registers = block[: part.header], block[part.header :].reshape(part.depth, part.count, target.vector_bytes)
    if part.bits is None:
        return header.tobytes() + planes.pack((registers.reshape(part.registers, -1) - LEAST).astype(np.uint8), nibbles.BITS).tobytes()
    before, (multipliers, q) = part.before(target), _divided(registers, part, target)
    numbers = np.argsort(np.argsort(_window(header, part))).astype(np.uint16)
    table = header[: WORD * part.forms].tobytes() + numbers.tobytes() if part.window else b""
    sizes = before.multipliers, before.weights - before.multipliers
    extra = [e.ljust(size, b"\0") for e, size in zip((table, multipliers.tobytes()), sizes)]
    units = (unit.reshape(-1, target.vector_bytes) for unit in np.split(q, range(part.unit, part.depth, part.unit)))
    return b"".join([*extra, *(planes.pack(unit, part.bits).tobytes() for unit in units)])


def _window(header: NDArray[np.int8], part: Part) -> NDArray[np.int32]:
    """Where each group of K lies in the window, in the order of the chains: they ascend with K."""
    return header[: part.header].view(np.int32)[part.forms : part.forms + part.depth]


def _divided(registers: NDArray[np.int8], part: Part, target: Target) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Bytes of multipliers [bytes of a channel, count, channels] and what is stored of registers [depth, count, bytes]."""
    channel, element = _bytes_of_register(part.dot, target)
    places = np.lexsort((element, channel)).reshape(part.channels(target), -1)
    rows = registers[..., places].transpose(1, 2, 0, 3).reshape(part.count, len(places), -1)  # [count, channels, K]
    assert part.bits is not None
    m = multipliers_of(rows, part.bits)
    whole = np.repeat(m, MULTIPLE, 2)[..., : rows.shape[2]].reshape(part.count, len(places), part.depth, -1).transpose(2, 0, 1, 3)
    return planes.coded(m).transpose(2, 0, 1), planes.positive(registers, whole[..., channel, element], part.bits)


def _bytes_of_register(dot: Dot, target: Target) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(which of a register's channels each of its bytes belongs to, which element of a step it is)."""
    lane, step = (a.astype(np.int8) for a in np.indices((target.lanes, dot.group)))
    channel, element = (dot.pack(a).ravel()[: target.vector_bytes].astype(np.int64) for a in (lane, step))
    return channel, element


@dataclass(frozen=True)
class Apart:
    """Blocks of `part`, taken apart at `place`; where `own`, block b at the place of the b-th. Which one was the last, `held` tells."""

    part: Part
    window: Ptr
    place: Ptr
    own: bool
    held: Any

    @classmethod
    def of(cls, k: Kernel, part: Part, window: Ptr, memory: Ptr, whole: bool) -> Apart:
        """With `memory` for all blocks; `whole`: each piece of the work has blocks of its own.

        It has them all in the place of its first one, which so stays in the first-level cache. Where pieces share a block, each takes it apart,
        to the same bytes in the same place."""
        own = k.span is not None and not whole
        place = memory if own else memory + k.first(part.blocks) * part.after(k.target)
        return cls(part, window, place, own, k.unseen())

    def block(self, k: Kernel, b: Index | int, packed: Ptr) -> Ptr:
        """The weights of block b of those at `packed`, taken apart by the first tile that needs them."""
        place = self.place + (b if self.own else 0) * self.part.after(k.target)
        with k.when_new(self.held, b):
            function = k.function_of(emit_unpack, self.part, PARAMETERS)
            k.b.call(function, [p.ir for p in (self.window, packed + b * self.part.before(k.target).end, place)])
        return place


def emit_unpack(k: Kernel, part: Part) -> None:
    """The body of a function with `PARAMETERS`: one block."""
    window, packed, unpacked = k.parameters
    if part.bits is None:
        _emit_nibbles(k, part, packed, unpacked)
    else:
        _emit_multiples(k, part, part.bits, window, packed, unpacked)


def _emit_nibbles(k: Kernel, part: Part, packed: Ptr, unpacked: Ptr) -> None:
    size, pairs = k.target.vector_bytes, part.registers // 2

    def pair(packed: Ptr, unpacked: Ptr, count: int) -> None:
        for n, q in enumerate(planes.load(k, packed, nibbles.BITS, count)):
            k.store(unpacked + n * size, q - k.splat(-LEAST, 8))

    if part.header:
        with k.loop(part.header // size) as (i, _):
            k.store(unpacked + i * size, k.load(packed + i * size, 8))
    packed, unpacked = packed + part.header, unpacked + part.header
    if pairs:
        with k.loop(pairs) as (i, _):
            pair(packed + i * size, unpacked + i * (2 * size), 2)
    if part.registers % 2:
        pair(packed + pairs * size, unpacked + 2 * pairs * size, 1)


def _emit_multiples(k: Kernel, part: Part, bits: int, window: Ptr, packed: Ptr, unpacked: Ptr) -> None:
    size, before, codes = k.target.vector_bytes, part.before(k.target), part.count * part.channels(k.target)
    table = WORD * part.forms
    for n in range(part.forms):
        k.store_index(unpacked + n * WORD, k.load_index(packed + n * WORD))

    def unit(i: Index | int, groups: int) -> None:
        for g in range(groups if part.forms else 0):
            number = k.load_index(packed + table + i * (NUMBER * part.unit) + g * NUMBER, 8 * NUMBER)
            k.store_index(unpacked + table + i * (WORD * part.unit) + g * WORD, k.load_index(window + number * WORD))
        registers = planes.load(k, packed + before.weights + i * (part.packed(part.unit) * size), bits, groups * part.count)
        at = packed + before.multipliers + i * (part.multipliers(part.unit) * codes)
        _emit_unit(k, part, bits, registers, at, unpacked + part.header + i * (part.unit * part.count * size))

    whole, rest = part.units
    if whole:
        with k.loop(whole) as (i, _):
            unit(i, part.unit)
    if rest:
        unit(whole, rest)


def _emit_unit(k: Kernel, part: Part, bits: int, registers: Sequence[Val], at: Ptr, out: Ptr) -> None:
    """Registers, `count` of each group, to `out`, times the multipliers whose bytes are `at`."""
    size, count, channels = k.target.vector_bytes, part.count, part.channels(k.target)
    channel, element = _bytes_of_register(part.dot, k.target)
    codes = range(part.multipliers(len(registers) // count) * count)
    multipliers = [k.permute(k.load_lanes(at + c * channels, 8, channels), channel.tolist()) for c in codes]
    for n, q in enumerate(registers):
        g, c = divmod(n, count)
        signs, magnitudes = (multipliers[place * count + c] for place in planes.places_of(g * part.dot.group))
        own = (g % part.shared * part.dot.group + element) // MULTIPLE
        k.store(out + n * size, planes.multiply(k, q, bits, signs, magnitudes, own.tolist()))
