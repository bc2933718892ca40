"""Algebra of axes: permutations, and reshapes as groups of axes that are split and merged.

A row-major reshape factors into minimal groups of neighbouring axes with equal products (axes of size 1 aside):
`[N, g, k, H, W] -> [N, C, H, W]` is `(N | gk -> C | H | W)`. A permutation commutes with a reshape exactly where it
keeps the groups together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Axes = tuple[int, ...]


def compose(outer: Axes, inner: Axes) -> Axes:
    """The permutation of ``transpose(transpose(x, inner), outer)``."""
    return tuple(inner[p] for p in outer)


def inverse(perm: Axes) -> Axes:
    """The permutation that undoes `perm`."""
    return tuple(int(i) for i in np.argsort(perm))


def moves_data(shape: Axes, perm: Axes) -> bool:
    """Whether transposing `shape` by `perm` reorders elements, rather than only moving axes of size 1."""
    wide = [p for p in perm if shape[p] != 1]
    return wide != sorted(wide)


def wide_axes(shape: Axes) -> Axes:
    """The axes whose size is not 1."""
    return tuple(i for i, d in enumerate(shape) if d != 1)


def reshape_groups(before: Axes, after: Axes) -> list[tuple[Axes, Axes]]:
    """The minimal groups (axes of `before`, axes of `after`) of a reshape, axes of size 1 left out. Sizes must not be 0."""
    a, b = wide_axes(before), wide_axes(after)
    groups, i, j = list[tuple[Axes, Axes]](), 0, 0
    while i < len(a):
        i0, j0, p, q = i, j, before[a[i]], after[b[j]]
        while p != q:
            if p < q:
                i += 1
                p *= before[a[i]]
            else:
                j += 1
                q *= after[b[j]]
        i, j = i + 1, j + 1
        groups.append((a[i0:i], b[j0:j]))
    return groups


@dataclass(frozen=True)
class Commuted:
    """``reshape(transpose(x, perm), shape)`` as ``transpose(reshape(transpose(x, before), middle), after)``."""

    before: Axes
    middle: Axes
    after: Axes


def commute(shape: Axes, perm: Axes, out: Axes) -> Commuted | None:
    """Move the transposition by `perm` of a tensor of `shape` behind the reshape to `out`; None where nothing moves.

    Groups are laid out in the order of their first source axis; what `before` still permutes, within a group, is a true
    shuffle. A group whose sources stand apart (the heads of attention) needs the transposition where it is.
    """
    if 0 in shape or not wide_axes(shape):
        return None
    transposed = tuple(shape[p] for p in perm)
    groups = [(tuple(perm[i] for i in a), b) for a, b in reshape_groups(transposed, out)]
    if not all(_adjacent(shape, g[0]) for g in groups):
        return None
    groups.sort(key=lambda g: min(g[0]))
    sources = iter([a for g in groups for a in g[0]])
    before = tuple(i if d == 1 else next(sources) for i, d in enumerate(shape))
    layout = _place_units([a for g in groups for a in g[1]], out)
    after = inverse(tuple(layout))
    return None if not moves_data(tuple(out[a] for a in layout), after) else Commuted(before, tuple(out[a] for a in layout), after)


def _adjacent(shape: Axes, axes: Axes) -> bool:
    return wide_axes(shape[min(axes) : max(axes) + 1]) == tuple(sorted(a - min(axes) for a in axes))


def _place_units(wide: list[int], out: Axes) -> list[int]:
    """All axes of `out`, in the order `wide` for those not of size 1.

    Leading axes of size 1 (a batch) stay in front, others go with the wide axis that follows them, the last ones with
    the one before: [1, C, 1, W] laid out W, C becomes [1, 1, W, C].
    """
    first, last = min(wide), max(wide)
    layout = list(range(first))
    for axis in wide:
        start = axis
        while start - 1 > first and out[start - 1] == 1:
            start -= 1
        end = len(out) if axis == last else axis + 1
        layout.extend(range(start, end))
    return layout


def permute_attribute(values: tuple[T, ...], perm: Axes) -> tuple[T, ...]:
    """Per-axis `values` of a transposed tensor, for the tensor before its transposition by `perm`."""
    return tuple(values[i] for i in inverse(perm))


def reshape_constant(data: NDArray[np.generic], before: Axes, after: Axes) -> NDArray[np.generic]:
    """`data`, which broadcasts against a tensor of shape `after`, for the same tensor in its earlier shape `before`."""
    full = data.reshape((1,) * (len(after) - data.ndim) + data.shape)
    target, result = [1] * len(after), [1] * len(before)
    for a, b in reshape_groups(before, after):
        if any(full.shape[i] != 1 for i in b):
            for i in b:
                target[i] = after[i]
            for i in a:
                result[i] = before[i]
    return np.broadcast_to(full, target).reshape(result)
