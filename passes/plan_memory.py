"""Plan memory: give every stored value a `Layout`, turn data movement into copies or into nothing, and fill halos.

The plan is a flat list of actions for the backend: `Run` a kernel, `Copy` between two layouts, `Fill` with a constant.

- **Halo.** Convolutions and `IntSumPool` read their padding from memory: the buffer of their operand has border rows and
  columns, as wide as the widest reader needs, filled with the zero point before the buffer's first writer. `MaxPool` clips.
- **Parts.** An operand of `Concat` (or of a constant `Pad`) is written by its producer straight into the result's
  buffer, unless it has its own halo that the result cannot share, already lies elsewhere, or is not computed here.
  A value that is only read to be reshaped into a part, or into a value with a halo, is written there too.
- **Views.** `Reshape`, `Slice` and a `Transpose` that only moves axes of size 1 address their operand's buffer where
  strides can say it. A slice of channels shares its operand's halo.
- **Movement.** What is left of `Concat`, `Pad`, `Reshape`, `Slice`, `Transpose`, `Expand` and `Tile` are copies.
- **Ends.** A program output that nothing else reads is written straight to the caller's buffer, else copied there.
  Convolutions never read the caller's memory (no halo, no slack, plain storage): such inputs are copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.integer import IntConv, IntNarrow
from qcompiler.ir.ops import Concat, Expand, Pad, Reshape, Slice, Tile, Transpose

from .arena import Block, arena_size, padded_size, place
from .layouts import ARENA, Buffer, Layout, Space, dense, dense_strides, itemsize
from .partition import Step
from .placement import ROLES, SCRATCH, Halo, Placement, is_movement, slots


@dataclass(frozen=True, eq=False)
class Run:
    """Run the kernel of `step`; `operands` are the layouts of `step.operands`."""

    step: Step
    operands: tuple[Layout, ...]
    result: Layout
    scratch: Layout | None = None
    """Working memory of the kernel, which it shares with nothing while it runs."""


@dataclass(frozen=True)
class Copy:
    """``target[i] = source[i]`` for all i within `shape`; source strides may be zero or negative, any may be innermost.

    `value` names what is copied and gives the element type; where `source` is a constant, its data.
    """

    value: Value
    shape: tuple[int, ...]
    source: Layout
    target: Layout
    trailing: int | None = None
    """What one more element behind each row of the target is set to by the way: a channel of one number beside a few of pixels."""


@dataclass(frozen=True)
class Fill:
    """``target[i] = q`` for all i within `shape`: the halo of `value`, or the border that a `Pad` invents."""

    value: Value
    shape: tuple[int, ...]
    target: Layout
    q: int


Action = Run | Copy | Fill


def read_by(a: Action) -> tuple[Layout, ...]:
    """What an action reads."""
    match a:
        case Run():
            return a.operands
        case Copy():
            return (a.source,)
    return ()


@dataclass(frozen=True, eq=False)
class Plan:
    """What to do, where everything lies, and how large the arena is. `inputs` and `outputs` are the program's values."""

    actions: tuple[Action, ...]
    layouts: Mapping[Value, Layout]
    blocks: tuple[Block, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def arena_size(self) -> int:
        """Bytes of arena that the caller hands in, aligned to 64."""
        return arena_size(self.blocks)

    @property
    def fills(self) -> tuple[Fill, ...]:
        """The filling actions among `actions`."""
        return tuple(a for a in self.actions if isinstance(a, Fill))

    @property
    def beside(self) -> tuple[bool, ...]:
        """For each action, whether it may run at the same time as those behind it, up to the next for which this is false: a `Fill` of what
        that one does not read. Borders and what they surround are different bytes, so that one may write the other."""
        found, following = list[bool](), len(self.actions)
        for n in reversed(range(len(self.actions))):
            a = self.actions[n]
            read = {self._owner(x, following) for x in read_by(self.actions[following])} if following < len(self.actions) else None
            found.append(read is not None and isinstance(a, Fill) and self._owner(a.target, n) not in read)
            following = following if found[-1] else n
        return tuple(reversed(found))

    def _owner(self, layout: Layout, action: int) -> Buffer | Block:
        """The block of the arena in which `layout` lies at the time of `action`, or the caller's buffer."""
        if not layout.in_arena:
            return layout.buffer
        return next(b for b in self.blocks if b.first <= action <= b.last and b.offset <= layout.offset < b.end)


def no_scratch(step: Step) -> int:
    """No kernel needs working memory."""
    return 0


def plan_memory(graph: Graph, steps: Sequence[Step], scratch: Callable[[Step], int] = no_scratch) -> Plan:
    """The plan of the integer `graph` whose kernels are `steps`, in that order, each with so many bytes of `scratch` memory."""
    placement = Placement(graph, tuple(steps), {s.result: scratch(s) for s in steps})
    actions = tuple(_with_trailing(tuple(_with_fills(_actions(placement), placement))))
    blocks = _placed(_blocks(actions, placement), _wanted(actions))
    offsets = dict(zip(_arena_buffers(actions), (b.offset for b in blocks), strict=True))
    layouts = {v: _resolve(placement.layout(v), offsets) for v in placement.stored}
    return Plan(tuple(_resolved(a, offsets) for a in actions), layouts, blocks, placement.inputs, placement.outputs)


# --- actions -----------------------------------------------------------------------------------------------------


def _actions(p: Placement) -> Iterator[Action]:
    staged = set[Value]()
    for s in p.steps:
        for v in s.operands:
            if p.staged(v, s) and v not in staged:
                staged.add(v)
                yield Copy(v, v.shape, p.layout(v), p.home(v, 1))
        yield from _move(s.producer, p) if is_movement(s.producer) else [_run(s, p)]
    yield from _hand_out(p)


def _run(s: Step, p: Placement) -> Run:
    scratch = p.home(s.result, SCRATCH) if p.scratch.get(s.result) else None
    return Run(s, tuple(p.read(v, s) for v in s.operands), p.layout(s.result), scratch)


def _hand_out(p: Placement) -> Iterator[Copy]:
    """Copies of the program outputs that do not lie in the caller's buffer yet."""
    for n, v in enumerate(p.outputs):
        target = dense(v.type, Buffer(Space.output, n))
        if p.layout(v).buffer != target.buffer:
            yield Copy(v, v.shape, p.layout(v), target)


def _move(v: Value, p: Placement) -> Iterator[Action]:
    """The copies, perhaps none, that make the movement operator `v`."""
    target = p.layout(v)
    match v.op:
        case Concat():
            for x, index in slots(v):
                yield from _copy(x, x.shape, p.layout(x), target.moved(index))
        case Pad():
            yield from _pad(v, v.op, p)
        case Slice():
            yield from _copy(v.inputs[0], v.shape, p.layout(v.inputs[0]).sliced(v.op), target)
        case Transpose():
            yield from _transpose(v, v.op, p)
        case Reshape():
            yield from _reshape(v, p)
        case Expand():
            yield from _copy(v.inputs[0], v.shape, _broadcast(v.inputs[0], v.shape, p.layout(v.inputs[0])), target)
        case Tile():
            yield _tile(v, v.op, p)


def _copy(value: Value, shape: tuple[int, ...], source: Layout, target: Layout) -> Iterator[Copy]:
    same = all(d == 1 or a == b for d, a, b in zip(shape, source.strides, target.strides, strict=True))
    if not same or (source.buffer, source.offset) != (target.buffer, target.offset):
        yield Copy(value, shape, source, target)


def _transpose(v: Value, op: Transpose, p: Placement) -> Iterator[Copy]:
    source = p.layout(v.inputs[0])
    yield from _copy(v.inputs[0], v.shape, source.with_strides(tuple(source.strides[a] for a in op.perm)), p.layout(v))


def _reshape(v: Value, p: Placement) -> Iterator[Copy]:
    """One copy in the shape of either side, or two through a dense buffer where no shape names both by strides."""
    x, size = v.inputs[0], itemsize(v.type)
    source, target = p.layout(x), p.layout(v)
    viewed, written = source.reshaped(x.shape, v.shape, size), target.reshaped(v.shape, x.shape, size)
    if viewed is not None:
        yield from _copy(x, v.shape, viewed, target)
    elif written is not None:
        yield from _copy(x, x.shape, source, written)
    else:
        between = p.home(v, 2)
        yield Copy(x, x.shape, source, between.with_strides(dense_strides(x.shape, size)))
        yield Copy(x, v.shape, between, target)


def _broadcast(x: Value, shape: tuple[int, ...], layout: Layout) -> Layout:
    fill = len(shape) - x.type.rank
    return layout.with_strides((0,) * fill + tuple(0 if d == 1 else s for d, s in zip(x.shape, layout.strides)))


def _tile(v: Value, op: Tile, p: Placement) -> Copy:
    """Each axis becomes two, (repeat, element): the source does not move along the first, the target moves by a whole copy."""
    x = v.inputs[0]
    source, target = p.layout(x), p.layout(v)
    shape = tuple(n for d, r in zip(x.shape, op.repeats) for n in (r, d))
    read = tuple(n for s in source.strides for n in (0, s))
    written = tuple(n for d, s in zip(x.shape, target.strides) for n in (d * s, s))
    return Copy(x, shape, source.with_strides(read), target.with_strides(written))


def _pad(v: Value, op: Pad, p: Placement) -> Iterator[Action]:
    """The kept part of the operand, and one border after the other, each as long as the axes before it leave it."""
    x = v.inputs[0]
    source, target, q = p.layout(x), p.layout(v), _padding(v, op)
    lo = tuple(max(-before, 0) for before, _ in op.pads)
    at = tuple(max(before, 0) for before, _ in op.pads)
    kept = tuple(d + min(before, 0) + min(after, 0) for d, (before, after) in zip(x.shape, op.pads))
    yield from _copy(x, kept, source.moved(lo), target.moved(at))
    yield from _borders(v, kept, at, target, q)


def _padding(v: Value, op: Pad) -> int:
    """The integer that stands for the padding's real value."""
    return int(op.value) if v.type.quant is None else int(v.type.quant.quantize(np.asarray(op.value, np.float32)))


def _borders(v: Value, kept: tuple[int, ...], at: tuple[int, ...], target: Layout, q: int) -> Iterator[Fill]:
    for axis, whole in enumerate(v.shape):
        for start, size in ((0, at[axis]), (at[axis] + kept[axis], whole - at[axis] - kept[axis])):
            if size:
                index = (*at[:axis], start, *(0,) * (len(kept) - axis - 1))
                yield Fill(v, (*kept[:axis], size, *v.shape[axis + 1 :]), target.moved(index), q)


# --- halos -------------------------------------------------------------------------------------------------------


def _with_fills(actions: Iterable[Action], p: Placement) -> Iterator[Action]:
    """`actions` with the halo of each buffer filled before its first writer."""
    homes = {p.home(v, role).buffer: (v, role) for v, halo in p.halos.items() if halo for role in (0, 1)}
    for a in actions:
        for buffer in _touched(a):
            if buffer in homes:
                v, role = homes.pop(buffer)
                yield from halo_fills(v, p.halos[v], p.home(v, role))
        yield a


def halo_fills(v: Value, halo: Halo, layout: Layout) -> Iterator[Fill]:
    """Three fills in elements: from the start to the first element, between rows, and from the last element to the end."""
    n, h, w, _ = v.shape
    image, row, pixel, _ = layout.strides
    element = itemsize(v.type)
    start = layout.offset - halo.top * row - halo.left * pixel
    head = halo.top * row + halo.left * pixel
    q = v.type.quant.zero_point[0] if v.type.quant else 0
    for lines, at, size in (
        (1, start, head),
        (h - 1, layout.offset + w * pixel, (halo.left + halo.right) * pixel),
        (1, layout.offset + (h - 1) * row + w * pixel, halo.right * pixel + halo.bottom * row),
    ):
        if size and lines:
            yield Fill(v, (n, lines, size // element), Layout(layout.buffer, at, (image, row, element)), q)


WOVEN, FEW = 16, (2, 3)
"""Pixels from which on a channel is written beside others, and so many others."""


def _with_trailing(actions: Sequence[Action]) -> Iterator[Action]:
    """A copy of a few channels, and the fill of one more right behind, are one copy."""
    joined = {n for n, (a, b) in enumerate(pairwise(actions)) if isinstance(a, Copy) and isinstance(b, Fill) and _continues(a, b)}
    for n, a in enumerate(actions):
        if n in joined:
            after = actions[n + 1]
            assert isinstance(a, Copy)
            assert isinstance(after, Fill)
            yield replace(a, trailing=after.q)
        elif n - 1 not in joined:
            yield a


def _continues(a: Copy, b: Fill) -> bool:
    """Whether `b` is one channel behind those of `a`, and pixels of `a` follow each other on both sides."""
    n = a.shape[-1] if a.shape else 0
    if n not in FEW or itemsize(a.value.type) != 1 or a.target.strides[-1] != 1 or b.shape != (*a.shape[:-1], 1):
        return False
    behind = b.target.buffer == a.target.buffer and b.target.offset == a.target.offset + n and b.target.strides[:-1] == a.target.strides[:-1]
    pixels = zip(a.shape, a.source.strides, a.target.strides)
    planar = a.source.strides[-1] != 1
    return behind and any(t == n + 1 and s == (1 if planar else n) and d >= WOVEN for d, s, t in pixels)


# --- from numbered buffers to one arena --------------------------------------------------------------------------


def _touched(a: Action) -> tuple[Buffer, ...]:
    """The arena buffers that an action reads or writes."""
    match a:
        case Run():
            layouts: tuple[Layout, ...] = (*a.operands, a.result, *([a.scratch] if a.scratch else []))
        case Copy():
            layouts = (a.source, a.target)
        case Fill():
            layouts = (a.target,)
    return tuple(dict.fromkeys(x.buffer for x in layouts if x.in_arena))


def _arena_buffers(actions: Sequence[Action]) -> tuple[Buffer, ...]:
    return tuple(dict.fromkeys(b for a in actions for b in _touched(a)))


def _blocks(actions: Sequence[Action], p: Placement) -> dict[Buffer, Block]:
    """One block per arena buffer, alive from the first action that touches it to the last."""
    first, last = dict[Buffer, int](), dict[Buffer, int]()
    for n, a in enumerate(actions):
        for b in _touched(a):
            first.setdefault(b, n)
            last[b] = n
    return {b: Block(_block_name(b, p), first[b], last[b], padded_size(_nbytes(b, p))) for b in first}


def _placed(blocks: dict[Buffer, Block], wanted: Mapping[Buffer, int]) -> tuple[Block, ...]:
    """The blocks with their places. Those that are `wanted` for longer live until that action where this takes no more memory."""
    least = place(tuple(blocks.values()))
    actions = range(1 + max((b.last for b in least), default=0))
    live = [sum(b.size for b in least if b.first <= n <= b.last) for n in actions]
    longer = dict(blocks)
    for buffer, last in wanted.items():
        b, room = blocks[buffer], max(live) - blocks[buffer].size
        if all(live[n] <= room for n in range(b.last + 1, last + 1)):
            longer[buffer] = replace(b, last=max(b.last, last))
            live = [size + b.size * (b.last < n <= last) for n, size in zip(actions, live)]
    found = place(tuple(longer.values()))
    return found if arena_size(found) <= arena_size(least) else least


def _wanted(actions: Sequence[Action]) -> dict[Buffer, int]:
    """Until which action a buffer had better stay: what convolutions read, until what they are followed by pixel for pixel is done. A thread may then
    go on with its own pixels while others still read."""
    wanted, read = dict[Buffer, int](), set[Buffer]()
    for n, (before, after) in enumerate(pairwise(actions), 1):
        read = read | set(_touched(before)) if _goes_on(before, after) else set()
        wanted |= dict.fromkeys(read, n)
    return wanted


def _goes_on(before: Action, after: Action) -> bool:
    """Whether `after` reads nothing but the pixel of what the convolution `before` computes that it writes, and perhaps a residual."""
    if not (isinstance(before, Run) and isinstance(after, Run) and after.step.operands[0] is before.step.result):
        return False
    v, w = before.step.producer, after.step.producer
    pointwise = isinstance(w.op, IntConv) and w.inputs[1].shape[1:3] == (1, 1) and w.op.strides == (1, 1)
    return isinstance(v.op, IntConv) and (pointwise or isinstance(w.op, IntNarrow))


def _block_name(b: Buffer, p: Placement) -> str:
    return p.graph.order[b.index // ROLES].name + ("", " (copy)", " (dense)", " (scratch)")[b.index % ROLES]


def _nbytes(b: Buffer, p: Placement) -> int:
    v, role = p.graph.order[b.index // ROLES], b.index % ROLES
    if role == SCRATCH:
        return p.scratch[v]
    halo = Halo() if role == 2 else p.halos.get(v, Halo())
    return int(np.prod(halo.grown(v.shape), dtype=np.int64)) * itemsize(v.type)


def _resolve(layout: Layout, offsets: Mapping[Buffer, int]) -> Layout:
    return replace(layout, buffer=ARENA, offset=layout.offset + offsets[layout.buffer]) if layout.in_arena else layout


def _resolved(a: Action, offsets: Mapping[Buffer, int]) -> Action:
    match a:
        case Run():
            scratch = _resolve(a.scratch, offsets) if a.scratch else None
            return Run(a.step, tuple(_resolve(x, offsets) for x in a.operands), _resolve(a.result, offsets), scratch)
        case Copy():
            return replace(a, source=_resolve(a.source, offsets), target=_resolve(a.target, offsets))
        case Fill():
            return replace(a, target=_resolve(a.target, offsets))
