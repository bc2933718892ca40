"""Nibbles of a layer's weights to bytes in working memory, once for all of its pixels.

Where products are added up in 16 bits, nibbles must be taken apart before they are multiplied: 2.5 instructions for a register of weights,
in every tile of pixels. A layer of many pixels does it before it begins, and then runs the kernel of eight bits:

    in each tile:   pixels / TILE * unpacking              beforehand:   unpacking + STORE + LOAD

Nibbles with multipliers are always taken apart so, to the bytes m q. They lie in the order of K; every 16 along K share registers of
multipliers, one byte for each channel of a register, two bits for each four along K. Where the kernel of eight bits walks K in an order of its own
(`chain`), a table says where each group goes:

    block before:   header | places of the groups, where they are not in order | multipliers | nibbles
    block after:    header | registers
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import FORMS, GROUP, Chained, Dot, Maddubs, dot_of
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import const_data
from qcompiler.ir.types import DType
from qcompiler.passes.partition import Step
from qcompiler.passes.weight_grid import CODED, multipliers_of
from qcompiler.passes.weight_grid import GROUP as MULTIPLE

from .chain import WORD, header_bytes
from .conv import ConvConfig

PARAMETERS = ("packed", "unpacked")
TILE = 4
"""Pixels of a tile."""
MOVED = 4.0
"""Instructions' worth of storing a register and of loading it from the second-level cache."""
MOST_FORMS = 8
LINE = 64
STEP = 16
"""Bytes of K in the longest step of a form."""


@dataclass(frozen=True)
class Part:
    """`blocks` blocks of a header, which is copied, and `depth * count` registers of `form`. Headers are of `forms` forms of chains; without any
    there is none.

    `forms`: of so many forms the header counts chains, before it tells the places of groups of K; None: there is no header.
    `multiples`: nibbles have multipliers."""

    blocks: int
    depth: int
    count: int
    forms: int
    form: str
    multiples: bool

    @property
    def dot(self) -> Dot:
        """The form of the dot product."""
        return FORMS[self.form]

    @property
    def shared(self) -> int:
        """Groups of K that share bytes of multipliers."""
        return CODED // self.dot.group

    def channels(self, target: Target) -> int:
        """In a register."""
        return target.vector_bytes // self.dot.group

    @property
    def header(self) -> int:
        """Bytes that are copied."""
        return header_bytes(self.forms, self.depth) if self.forms else 0

    @property
    def registers(self) -> int:
        """Of weights."""
        return self.depth * self.count

    def before(self, target: Target) -> Before:
        """Where the parts of a packed block are."""
        table = _lines(WORD * self.depth) if self.multiples and isinstance(self.dot, Chained) else 0
        numbers = _lines(-(-self.depth // self.shared) * self.count * self.channels(target)) if self.multiples else 0
        weights = self.header + table + numbers
        return Before(self.header, self.header + table, weights, weights + -(-self.registers // 2) * target.vector_bytes)

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


def unpacks_before(step: Step, target: Target) -> bool:
    """Whether a convolution's nibbles are taken apart in working memory."""
    v, dot = step.producer, dot_of(target)
    if not isinstance(v.op, IntConv) or v.op.groups > 1 or v.inputs[0].type.dtype is DType.i16 or (w := const_data(v.inputs[1])) is None:
        return False
    if not nibbles.fit(w):
        return nibbles.fit_multiples(w)
    pixels, each = int(np.prod(v.shape[:3])), nibbles.unpacking(dot)
    return isinstance(dot, Maddubs) and pixels / TILE * each > each + MOVED


def unpack_scratch(step: Step, target: Target) -> int:
    """Bytes of working memory of a convolution, for whatever tiles it will have; 0: none."""
    if not unpacks_before(step, target):
        return 0
    channels, kh, kw, c = step.producer.inputs[1].shape
    registers = -(-channels // (4 * target.lanes)) * 4
    depth = kh * kw * -(-c // STEP) * (STEP // GROUP)
    return registers * (depth * target.vector_bytes + header_bytes(MOST_FORMS, depth))


def parts_of(config: ConvConfig, w: NDArray[np.generic]) -> tuple[Part, ...]:
    """How the weights `w` of `config` lie."""
    return tuple(Part(s.blocks, config.depth, s.count * config.dot.spread, len(s.forms), config.form, not nibbles.fit(w)) for s in config.segments)


def pack_parts(weights: bytes, parts: tuple[Part, ...], target: Target) -> bytes:
    """Bytes as the kernel of eight bits reads them, with pairs of registers as nibbles."""
    return b"".join(_pack_block(block, part, target) for part, block in _blocks(weights, parts, target))


def _blocks(weights: bytes, parts: tuple[Part, ...], target: Target) -> Iterator[tuple[Part, NDArray[np.int8]]]:
    data, at = np.frombuffer(weights, np.int8), 0
    for part in parts:
        size = part.after(target)
        for _ in range(part.blocks):
            yield part, data[at : at + size]
            at += size


def _pack_block(block: NDArray[np.int8], part: Part, target: Target) -> bytes:
    header, registers = block[: part.header], block[part.header :].reshape(part.depth, part.count, target.vector_bytes)
    before, extra = part.before(target), list[bytes]()
    if part.multiples:
        order = np.argsort(_places(header, part)) if before.multipliers > before.table else np.arange(part.depth)
        multipliers, registers = _divided(registers[order], part, target)
        extra = [(order * part.count * target.vector_bytes).astype(np.int32).tobytes()] if before.multipliers > before.table else []
        extra = [e.ljust(size, b"\0") for e, size in zip([*extra, multipliers.tobytes()], _sizes(before))]
    flat = registers.reshape(part.registers, -1)
    even = np.pad(flat, ((0, len(flat) % 2), (0, 0)))
    return b"".join([header.tobytes(), *extra, nibbles.pack_bytes(even).tobytes()])


def _sizes(b: Before) -> list[int]:
    return [size for size in (b.multipliers - b.table, b.weights - b.multipliers) if size]


def _places(header: NDArray[np.int8], part: Part) -> NDArray[np.int32]:
    """Where each group of K lies in the window, in the order of the chains: they ascend with K."""
    return header.view(np.int32)[part.forms : part.forms + part.depth]


def _divided(registers: NDArray[np.int8], part: Part, target: Target) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Bytes of multipliers [shared groups, count, channels] and what is left of registers [depth, count, bytes] in the order of K."""
    channel, element = _bytes_of_register(part.dot, target)
    places = np.lexsort((element, channel)).reshape(part.channels(target), -1)
    rows = registers[..., places].transpose(1, 2, 0, 3).reshape(part.count, len(places), -1)  # [count, channels, K]
    m = multipliers_of(rows, nibbles.BITS)
    whole = np.repeat(m, MULTIPLE, 2)[..., : rows.shape[2]].reshape(part.count, len(places), part.depth, -1).transpose(2, 0, 1, 3)
    return nibbles.coded(m).transpose(2, 0, 1), (registers // whole[..., channel, element]).astype(np.int8)


def _bytes_of_register(dot: Dot, target: Target) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(which of a register's channels each of its bytes belongs to, which element of a step it is)."""
    lane, step = (a.astype(np.int8) for a in np.indices((target.lanes, dot.group)))
    channel, element = (dot.pack(a).ravel()[: target.vector_bytes].astype(np.int64) for a in (lane, step))
    return channel, element


def emit_unpack(k: Kernel, parts: tuple[Part, ...]) -> None:
    """The body of a function with `PARAMETERS`."""
    packed, unpacked = k.parameters
    for part in parts:
        before, after = part.before(k.target).end, part.after(k.target)
        with k.split(part.blocks) as b:
            _emit_block(k, part, packed + b * before, unpacked + b * after)
        packed, unpacked = packed + part.blocks * before, unpacked + part.blocks * after


def _emit_block(k: Kernel, part: Part, packed: Ptr, unpacked: Ptr) -> None:
    size = k.target.vector_bytes
    if part.header:
        with k.loop(part.header // size) as (i, _):
            k.store(unpacked + i * size, k.load(packed + i * size, 8))
    (_emit_multiples if part.multiples else _emit_nibbles)(k, part, packed, unpacked + part.header)


def _emit_nibbles(k: Kernel, part: Part, packed: Ptr, unpacked: Ptr) -> None:
    size, pairs = k.target.vector_bytes, part.registers // 2
    packed = packed + part.before(k.target).weights
    if pairs:
        with k.loop(pairs) as (i, _):
            for n, r in enumerate(nibbles.load_bytes(k, packed + i * size)):
                k.store(unpacked + i * (2 * size) + n * size, r)
    if part.registers % 2:
        k.store(unpacked + 2 * pairs * size, nibbles.load_bytes(k, packed + pairs * size)[0])


def _emit_multiples(k: Kernel, part: Part, packed: Ptr, unpacked: Ptr) -> None:
    size, before, numbers = k.target.vector_bytes, part.before(k.target), part.count * part.channels(k.target)
    whole, rest = divmod(part.depth, part.shared)
    ordered = before.multipliers > before.table

    def shared(i: Index | int, groups: int) -> None:
        table = packed + before.table + i * (WORD * part.shared) if ordered else None
        weights = packed + before.weights + i * (part.shared * part.count * size // 2)
        out = unpacked if ordered else unpacked + i * (part.shared * part.count * size)
        _emit_shared(k, part, groups, packed + before.multipliers + i * numbers, weights, out, table)

    if whole:
        with k.loop(whole) as (i, _):
            shared(i, part.shared)
    if rest:
        shared(whole, rest)


def _emit_shared(k: Kernel, part: Part, groups: int, numbers: Ptr, weights: Ptr, out: Ptr, table: Ptr | None) -> None:
    """Registers that share bytes of multipliers: `groups` groups of `count`."""
    size, count, channels = k.target.vector_bytes, part.count, part.channels(k.target)
    channel, element = _bytes_of_register(part.dot, k.target)
    codes = [k.permute(k.load_lanes(numbers + c * channels, 8, channels), channel.tolist()) for c in range(count)]
    for first in range(0, groups * count, 2):
        for n, q in zip(range(first, min(first + 2, groups * count)), nibbles.load_bytes(k, weights + first // 2 * size)):
            g, c = divmod(n, count)
            place = out + n * size if table is None else out + k.load_index(table + g * WORD) + c * size
            k.store(place, nibbles.multiply(k, q, codes[c], ((g * part.dot.group + element) // MULTIPLE).tolist()))
