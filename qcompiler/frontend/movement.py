"""Operators that move elements: shapes, slices, joins, padding, gathering, blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import numpy as np

from qcompiler.frontend.node import Importers, Node
from qcompiler.ir import ops
from qcompiler.ir.graph import Value

IMPORTERS = Importers()


# --- shapes ---


@IMPORTERS.register("Reshape")
def reshape(node: Node, x: Value, shape: Value) -> Value:
    """0 copies a dimension (unless allowzero), one -1 is what is left."""
    wanted = list(node.static_integers(shape, "shape"))
    if not node.attributes.get("allowzero"):
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = prod(d for d in wanted if d != -1)
        wanted[wanted.index(-1)] = x.type.size // rest if rest else 0
    if any(d < 0 for d in wanted):
        raise ValueError(f"cannot reshape {x.type} to {wanted}")
    return _reshaped(node, x, wanted)


def _reshaped(node: Node, x: Value, shape: Sequence[int]) -> Value:
    return x if x.shape == tuple(shape) else node.emit(ops.Reshape(tuple(shape)), x)


@IMPORTERS.register("Flatten")
def flatten(node: Node, x: Value) -> Value:
    """[prod of the dimensions before the axis, prod of those from it on]."""
    given = node.integer("axis")
    if abs(given) > x.type.rank:
        raise ValueError(f"axis {given} is out of range for {x.type}")
    axis = given + x.type.rank if given < 0 else given
    return _reshaped(node, x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


@IMPORTERS.register("Squeeze")
def squeeze(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Without the given axes, or without all of length 1."""
    given = node.static_integers(axes, "axes") if axes is not None else node.integers("axes")
    ones = [i for i, d in enumerate(x.shape) if d == 1]
    dropped = ones if given is None else [node.axis(x.type.rank, a, "axes") for a in given]
    if not set(dropped) <= set(ones):
        raise ValueError(f"axes {tuple(given or ())} of {x.type} are not all of length 1")
    return _reshaped(node, x, [d for i, d in enumerate(x.shape) if i not in dropped])


@IMPORTERS.register("Unsqueeze")
def unsqueeze(node: Node, x: Value, axes: Value | None = None) -> Value:
    """With axes of length 1 at the given positions of the result."""
    given = (node.static_integers(axes, "axes") if axes is not None else node.integers("axes")) or ()
    rank = x.type.rank + len(given)
    new = {node.axis(rank, a, "axes") for a in given}
    if len(new) < len(given):
        raise ValueError(f"axes {given} repeat")
    rest = iter(x.shape)
    return _reshaped(node, x, [1 if i in new else next(rest) for i in range(rank)])


@IMPORTERS.register("Transpose")
def transpose(node: Node, x: Value) -> Value:
    """Axes permuted; reversed where no permutation is given."""
    perm = node.integers("perm") or tuple(range(x.type.rank))[::-1]
    return node.emit(ops.Transpose(perm), x)


@IMPORTERS.register("Expand")
def expand(node: Node, x: Value, shape: Value) -> Value:
    """Broadcast both ways with `shape`."""
    op = ops.Expand(node.static_integers(shape, "shape"))
    return x if op.infer(x.type) == x.type else node.emit(op, x)


@IMPORTERS.register("Tile")
def tile(node: Node, x: Value, repeats: Value) -> Value:
    """Repeated along each axis."""
    return node.emit(ops.Tile(node.static_integers(repeats, "repeats")), x)


# --- parts and wholes ---


@IMPORTERS.register("Concat")
def concat(node: Node, *xs: Value) -> Value:
    """Operands joined along an axis; those without elements do not matter."""
    kept = [x for x in xs if x.type.size] or list(xs[:1])
    return kept[0] if len(kept) == 1 else node.emit(ops.Concat(node.axis(kept[0].type.rank)), *kept)


@IMPORTERS.register("Split")
def split(node: Node, x: Value, sizes: Value | None = None) -> list[Value]:
    """Parts along an axis: of the given sizes, else equal ones, the last of which may be smaller."""
    axis = node.axis(x.type.rank)
    given = node.static_integers(sizes, "split") if sizes is not None else node.integers("split")
    parts = given or _equal_parts(x.shape[axis], int(node.attributes.get("num_outputs", len(node.outputs))))
    if sum(parts) != x.shape[axis] or len(parts) != len(node.outputs):
        raise ValueError(f"cannot split {x.shape[axis]} into {parts} for {len(node.outputs)} outputs")
    ends = list(accumulate(parts))
    return [part(node, x, axis, end - size, end) for size, end in zip(parts, ends)]


def _equal_parts(size: int, count: int) -> tuple[int, ...]:
    chunk = -(-size // count)
    return tuple(min(chunk, size - i * chunk) for i in range(count))


def part(node: Node, x: Value, axis: int, start: int, stop: int) -> Value:
    """x[start:stop] along one axis."""
    starts, stops = [0] * x.type.rank, list(x.shape)
    starts[axis], stops[axis] = start, stop
    return node.emit(ops.Slice(tuple(starts), tuple(stops), (1,) * x.type.rank), x)


@IMPORTERS.register("Slice")
def slice_(
    node: Node, x: Value, starts: Value | None = None, stops: Value | None = None, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """Python slices of some axes; attributes before opset 10."""

    def given(operand: Value | None, name: str) -> tuple[int, ...] | None:
        return node.static_integers(operand, name) if operand is not None else node.integers(name)

    first, last = given(starts, "starts") or (), given(stops, "ends") or ()
    which = given(axes, "axes") or tuple(range(len(first)))
    strides = given(steps, "steps") or (1,) * len(first)
    if not len(first) == len(last) == len(which) == len(strides):
        raise ValueError(f"starts {first}, ends {last}, axes {which} and steps {strides} differ in length")
    chosen = {node.axis(x.type.rank, a, "axes"): slice(b, e, s) for a, b, e, s in zip(which, first, last, strides)}
    ranges = [chosen.get(i, slice(None)).indices(d) for i, d in enumerate(x.shape)]
    if all(r == (0, d, 1) for r, d in zip(ranges, x.shape)):
        return x
    return node.emit(ops.Slice(*(tuple(column) for column in zip(*ranges))), x)


@IMPORTERS.register("Pad")
def pad(node: Node, x: Value, pads: Value | None = None, value: Value | None = None, axes: Value | None = None) -> Value:
    """Attributes before opset 11, operands since."""
    mode = ops.PadMode(node.choice("mode", *(m.value for m in ops.PadMode)))
    amounts = (node.static_integers(pads, "pads") if pads is not None else node.integers("pads")) or ()
    which = range(x.type.rank) if axes is None else [node.axis(x.type.rank, a, "axes") for a in node.static_integers(axes, "axes")]
    if len(amounts) != 2 * len(which):
        raise ValueError(f"pads {amounts} must be {2 * len(which)} numbers")
    pairs = [(0, 0)] * x.type.rank
    for i, axis in enumerate(which):
        pairs[axis] = (amounts[i], amounts[i + len(which)])
    fill = float(node.static(value, "value").reshape(-1)[0]) if value is not None else float(node.attributes.get("value", 0))
    return node.emit(ops.Pad(tuple(pairs), mode, fill), x) if any(amounts) else x


@IMPORTERS.register("Gather")
def gather(node: Node, x: Value, indices: Value) -> Value:
    """numpy's take; one constant index is a slice."""
    axis = node.axis(x.type.rank)
    known = ops.const_data(indices)
    if known is not None and known.size and not -x.shape[axis] <= known.min() <= known.max() < x.shape[axis]:
        raise ValueError(f"indices {known.min()} to {known.max()} are out of range for axis {axis} of {x.type}")
    if known is None or known.size != 1 or isinstance(x.op, ops.Const):
        return node.emit(ops.Gather(axis), x, indices)
    i = int(known.reshape(-1)[0]) % x.shape[axis]
    return _reshaped(node, part(node, x, axis, i, i + 1), (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@IMPORTERS.register("Trilu")
def trilu(node: Node, x: Value, k: Value | None = None) -> Value:
    """The upper or lower triangle of each matrix, from diagonal k on; zeros elsewhere."""
    n, m = x.shape[-2:]
    diagonal = 0 if k is None else node.static_integers(k, "k")[0]
    distance = np.arange(m)[None, :] - np.arange(n)[:, None]
    inside = distance >= diagonal if node.integer("upper") else distance <= diagonal
    return node.emit(ops.Where(), node.constant(inside), x, node.constant(0, x))


# --- blocks of pixels ---


@IMPORTERS.register("DepthToSpace")
def depth_to_space(node: Node, x: Value) -> Value:
    """Channels to blocks of b x b pixels; channel is (row, column, c) for DCR, (c, row, column) for CRD."""
    b = _block(node, x)
    y = node.channels_last(x)
    n, h, w, c = y.shape
    if c % (b * b):
        raise ValueError(f"{c} channels do not divide into blocks of {b} x {b}")
    depth_first = node.attributes.get("mode", b"DCR") == b"DCR"
    split_up = node.emit(ops.Reshape((n, h, w, b, b, c // b // b) if depth_first else (n, h, w, c // b // b, b, b)), y)
    mixed = node.emit(ops.Transpose((0, 1, 3, 2, 4, 5) if depth_first else (0, 1, 4, 2, 5, 3)), split_up)
    return node.channels_first(node.emit(ops.Reshape((n, h * b, w * b, c // b // b)), mixed))


@IMPORTERS.register("SpaceToDepth")
def space_to_depth(node: Node, x: Value) -> Value:
    """Blocks of b x b pixels to channels: (row, column, c) for DCR, (c, row, column) for CRD."""
    b = _block(node, x)
    y = node.channels_last(x)
    n, h, w, c = y.shape
    if h % b or w % b:
        raise ValueError(f"{x.type} does not divide into blocks of {b} x {b}")
    depth_first = node.attributes.get("mode", b"DCR") == b"DCR"
    blocks = node.emit(ops.Reshape((n, h // b, b, w // b, b, c)), y)
    mixed = node.emit(ops.Transpose((0, 1, 3, 2, 4, 5) if depth_first else (0, 1, 3, 5, 2, 4)), blocks)
    return node.channels_first(node.emit(ops.Reshape((n, h // b, w // b, b * b * c)), mixed))


def _block(node: Node, x: Value) -> int:
    if x.type.rank != 4:
        raise ValueError(f"expected [N,C,H,W], found {x.type}")
    b = node.integer("blocksize")
    if b < 1:
        raise ValueError(f"blocksize {b} must be positive")
    return b
