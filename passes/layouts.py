"""Where the elements of a value lie: a buffer, an offset and one stride per axis, all in bytes.

    address(i) = buffer + offset + sum_k i_k * strides_k

Views (`Slice`, `Reshape` where strides can say it) are arithmetic on these numbers and move no byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from qcompiler.ir.ops import Slice
from qcompiler.ir.types import TensorType


class Space(Enum):
    """Who owns a buffer."""

    arena = "arena"
    input = "input"
    output = "output"
    constant = "constant"


@dataclass(frozen=True)
class Buffer:
    """`inputs[index]` or `outputs[index]` of the program, the arena, or the constant value itself."""

    space: Space
    index: int = 0


ARENA = Buffer(Space.arena)
CONSTANT = Buffer(Space.constant)


@dataclass(frozen=True)
class Layout:
    """Address of element (0, ..., 0) in `buffer` and the distance between neighbours on each axis, in bytes.

    The innermost stride is the element's size. In the arena, int8 elements are stored in the target's own way (see
    "Storage of activations" in docs/architecture.md); everywhere else they are plain.
    """

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]

    @property
    def in_arena(self) -> bool:
        """Whether the elements lie in the arena, in the target's storage form and followed by slack."""
        return self.buffer.space is Space.arena

    def moved(self, index: Sequence[int]) -> Layout:
        """The layout whose element 0 is element `index` of this one."""
        return replace(self, offset=self.offset + sum(i * s for i, s in zip(index, self.strides, strict=True)))

    def sliced(self, op: Slice) -> Layout:
        """The layout of ``x[start:stop:step]``."""
        return replace(self.moved(op.starts), strides=tuple(s * k for s, k in zip(self.strides, op.steps, strict=True)))

    def with_strides(self, strides: tuple[int, ...]) -> Layout:
        """The same first element, other strides."""
        return replace(self, strides=strides)

    def reshaped(self, old: Sequence[int], new: Sequence[int], itemsize: int) -> Layout | None:
        """The layout under which shape `new` names the elements of shape `old` in the same order; None if there is none."""
        strides = reshaped_strides(old, self.strides, new, itemsize)
        return None if strides is None else self.with_strides(strides)


def itemsize(type: TensorType) -> int:
    """Bytes of one element."""
    return type.dtype.numpy.itemsize


def dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Row-major strides without gaps."""
    strides = list[int]()
    for d in reversed(shape):
        strides.append(itemsize)
        itemsize *= d
    return tuple(reversed(strides))


def dense(type: TensorType, buffer: Buffer) -> Layout:
    """`type` without gaps from the start of `buffer`."""
    return Layout(buffer, 0, dense_strides(type.shape, itemsize(type)))


def is_dense(type: TensorType, layout: Layout) -> bool:
    """Whether the elements fill their bytes in row-major order; strides of axes of size 1 do not matter."""
    expected = dense_strides(type.shape, itemsize(type))
    return all(d == 1 or s == e for d, s, e in zip(type.shape, layout.strides, expected, strict=True))


def runs(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(size, stride) of the fewest axes that walk the same addresses in the same order; none of size 1."""
    merged = list[tuple[int, int]]()
    for d, s in zip(shape, strides, strict=True):
        if d == 1:
            continue
        if merged and merged[-1][1] == d * s:
            merged[-1] = (merged[-1][0] * d, s)
        else:
            merged.append((d, s))
    return merged


def reshaped_strides(old: Sequence[int], strides: Sequence[int], new: Sequence[int], itemsize: int) -> tuple[int, ...] | None:
    """Strides of shape `new` over the elements of `old` in the same order, or None. Each new axis must lie within one run."""
    pieces = list(_split(list(runs(old, strides)), new, itemsize))
    return tuple(reversed(pieces)) if len(pieces) == len(new) else None


def _split(left: list[tuple[int, int]], new: Sequence[int], itemsize: int) -> Iterator[int]:
    """Strides of the axes of `new`, the last first; ends early at one that does not fit."""
    size, stride = left.pop() if left else (1, itemsize)
    for d in reversed(new):
        if d != 1 and size == 1:
            size, stride = left.pop()
        if size % d:
            return
        yield stride
        size, stride = size // d, stride * d
