"""Place every stored value: in a buffer of its own, as a part of its reader's, as a view of its operand's, or with the caller.

The rules are in `plan_memory`, which turns a `Placement` into actions. Buffers of the arena are still apart here: each has a
number and starts at its own byte 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.integer import IntConv, IntSumPool
from qcompiler.ir.ops import Concat, Const, Conv, Expand, Pad, PadMode, Reshape, Slice, Tile, Transpose, window_size

from .layouts import CONSTANT, Buffer, Layout, Space, dense, dense_strides, itemsize
from .partition import Step, program_inputs, program_outputs

ROLES, SCRATCH = 4, 3
"""Buffers that one value may have, see `Placement.home`; the last of them is the working memory of its kernel."""


@dataclass(frozen=True)
class Halo:
    """Border of an [N,H,W,C] buffer in rows and columns."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def __or__(self, other: Halo) -> Halo:
        return Halo(max(self.top, other.top), max(self.bottom, other.bottom), max(self.left, other.left), max(self.right, other.right))

    def __bool__(self) -> bool:
        return self != Halo()

    def grown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`shape` with the border around."""
        if not self:
            return shape
        n, h, w, c = shape
        return n, self.top + h + self.bottom, self.left + w + self.right, c


def needed_halo(op: Conv | IntSumPool, x: tuple[int, ...], kernel: tuple[int, ...]) -> Halo:
    """The pads of windows over an operand of shape `x`, and what they read behind them. Also where the stride leaves some unread: buffers of
    one shape then have one form, and the layers that write them share a kernel whatever the strides of their readers."""
    ends = list[tuple[int, int]]()
    for size, k, stride, pads, dilation in zip(x[1:3], kernel, op.strides, op.pads, op.dilations):
        last = (window_size(size, k, stride, pads, dilation) - 1) * stride - pads[0] + dilation * (k - 1)
        ends.append((pads[0], max(0, pads[1], last + 1 - size)))
    return Halo(*ends[0], *ends[1])


def padding_read_by(v: Value) -> Halo:
    """The halo that `v` reads around its first operand: convolutions and sums over windows take their padding from memory."""
    match v.op:
        case IntConv():
            return needed_halo(v.op, v.inputs[0].shape, v.inputs[1].shape[1:3])
        case IntSumPool(kernel):
            return needed_halo(v.op, v.inputs[0].shape, kernel)
    return Halo()


MOVEMENT = (Concat, Reshape, Slice, Transpose, Expand, Tile)


def is_movement(v: Value) -> bool:
    """Whether `v` is made by copies alone."""
    return isinstance(v.op, MOVEMENT) or (isinstance(v.op, Pad) and v.op.mode is PadMode.constant)


def _keeps_order(v: Value) -> bool:
    """Whether `v` lists its operand's elements in the same order: a Reshape, or a Transpose that moves axes of size 1 only."""
    if not isinstance(v.op, Transpose):
        return isinstance(v.op, Reshape)
    kept = [p for p in v.op.perm if v.inputs[0].shape[p] != 1]
    return kept == sorted(kept)


def _is_view_op(v: Value) -> bool:
    """Whether strides may be able to say `v`."""
    return _keeps_order(v) or (isinstance(v.op, Slice) and min(v.op.steps, default=1) > 0)


def _joins_channels(v: Value) -> bool:
    """Whether `v` joins the last of four axes: its operands have its rows and columns, so they share its halo."""
    return isinstance(v.op, Concat) and v.op.axis == 3 and v.type.rank == 4


def _is_channel_slice(v: Value) -> bool:
    """Whether `v` is a slice of the last of four axes alone, step 1."""
    x = v.inputs[0].shape if v.inputs else ()
    return isinstance(v.op, Slice) and len(x) == 4 and v.shape[:3] == x[:3] and all(k == 1 for k in v.op.steps)


class Placement:
    """Layouts whose arena buffers are still apart: numbered, each from its own byte 0."""

    def __init__(self, graph: Graph, steps: tuple[Step, ...], scratch: Mapping[Value, int]) -> None:
        self.graph, self.steps, self.scratch = graph, steps, scratch
        self.inputs, self.outputs = program_inputs(graph), program_outputs(graph)
        self.computed = {s.result: s for s in steps}
        self.halos: dict[Value, Halo] = {}
        self.part_of: dict[Value, tuple[Value, tuple[int, ...]]] = {}
        self._layouts: dict[Value, Layout] = {}
        self._demand_halos()
        self._place_parts()

    @property
    def stored(self) -> tuple[Value, ...]:
        """Every value that lies in memory."""
        return (*self.inputs, *self.computed)

    @cached_property
    def readers(self) -> Mapping[Value, tuple[Step, ...]]:
        """The steps that read each value."""
        table: dict[Value, list[Step]] = {}
        for s in self.steps:
            for v in dict.fromkeys(s.operands):
                table.setdefault(v, []).append(s)
        return {v: tuple(steps) for v, steps in table.items()}

    @cached_property
    def number(self) -> Mapping[Value, int]:
        """Position among the values of the graph: names the buffer of each."""
        return {v: n for n, v in enumerate(self.graph.order)}

    # halos and parts, from the last step to the first

    def _demand_halos(self) -> None:
        for s in reversed(self.steps):
            self._join(s.result, Halo())
            if s.producer.inputs:
                self._join(s.producer.inputs[0], padding_read_by(s.producer))
            if _is_channel_slice(s.result) and s.producer.inputs[0] in self.computed:
                self._join(s.producer.inputs[0], self.halos[s.result])

    def _join(self, v: Value, halo: Halo) -> None:
        self.halos[v] = self.halos.get(v, Halo()) | halo

    def _place_parts(self) -> None:
        for s in reversed(self.steps):
            for x, index in slots(s.producer):
                if self._may_be_part(x, s.producer):
                    self.part_of[x] = (s.producer, index)
                    for whole in self._wholes(x):
                        self._join(whole, self.halos[x])

    def _may_be_part(self, x: Value, whole: Value) -> bool:
        """Whether the producer of `x` may write it straight into the buffer of `whole`."""
        if x in self.part_of or x not in self.computed or isinstance(x.op, Slice):
            return False
        return not self.halos[x] or all(_joins_channels(w) for w in (whole, *self._wholes(whole)))

    def _wholes(self, v: Value) -> Iterator[Value]:
        """What `v` is part of, from the inside out."""
        while v in self.part_of:
            v = self.part_of[v][0]
            yield v

    # layouts

    def layout(self, v: Value) -> Layout:
        """Where `v` lies."""
        if v not in self._layouts:
            self._layouts[v] = self._find(v)
        return self._layouts[v]

    def _find(self, v: Value) -> Layout:
        if isinstance(v.op, Const):
            return dense(v.type, CONSTANT)
        if v in self.inputs:
            return dense(v.type, Buffer(Space.input, self.inputs.index(v)))
        if v in self.part_of:
            whole, index = self.part_of[v]
            return self.layout(whole).moved(index)
        found = self.view(v) or self._within_its_reader(v)
        if found is not None:
            return found
        output = self._output_written_by(v)
        return self.home(v) if output is None else dense(v.type, Buffer(Space.output, output))

    def home(self, v: Value, role: int = 0) -> Layout:
        """A buffer of its own in the arena, with its halo. `role` 1 is the copy of a program input that convolutions read,
        2 a dense intermediate, 3 working memory of the kernel that computes it."""
        halo = Halo() if role >= 2 else self.halos.get(v, Halo())
        strides = dense_strides(halo.grown(v.shape), itemsize(v.type))
        whole = Layout(Buffer(Space.arena, ROLES * self.number[v] + role), 0, strides)
        return whole.moved((0, halo.top, halo.left, 0)) if halo else whole

    def view(self, v: Value) -> Layout | None:
        """The layout of `v` within its operand's buffer, or None where it must be copied out of it."""
        if not _is_view_op(v) or (self.halos[v] and not self._shares_halo(v)):
            return None
        x = v.inputs[0]
        if isinstance(x.op, Const):
            return None
        base, size = self.layout(x), itemsize(v.type)
        found = base.sliced(v.op) if isinstance(v.op, Slice) else base.reshaped(x.shape, v.shape, size)
        return _with_unit_stride(found, v.shape, size)

    def _within_its_reader(self, v: Value) -> Layout | None:
        """The layout of `v` within the buffer of the value that is `v` reshaped and lies elsewhere (it has a halo, or is a part):
        then the producer of `v` writes there. None where strides cannot say it, or others read `v`."""
        chain = self._reshapes(v)
        if not chain or self.halos[v] or _is_view_op(v):
            return None
        *between, last = chain
        size = itemsize(v.type)
        found = _with_unit_stride(self.layout(last).reshaped(last.shape, v.shape, size), v.shape, size)
        return found if found and all(found.reshaped(v.shape, u.shape, size) for u in between) else None

    def _reshapes(self, v: Value) -> list[Value]:
        """`v` reshaped by its only reader, and so on, up to a value that has a halo or is a part; empty if there is none."""
        chain = list[Value]()
        while len(readers := self.readers.get(v, ())) == 1 and v not in self.outputs and _keeps_order(readers[0].producer):
            v = readers[0].producer
            chain.append(v)
            if self.halos[v] or v in self.part_of:
                return chain
        return []

    def _shares_halo(self, v: Value) -> bool:
        return _is_channel_slice(v) and v.inputs[0] in self.computed

    def read(self, v: Value, by: Step) -> Layout:
        """Where step `by` reads `v`: its layout, or its copy in the arena where `by` cannot read that."""
        return self.home(v, 1) if self.staged(v, by) else self.layout(v)

    def staged(self, v: Value, by: Step) -> bool:
        """Whether `by` reads a copy of `v` in the arena."""
        reads_padding = isinstance(by.producer.op, IntConv) or bool(padding_read_by(by.producer))
        return reads_padding and not self.layout(v).in_arena

    # outputs

    def _output_written_by(self, v: Value) -> int | None:
        """The program output whose buffer is exactly that of `v`, if only copies read that buffer."""
        fitting = (n for n, o in enumerate(self.outputs) if self._origin(o) is v and o.type.nbytes == v.type.nbytes)
        found = next(fitting, None)
        return None if found is None or self.halos[v] or not all(map(self._is_moved, self._family(v))) else found

    def _origin(self, v: Value) -> Value:
        """The value of which `v` is a reshaped view."""
        while _keeps_order(v) and not self.halos[v] and v not in self.part_of:
            v = v.inputs[0]
        return v

    def _family(self, root: Value) -> tuple[Value, ...]:
        """`root`, its parts and their parts, and the views of these: the values that share its buffer."""
        members = dict.fromkeys([root, *(v for v in self.part_of if root in self._wholes(v))])
        for v in self.computed:
            if _is_view_op(v) and v.inputs[0] in members:
                members[v] = None
        return tuple(members)

    def _is_moved(self, v: Value) -> bool:
        return all(is_movement(s.producer) for s in self.readers.get(v, ()))


def _with_unit_stride(layout: Layout | None, shape: tuple[int, ...], itemsize: int) -> Layout | None:
    """`layout` if its innermost stride is that of neighbours, or can be called so because the axis has one element."""
    if layout is None or not shape or layout.strides[-1] == itemsize:
        return layout
    return layout.with_strides((*layout.strides[:-1], itemsize)) if shape[-1] == 1 else None


def slots(v: Value) -> Iterator[tuple[Value, tuple[int, ...]]]:
    """The operands of a Concat or constant Pad, each with the index of its first element in the result."""
    if isinstance(v.op, Concat):
        start = 0
        for x in v.inputs:
            yield x, tuple(start if axis == v.op.axis else 0 for axis in range(v.type.rank))
            start += x.shape[v.op.axis]
    elif isinstance(v.op, Pad) and v.op.mode is PadMode.constant and min(map(min, v.op.pads)) >= 0:
        yield v.inputs[0], tuple(before for before, _ in v.op.pads)
