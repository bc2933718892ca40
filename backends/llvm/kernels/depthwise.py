"""Depthwise convolution: every channel has its own kernel, so lanes are channels and K is the taps of the window.

Taps are taken in groups of up to four, of 16-bit channels two: their registers are interleaved so that each 32-bit lane holds the four bytes
of its channel, and one dot product per register adds the taps of a group. A group is a set of positions relative to the output
pixel; neighbouring pixels that need the same bytes share the interleaved registers: with groups along columns of the window a tile of pixels in
a row reuses nearly all of them. Which grouping and how many pixels: whatever takes the fewest instructions.

A remainder of channels is done in narrower vectors where they exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm.dot import Dot, XOperand, form_named, forms_for
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, Sources, load_pixels, store_pixels
from qcompiler.backends.llvm.order import wide_order
from qcompiler.backends.llvm.split import Shared, grid, joint, most_balanced
from qcompiler.backends.llvm.target import Target
from qcompiler.backends.llvm.words import from_memory

from .conv import Operands, Steps, plus, tile_start

Tap = tuple[int, int]
Grouping = tuple[tuple[Tap, ...], ...]
COUNT = 4
"""Registers of int32 per register of channels."""
MOST_TAPS = 4
"""In a group."""
MAX_TAPS = 49
"""Larger windows loop over their rows."""
EPILOGUE_COST = 20


@dataclass(frozen=True)
class DepthwiseConfig:
    """All that the code depends on."""

    images: int
    rows: int
    columns: int
    channels: int
    window_rows: int
    """Rounds of the loop over window rows; 1 where all taps are in `groups`."""
    groups: Grouping
    tap: tuple[int, int]
    """Bytes from a tap to the one below and to the right."""
    tile: int
    """Neighbouring output pixels computed at once."""
    x: Steps
    out: Steps
    residual: Steps | None
    epilogue: Epilogue
    signed: bool = True
    """False: the dot products are of x + 128."""
    bits: int = 8
    """Of the elements of x."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element of x."""
        return self.bits // 8

    @property
    def group(self) -> int:
        """Taps of a group."""
        return MOST_TAPS // self.itemsize

    def dot(self, target: Target) -> Dot:
        """The form of the dot product."""
        return form_named(forms_for(target, self.bits)[0])


def widths(channels: int, target: Target) -> Iterator[tuple[int, int, int]]:
    """(first channel, channels, vector bits) of the parts that `channels` are computed in."""
    whole = channels - channels % target.vector_bytes
    if whole:
        yield 0, whole, target.vector_bits
    if channels > whole:
        bits = 8 * max(16, 1 << (channels - whole - 1).bit_length())
        yield whole, channels - whole, min(bits, target.vector_bits)


def pack_weights(w: NDArray[np.int8], config: DepthwiseConfig, target: Target) -> bytes:
    """w [C, kh, kw] as [block][window row][group][register][lane][taps of a group]."""
    return b"".join(_packed(w[start : start + n], config, target.narrowed(bits)) for start, n, bits in widths(config.channels, target))


def _packed(w: NDArray[np.int8], config: DepthwiseConfig, target: Target) -> bytes:
    size = target.vector_bytes
    quads = tap_groups(np.pad(w, ((0, -w.shape[0] % size), (0, 0), (0, 0))), config)
    blocks = quads.reshape(*quads.shape[:3], -1, size)[..., wide_order(target, 32, COUNT)]
    lanes = blocks.transpose(3, 0, 1, 4, 2).reshape(blocks.shape[3], config.window_rows, len(config.groups), COUNT, target.lanes, config.group)
    return config.dot(target).pack(np.ascontiguousarray(lanes)).tobytes()


def tap_groups(w: NDArray[np.int8], config: DepthwiseConfig) -> NDArray[np.int8]:
    """w [C, kh, kw] as [window row, group, taps of a group, C]."""
    zeros = np.zeros_like(w[:, 0, 0])
    rows = [[[w[:, i + r, j] for i, j in g] for g in config.groups] for r in range(config.window_rows)]
    return np.array([[[*g, *[zeros] * (config.group - len(g))] for g in groups] for groups in rows])


# --- choice ----------------------------------------------------------------------------------------------------------


@cache
def choose(kernel: tuple[int, int], columns: int, step: int, dilation: int, registers: int, group: int = MOST_TAPS) -> tuple[Grouping, int]:
    """The grouping of a window's taps and the number of pixels with the fewest instructions; `step` is the stride in a row."""
    most = max(1, (registers - 6) // COUNT)
    options = ((g, n) for g in groupings(*kernel, group) for n in range(1, min(columns, most) + 1))
    return min(options, key=lambda o: _cost(o[0], o[1], columns, step, dilation))


def groupings(rows: int, columns: int, group: int) -> Iterator[Grouping]:
    """Taps in groups of up to `group`: along columns, along rows, or in row-major order across the window."""
    taps = [(i, j) for i in range(rows) for j in range(columns)]
    for lines in ([taps[j::columns] for j in range(columns)], [taps[i * columns : (i + 1) * columns] for i in range(rows)], [taps]):
        yield tuple(tuple(line[n : n + group]) for line in lines for n in range(0, len(line), group))


def _cost(groups: Grouping, pixels: int, columns: int, step: int, dilation: int) -> float:
    shared = {tuple((i, j * dilation + p * step) for i, j in g) for p in range(pixels) for g in groups}
    tile = sum(4 + 2 * len(g) for g in shared) + pixels * (COUNT * len(groups) + EPILOGUE_COST) + 10
    return -(-columns // pixels) * tile


# --- code ------------------------------------------------------------------------------------------------------------


def emit_depthwise(k: Kernel, config: DepthwiseConfig) -> None:
    """The body of a function with `conv.PARAMETERS`."""
    at, axis = Operands.of(k), split_axis(config, k.target)
    for start, channels, bits in widths(config.channels, k.target):
        part = k.narrowed(bits)
        size = part.target.vector_bytes
        weights, constants = _block_sizes(config, part.target)
        blocks = -(-channels // size)
        with grid(k, _sizes(config, channels, part.target), AXES[axis]) as (b, n, row, j):
            channel = b * size
            residual = at.residual + plus(channel, start) * (config.epilogue.residual_bits // 8)
            here = Operands(
                at.x + plus(channel, start) * config.itemsize + n * config.x.image,
                residual + n * config.residual.image if config.residual else residual,
                at.weights + b * weights,
                at.constants + b * constants,
                at.tables,
                at.out + plus(channel, start) * config.epilogue.itemsize + n * config.out.image,
                plus(start, channel),
            )
            _emit_tile(part, config, min(channels, size), here, row, tile_start(j, config.tile, config.columns))
        at = replace(at, weights=at.weights + blocks * weights, constants=at.constants + blocks * constants)


AXES: dict[str, Shared] = {"rows": (2, 3), "blocks": (0, 1), "images": (1, 2), "tiles": (1, 4), "all": (0, 4)}
"""Which of the loops over blocks, images, rows and columns threads may share."""


def split_axis(config: DepthwiseConfig, target: Target) -> str:
    """Which loops threads share: the best balanced, a single one where it has rounds enough."""
    parts = list(widths(config.channels, target))
    sizes, costs = [_sizes(config, n, target.narrowed(bits)) for _, n, bits in parts], [float(n) for _, n, _ in parts]
    return most_balanced({name: joint(sizes, costs, shared) for name, shared in AXES.items()})


def _sizes(config: DepthwiseConfig, channels: int, target: Target) -> tuple[int, int, int, int]:
    """Rounds of the loops over blocks of `channels`, images, rows, and tiles in a row."""
    return -(-channels // target.vector_bytes), config.images, config.rows, -(-config.columns // config.tile)


def _block_sizes(config: DepthwiseConfig, target: Target) -> tuple[int, int]:
    weights = config.window_rows * len(config.groups) * _group_bytes(config, target)
    return weights, config.epilogue.block_bytes(target, COUNT)


def _group_bytes(config: DepthwiseConfig, target: Target) -> int:
    """Bytes of the weights of one group of taps."""
    return COUNT * target.vector_bytes // config.itemsize


def _emit_tile(k: Kernel, config: DepthwiseConfig, nbytes: int, at: Operands, row: Index | int, column: Index | int) -> None:
    x = config.x.at(at.x, row, column)
    size = len(config.groups) * _group_bytes(config, k.target)
    first = config.epilogue.initial(k, at.constants, COUNT)
    with k.loop(config.window_rows, [first] * config.tile) as (r, acc):
        acc[:] = _window(k, config, x + r * config.tap[0], at.weights + r * size, acc)
    out = config.out.at(at.out, row, column)
    for p in range(config.tile):
        sources = Sources(partial(_residual, k, config, at, row, column, p, nbytes), at.tables, at.channel, nbytes)
        y = config.epilogue.apply(k, acc[p], at.constants, COUNT, sources)
        store_pixels(k, y, [config.out.at(out, 0, p)], COUNT, nbytes, config.epilogue.stored)


def _residual(k: Kernel, config: DepthwiseConfig, at: Operands, row: Index | int, column: Index | int, pixel: int, nbytes: int) -> Val:
    assert config.residual is not None
    p = config.residual.at(config.residual.at(at.residual, row, column), 0, pixel)
    return load_pixels(k, [p], COUNT, nbytes, config.epilogue.residual_stored, config.epilogue.residual_bits)


def _window(k: Kernel, config: DepthwiseConfig, x: Ptr, weights: Ptr, acc: Sequence[Val]) -> list[Val]:
    """The accumulators of a tile after all groups, in the order of the columns that they read."""
    dot, size, found = config.dot(k.target), _group_bytes(config, k.target), list(acc)
    operands = dict[tuple[int, ...], list[XOperand]]()
    for _, offsets, g, p in sorted(_uses(config)):
        if offsets not in operands:
            taps = [_channels(k, config, x + o) for o in offsets]
            operands[offsets] = dot.interleave(k, [*taps, *[taps[-1]] * (config.group - len(taps))], config.signed)
        w = dot.load(k, weights + g * size, COUNT)
        lanes = zip(found[p].regs, operands[offsets], w.regs)
        found[p] = Val(k, tuple(dot.dot(k, a, o, r) for a, o, r in lanes), 32)
    return found


def _channels(k: Kernel, config: DepthwiseConfig, p: Ptr) -> Val:
    """The channels of a block at `p`: a register, or two of 16 bits in the order that `sext` gives them."""
    return k.load(p, 8) if config.bits == 8 else from_memory(k, k.load(p, 16, 2), COUNT)


def _uses(config: DepthwiseConfig) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
    """(column, offsets of the taps in bytes, group, pixel)."""
    below, right = config.tap
    for g, taps in enumerate(config.groups):
        for p in range(config.tile):
            offsets = tuple(i * below + j * right + p * config.x.column for i, j in taps)
            yield min(offset % below for offset in offsets) if below else 0, offsets, g, p
