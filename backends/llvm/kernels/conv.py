"""Convolution as a matrix product that never builds its matrix: out[pixel, o] = epilogue(sum_k x[pixel, k] * w[o, k]).

The K dimension of an output pixel is a list of **runs** of consecutive elements in channels-last memory: for each kernel row the kw * C ones of the
window's row, or where pixels are not neighbours (dilation, an operand inside a larger buffer) C ones for each (row, column). A
run is read in groups of as many bytes as a step of the dot product takes (`form`, often four, each broadcast to all lanes: four elements, or two
of 16 bits); its length is rounded up to whole groups with zero weights, so reading into the neighbour does no harm.

A tile of `rows x columns` output pixels times `count` registers of channels stays in registers over the whole of K. Tiles at
the right and lower edge are moved back inside: some pixels are computed twice, to the same bytes. Weights are packed at compile
time in the order of reading: [block][run][group][register][lane][elements of a group], a byte each, which words widen when they are loaded; those of
at most four bits lie two registers in one (`nibbles`), or are taken apart in working memory when the first tile of a block needs them (`unpack`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.chains import Form
from qcompiler.backends.llvm.dot import Chained, Dot, XOperand, form_named
from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val, join
from qcompiler.backends.llvm.epilogue import Epilogue, Sources, load_pixels, store_pixels
from qcompiler.backends.llvm.instrs import prefetch
from qcompiler.backends.llvm.order import wide_order
from qcompiler.backends.llvm.reach import Loop
from qcompiler.backends.llvm.split import Shared, grid, joint, most_balanced
from qcompiler.backends.llvm.target import Target

from .chain import accumulate, header_bytes
from .unpack import Apart, Part

LINE = 64
"""Bytes of a cache line."""
FAR = 1 << 15
"""Bytes of weights from which on a layer fetches ahead."""
PARAMETERS = ("x", "residual", "weights", "constants", "tables", "out")
MEMORY = "unpacked"
"""One more, where weights are taken apart."""


@dataclass(frozen=True)
class Steps:
    """Bytes from one output position to the next, in an operand or the result."""

    image: int
    row: int
    column: int
    group: int = 0

    def at(self, p: Ptr, row: Index | int, column: Index | int) -> Ptr:
        """The address of a position."""
        return p + row * self.row + column * self.column

    def flattens(self, columns: int) -> bool:
        """Whether rows of `columns` follow each other without a gap."""
        return self.row == columns * self.column


@dataclass(frozen=True)
class Segment:
    """`blocks` blocks of `count` registers of channels, computed in tiles of `rows x columns` pixels.

    `unroll` groups of K are written out in the loop; they take turns in `chains` independent accumulators."""

    blocks: int
    count: int
    rows: int
    columns: int
    unroll: int = 1
    chains: int = 1
    forms: tuple[Form, ...] = ()
    """Where products are added up in 16 bits: the forms of chains, see `chain`."""


@dataclass(frozen=True)
class ConvConfig:
    """All that the code depends on; what differs between layers of equal configuration is behind pointers."""

    images: int
    rows: int
    columns: int
    channels: int
    """Output channels per group."""
    groups: int
    runs: tuple[tuple[int, int], ...]
    """(number, bytes between) of the runs of a window, outermost first."""
    run: int
    """Groups in a run."""
    x: Steps
    out: Steps
    residual: Steps | None
    form: str
    """Name of the form of the dot product."""
    segments: tuple[Segment, ...]
    epilogue: Epilogue
    nibbles: bool = False
    """Two registers of weights lie in one."""
    width: int = 0
    """Pixels in a row, where rows follow each other without a gap and are walked as one; 0 otherwise."""
    parts: tuple[Part, ...] = ()
    """How the weights of each segment lie before they are taken apart, block by block; (): as they are read."""

    @property
    def banded(self) -> bool:
        """Whether threads that share columns share whole rows of `width` pixels, as the layers before and after it do."""
        return self.images == self.rows == 1 and self.width >= max(s.columns for s in self.segments)

    @property
    def dot(self) -> Dot:
        """The form of the dot product."""
        return form_named(self.form)

    @property
    def depth(self) -> int:
        """Groups in all of K."""
        return prod(n for n, _ in self.runs) * self.run


def pack_weights(w: NDArray[np.int8], config: ConvConfig, target: Target) -> bytes:
    """w [O, number of runs, elements of a run] in the order in which the kernel reads it."""
    blocks = (pack_registers(b, config.dot) for _, b in segment_weights(w, config, target))
    return b"".join((nibbles.pack(b, config.dot) if config.nibbles else b).tobytes() for b in blocks)


def pack_registers(w: NDArray[np.int8], dot: Dot) -> NDArray[np.int8]:
    """[..., registers of results, lanes, elements of a group] to [..., registers of weights, bytes]."""
    packed = dot.pack(np.ascontiguousarray(w))
    return packed.reshape(*w.shape[:-3], w.shape[-3] * dot.spread, -1)


def segment_weights(w: NDArray[np.int8], config: ConvConfig, target: Target) -> Iterator[tuple[tuple[int, int], NDArray[np.int8]]]:
    """(group of the convolution, segment) and its weights [blocks, groups of K, registers of results, lanes, elements of a group], in order."""
    size = config.dot.elements
    padded = np.pad(w, ((0, 0), (0, 0), (0, config.run * size - w.shape[2]))).reshape(config.groups, config.channels, -1, size)
    for g, channels in enumerate(padded):
        for i, (start, s) in enumerate(starts(config.segments, target)):
            number = s.blocks * s.count * target.lanes
            here = channels[start : start + number]
            here = np.pad(here, ((0, number - here.shape[0]), (0, 0), (0, 0)))
            lanes = here.reshape(s.blocks, s.count * target.lanes, -1, size)[:, wide_order(target, 32, s.count)]
            yield (g, i), lanes.reshape(s.blocks, s.count, target.lanes, -1, size).transpose(0, 3, 1, 2, 4)


def starts(segments: Sequence[Segment], target: Target) -> Iterator[tuple[int, Segment]]:
    """(first channel, segment)."""
    channel = 0
    for s in segments:
        yield channel, s
        channel += s.blocks * s.count * target.lanes


# --- code ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operands:
    """Where the loops stand: pointers to x, the residual, weights, constants, tables and the result, to memory for weights that are taken apart,
    and the block's first channel."""

    x: Ptr
    residual: Ptr
    weights: Ptr
    constants: Ptr
    tables: Ptr
    out: Ptr
    channel: Index | int = 0
    ahead: Ptr | None = None
    """What to fetch into the cache meanwhile."""
    unpacked: Ptr | None = None

    @classmethod
    def of(cls, k: Kernel) -> Operands:
        """The arguments of a function with `PARAMETERS`."""
        x, residual, weights, constants, tables, out, *unpacked = k.parameters
        return cls(x, residual, weights, constants, tables, out, unpacked=unpacked[0] if unpacked else None)


def emit_conv(k: Kernel, config: ConvConfig) -> None:
    """The body of a function with `PARAMETERS`."""
    t = k.target
    residual = config.residual or Steps(0, 0, 0)
    per_group = sum(s.blocks * _block_bytes(config, s, t) for s in config.segments)
    constants = sum(s.blocks * config.epilogue.block_bytes(t, s.count) for s in config.segments)
    base = Operands.of(k)
    axis = split_axis(config)
    with k.split(config.groups, axis == "groups") as g:
        here = Operands(
            base.x + g * config.x.group,
            base.residual + g * residual.group,
            base.weights + (config.parts[0].window if config.parts else 0) + g * per_group,
            base.constants + g * constants,
            base.tables,
            base.out + g * config.out.group,
            g * config.channels,
            unpacked=base.unpacked,
        )
        for n, (start, s) in enumerate(starts(config.segments, t)):
            part = config.parts[n] if config.parts else None
            _emit_segment(k, config, s, part, start, here, axis)
            read, numbers = _block_bytes(config, s, t), config.epilogue.block_bytes(t, s.count)
            stored = part.before(t).end if part else read
            here = replace(here, weights=here.weights + s.blocks * stored, constants=here.constants + s.blocks * numbers)
            here = replace(here, unpacked=here.unpacked + s.blocks * read if here.unpacked else None)


def _block_bytes(config: ConvConfig, s: Segment, t: Target) -> int:
    """Bytes of a block's weights as they are read."""
    header = header_bytes(len(s.forms), config.depth) if s.forms else 0
    return header + config.depth * _group_bytes(config, s, t)


def _group_bytes(config: ConvConfig, s: Segment, t: Target) -> int:
    """Bytes of the weights of one group of K."""
    return s.count * config.dot.spread * t.vector_bytes // (2 if config.nibbles else config.dot.itemsize)


AXES: dict[str, Shared] = {"rows": (2, 3), "columns": (3, 4), "images": (1, 2), "blocks": (0, 1), "tiles": (1, 4), "all": (0, 4)}
"""Which of the loops over blocks, images, rows and columns threads may share."""


def split_axis(config: ConvConfig) -> str:
    """Which loops threads share: the best balanced; of equal ones, blocks where weights are more to read than x is, else rows, which the next
    layer can be divided into as well; several loops as one where no single one has rounds enough. Weights that are taken apart should be so once."""
    area = config.images * config.rows * config.columns
    heavy = config.depth * config.dot.elements * config.channels > area * config.x.column
    sizes, costs = [_sizes(config, s) for s in config.segments], [float(s.blocks * s.count) for s in config.segments]
    axes = {name: joint(sizes, costs, shared) for name, shared in AXES.items()} | {"groups": [(config.groups, 1.0)]}
    single = ("blocks", "rows", "columns", "images", "groups") if heavy else ("rows", "columns", "images", "groups", "blocks")
    return most_balanced({name: axes[name] for name in (("blocks", "all") if config.parts else (*single, "tiles", "all"))})


def _sizes(config: ConvConfig, s: Segment) -> tuple[int, int, int, int]:
    """Rounds of the loops over blocks, images, and tiles in rows and columns."""
    return s.blocks, config.images, -(-config.rows // s.rows), -(-config.columns // s.columns)


def _emit_segment(k: Kernel, config: ConvConfig, s: Segment, part: Part | None, start: int, at: Operands, axis: str) -> None:
    size = s.count * k.target.lanes
    rest = config.channels - start - (s.blocks - 1) * size
    if rest < size and s.blocks > 1:
        raise ValueError("only a segment of one block may be partly empty")
    weights, numbers = _block_bytes(config, s, k.target), config.epilogue.block_bytes(k.target, s.count)
    apart = Apart.of(k, part, Operands.of(k).weights, at.unpacked, axis == "blocks") if part and at.unpacked else None
    with _positions(k, config, s, axis) as (b, n, row, column, tile):
        block = Operands(
            at.x + n * config.x.image,
            _moved(at.residual, config.residual, n) + plus(b * size, start) * (config.epilogue.residual_bits // 8),
            apart.block(k, b, at.weights) if apart else at.weights + b * weights,
            at.constants + b * numbers,
            at.tables,
            at.out + n * config.out.image + plus(b * size, start) * config.epilogue.itemsize,
            plus(at.channel, b * size + start),
        )
        here = replace(block, ahead=_ahead(k, config, s, block, tile))
        _emit_tile(k, config, s, min(rest, size), here, row, column)


@contextmanager
def _positions(k: Kernel, config: ConvConfig, s: Segment, axis: str) -> Iterator[tuple[Index | int, ...]]:
    """The loops of a segment: within them block, image, first row and column of a tile, and its number in the image."""
    sizes = _sizes(config, s)
    if axis == "columns" and config.banded and k.span is not None:
        with grid(k, sizes[:3], None) as (b, n, _), k.bands(config.columns // config.width, config.width, s.columns) as column:
            yield b, n, 0, column, column if isinstance(column, int) else Index(k, k.b.udiv(column.ir, k.i64(s.columns)))
        return
    with grid(k, sizes, AXES.get(axis)) as (b, n, i, j):
        yield b, n, tile_start(i, s.rows, config.rows), tile_start(j, s.columns, config.columns), plus(i * sizes[3], j)


def loops_of(config: ConvConfig) -> tuple[Loop, ...] | None:
    """The split loops of a convolution whose threads share the rows of one image, or the pixels of its only row; None for others."""
    axis = split_axis(config)
    if config.images > 1 or config.groups > 1 or axis != ("rows" if config.rows > 1 else "columns"):
        return None
    if axis == "columns" and config.banded:
        return (Loop(config.columns // config.width, config.width, config.columns),)
    if axis == "columns":
        return tuple(Loop(_sizes(config, s)[3], s.columns, config.columns) for s in config.segments)
    return tuple(Loop(_sizes(config, s)[2], s.rows, config.rows) for s in config.segments)


def _ahead(k: Kernel, config: ConvConfig, s: Segment, block: Operands, tile: Index | int) -> Ptr | None:
    """What the next block reads, or the next layer: weights lie in the order of use. Tile t fetches part t of it.

    Weights of a large network come from memory that is far, and no hardware looks ahead from one panel to the next."""
    lines = _lines_ahead(config, s, k.target)
    if not lines:
        return None
    part = config.depth // s.unroll * lines * LINE
    panel = _block_bytes(config, s, k.target)
    offset = tile * part
    return block.weights + panel + (offset if isinstance(offset, int) else offset.minimum(max(0, panel - part)))


def _lines_ahead(config: ConvConfig, s: Segment, t: Target) -> int:
    """Cache lines of the next block to fetch in each round of the K loop; 0: not worth it, as these weights stay near."""
    if not t.prefetches or s.forms or config.parts or config.depth * config.dot.elements * config.channels * config.groups < FAR:
        return 0
    tiles = config.images * -(-config.rows // s.rows) * -(-config.columns // s.columns)
    return -(-s.unroll * _group_bytes(config, s, t) // (LINE * tiles))


def plus(a: Index | int, b: Index | int) -> Index | int:
    """a + b, a constant where both are."""
    return b + a if isinstance(a, int) else a + b


def _moved(p: Ptr, steps: Steps | None, image: Index | int) -> Ptr:
    return p + image * steps.image if steps else p


def tile_start(i: Index | int, size: int, whole: int) -> Index | int:
    """First position of tile i; the last tile is moved back inside."""
    if isinstance(i, int):
        return 0
    start = i * size
    return start if whole % size == 0 or isinstance(start, int) else start.minimum(whole - size)


def _emit_tile(k: Kernel, config: ConvConfig, s: Segment, nbytes: int, at: Operands, row: Index | int, column: Index | int) -> None:
    pixels = [(r, c) for r in range(s.rows) for c in range(s.columns)]
    x = config.x.at(at.x, row, column)
    acc = _accumulate(k, config, s, [config.x.at(x, r, c).offset - x.offset for r, c in pixels], x, at)
    out = config.out.at(at.out, row, column)
    other = config.residual.at(at.residual, row, column) if config.residual else at.residual
    joined = 4 // s.count
    for first in range(0, len(pixels), joined):
        here = pixels[first : first + joined]

        def residual(here: list[tuple[int, int]] = here) -> Val:
            assert config.residual is not None
            pointers = [config.residual.at(other, r, c) for r, c in here]
            return load_pixels(k, pointers, s.count, nbytes, config.epilogue.residual_stored, config.epilogue.residual_bits)

        bundle = join(_filled(acc[first : first + joined]))
        y = config.epilogue.apply(k, bundle, at.constants, s.count, Sources(residual, at.tables, at.channel, nbytes))
        store_pixels(k, y, [config.out.at(out, r, c) for r, c in here], s.count, nbytes, config.epilogue.stored)


def _filled(pixels: Sequence[Val]) -> list[Val]:
    """One, two or four pixels: the last one repeated."""
    size = 1 << (len(pixels) - 1).bit_length()
    return [*pixels, *[pixels[-1]] * (size - len(pixels))]


def _accumulate(k: Kernel, config: ConvConfig, s: Segment, offsets: Sequence[int], x: Ptr, at: Operands) -> list[Val]:
    """Accumulators of all pixels of a tile, over all runs."""
    dot, first = config.dot, config.epilogue.initial(k, at.constants, s.count)
    late = dot.late or config.nibbles
    start = k.splat(0, 32).repeat(s.count * dot.spread) if late else dot.start(k, first)
    if isinstance(dot, Chained):
        found = accumulate(k, dot, s.forms, config.depth, offsets, x, at.weights, [start] * len(offsets), config.nibbles)
    else:
        found = [nibbles.sums(k, dot, a) if config.nibbles else a for a in _walked(k, config, s, offsets, x, at, start)]
    totals = [pixel for a in found for pixel in dot.finish(k, a)][: len(offsets)]
    return [first + total for total in totals] if late else totals


def _walked(k: Kernel, config: ConvConfig, s: Segment, offsets: Sequence[int], x: Ptr, at: Operands, start: Val) -> list[Val]:
    """Accumulators of all x operands of a tile, over all runs."""
    dot, registers, lines = config.dot, _group_bytes(config, s, k.target), _lines_ahead(config, s, k.target)
    operands = _operands(offsets, dot.pixels)
    zero = k.splat(0, 32).repeat(len(start))
    state: list[Val | Ptr] = [at.weights, at.ahead or at.weights, *[start] * len(operands), *[zero] * (len(operands) * (s.chains - 1))]

    def groups(state: list[Val | Ptr], x: Ptr, number: int) -> None:
        weights, ahead = state[:2]
        assert isinstance(weights, Ptr)
        assert isinstance(ahead, Ptr)
        for line in range(lines):
            prefetch(k, (ahead + line * LINE).ir)
        # broadcasts are written next to their use: given all at once, LLVM keeps them in registers and spills accumulators
        xs = [dot.consecutive(k, [x + offset for offset in pixels], number) for pixels in operands] if dot.wide > 1 else []
        for u in range(number):
            place = weights + u * registers
            if dot.fenced:
                state[2:] = _fenced(k, config, place, [x[u] for x in xs], state[2:])
                continue
            w = nibbles.load(k, dot, place, len(start)) if config.nibbles else dot.load(k, place, len(start))
            for n, (offset, *_) in enumerate(operands):
                at = 2 + u % s.chains * len(operands) + n
                acc = state[at]
                assert isinstance(acc, Val)
                operand = xs[n][u] if xs else dot.broadcast(k, x + (offset + dot.group * u))
                state[at] = dot.all(k, acc, operand, w)
        state[:2] = weights + number * registers, ahead + lines * LINE

    def walk(runs: Sequence[tuple[int, int]], state: list[Val | Ptr], x: Ptr) -> list[Val | Ptr]:
        if runs:
            with k.loop(runs[0][0], state) as (i, inner):
                inner[:] = walk(runs[1:], inner, x + i * runs[0][1])
            return inner
        rounds, rest = divmod(config.run, s.unroll)
        with k.loop(rounds, state) as (i, inner):
            groups(inner, x + i * (dot.group * s.unroll), s.unroll)
        if rest:
            groups(inner, x + rounds * dot.group * s.unroll, rest)
        return inner

    done = [v for v in walk(config.runs, state, x)[2:] if isinstance(v, Val)]
    totals = done[: len(operands)]
    for chain in range(1, s.chains):
        totals = [a + b for a, b in zip(totals, done[chain * len(operands) :])]
    return totals


def _fenced(k: Kernel, config: ConvConfig, weights: Ptr, xs: Sequence[XOperand], accs: Sequence[Val | Ptr]) -> list[Val]:
    """The accumulators after one group, two registers of weights at a time."""
    dot, found = config.dot, list[list[Any]]([] for _ in xs)
    for n in range(0, len(_val(accs[0])), 2):
        k.fence()
        place = weights + n * k.target.vector_bytes // (2 if config.nibbles else 1)
        w = nibbles.load(k, dot, place, 2) if config.nibbles else dot.load(k, place, 2)
        for registers, x, acc in zip(found, xs, accs, strict=True):
            registers += [dot.dot(k, a, x, r) for a, r in zip(_val(acc).regs[n : n + 2], w.regs)]
    return [Val(k, tuple(r), 32) for r in found]


def _val(v: Val | Ptr) -> Val:
    assert isinstance(v, Val)
    return v


def _operands(offsets: Sequence[int], pixels: int) -> list[tuple[int, ...]]:
    """The offsets of the pixels of each x operand: the last pixel is repeated."""
    filled = [*offsets, *[offsets[-1]] * (-len(offsets) % pixels)]
    return [tuple(filled[i : i + pixels]) for i in range(0, len(filled), pixels)]
