"""Nibbles of a layer's weights to bytes in working memory, once for all of its pixels.

Where products are added up in 16 bits, nibbles must be taken apart before they are multiplied: 2.5 instructions for a register of weights,
in every tile of pixels. A layer of many pixels does it before it begins, and then runs the kernel of eight bits:

    in each tile:   pixels / TILE * unpacking              beforehand:   unpacking + STORE + LOAD
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import GROUP, Maddubs, dot_of
from qcompiler.backends.llvm.dsl import Kernel, Ptr, Val
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import const_data
from qcompiler.passes.partition import Step

from .chain import header_bytes
from .conv import ConvConfig

PARAMETERS = ("packed", "unpacked")
TILE = 4
"""Pixels of a tile."""
MOVED = 4.0
"""Instructions' worth of storing a register and of loading it from the second-level cache."""
MOST_FORMS = 8


@dataclass(frozen=True)
class Part:
    """`blocks` blocks of a header, which is copied, and so many registers."""

    blocks: int
    header: int
    registers: int

    def sizes(self, target: Target) -> tuple[int, int]:
        """Bytes of a block before and after."""
        size = target.vector_bytes
        return self.header + -(-self.registers // 2) * size, self.header + self.registers * size


def unpacks_before(step: Step, target: Target) -> bool:
    """Whether a convolution's nibbles are taken apart in working memory."""
    v, dot = step.producer, dot_of(target)
    if not isinstance(v.op, IntConv) or v.op.groups > 1 or not isinstance(dot, Maddubs):
        return False
    w, pixels, each = const_data(v.inputs[1]), int(np.prod(v.shape[:3])), nibbles.unpacking(dot)
    return w is not None and pixels / TILE * each > each + MOVED and nibbles.fit(w)


def unpack_scratch(step: Step, target: Target) -> int:
    """Bytes of working memory of a convolution, for whatever tiles it will have; 0: none."""
    if not unpacks_before(step, target):
        return 0
    channels, kh, kw, c = step.producer.inputs[1].shape
    registers = -(-channels // (4 * target.lanes)) * 4
    depth = kh * kw * -(-c // GROUP)
    return registers * (depth * target.vector_bytes + header_bytes(MOST_FORMS, depth))


def parts_of(config: ConvConfig) -> tuple[Part, ...]:
    """How the weights of `config` lie."""
    return tuple(Part(s.blocks, header_bytes(len(s.forms), config.depth), config.depth * s.count) for s in config.segments)


def pack_parts(weights: bytes, parts: tuple[Part, ...], target: Target) -> bytes:
    """Bytes as the kernel of eight bits reads them, with pairs of registers as nibbles."""
    return b"".join(_pack_block(block, part, target).tobytes() for part, block in _blocks(weights, parts, target))


def _blocks(weights: bytes, parts: tuple[Part, ...], target: Target) -> Iterator[tuple[Part, NDArray[np.int8]]]:
    data, at = np.frombuffer(weights, np.int8), 0
    for part in parts:
        size = part.sizes(target)[1]
        for _ in range(part.blocks):
            yield part, data[at : at + size]
            at += size


def _pack_block(block: NDArray[np.int8], part: Part, target: Target) -> NDArray[np.int8]:
    registers = block[part.header :].reshape(-1, target.vector_bytes)
    even = np.pad(registers, ((0, len(registers) % 2), (0, 0)))
    return np.concatenate([block[: part.header], nibbles.pack(even, dot_of(target)).ravel()])


def emit_unpack(k: Kernel, parts: tuple[Part, ...]) -> None:
    """The body of a function with `PARAMETERS`."""
    packed, unpacked = k.parameters
    for part in parts:
        before, after = part.sizes(k.target)
        with k.split(part.blocks) as b:
            _emit_block(k, part, packed + b * before, unpacked + b * after)
        packed, unpacked = packed + part.blocks * before, unpacked + part.blocks * after


def _emit_block(k: Kernel, part: Part, packed: Ptr, unpacked: Ptr) -> None:
    size, dot = k.target.vector_bytes, dot_of(k.target)
    with k.loop(part.header // size) as (i, _):
        k.store(unpacked + i * size, k.load(packed + i * size, 8))
    packed, unpacked = packed + part.header, unpacked + part.header
    pairs = part.registers // 2
    if pairs:
        with k.loop(pairs) as (i, _):
            for n, r in enumerate(nibbles.load(k, dot, packed + i * size, 2).regs):
                k.store(unpacked + i * (2 * size) + n * size, Val(k, (r,), 8))
    if part.registers % 2:
        k.store(unpacked + 2 * pairs * size, nibbles.load(k, dot, packed + pairs * size, 2)[:1])
