"""Which integers the weights of few bits may be: steps per output channel, and multiples of them per group of weights.

    w = S_o m_og q        q in [low, high], 2^bits of them;  m_og in +-1 .. +-4, one for each group g of 4 weights along K

A scale per group in two levels (Dai et al. 2021, "VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural Network
Inference"), the upper one of three bits, so that m q is an int8: arithmetic, proofs and exported graphs are those of 8 bits, and only
storage knows that a group is four small integers and three bits (`backends/llvm/planes.py`): three quarters of a bit more for each weight.
At equal bytes many groups with coarse multipliers are nearer than few with fine ones.

The sign of m says to which side a group leans: q is -10 .. 5 in four bits, so that the greatest of four weights, of whatever sign, has twice
the room that those of the other sign have.

Depthwise kernels are stored one weight in a byte, and have few of them: there the 2^bits integers are any consecutive ones that hold zero,
[low, low + 2^bits - 1], chosen per channel, as a zero point of the weights would have it, and a group is a row of the kernel.

S, m and low minimise the error of rounding to the nearest, weighted by the variances of the inputs:

    sum_k h_k (w_k - S m clip(round(w_k / (S m)), low, high))^2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)

GROUP = 4
"""Weights along K that share a multiplier."""
ALIGNED = 16
"""Channels of windows of several pixels come in multiples of this, the longest step of a dot product."""
FIELD = 2
"""Bits of the magnitude of a stored multiplier."""
CODED = 8 // FIELD * GROUP
"""Weights along K the magnitudes of whose multipliers lie in one byte."""
SIGNED = 8 * GROUP
"""Those the signs of whose multipliers do."""
MOST = 1 << FIELD
"""The greatest magnitude of m. m q is at most 40, where chains of 16-bit sums are mostly exact (`backends/llvm/chains`)."""
SIGNS = (1, -1)
"""Of m, to be tried; where both will do the first is taken."""
NARROW = 4
"""From so many bits down, weights have multipliers, or are shifted."""
TOPS = np.geomspace(0.65, 2, 16)
"""Of the scale that lets the greatest weight be the farthest multiple, those that are tried."""
SHIFTED = np.linspace(0.55, 1.0, 16)
"""Of the step that reaches all weights, where those of a shifted channel are tried."""


class Grouping(Enum):
    """How the weights of a channel that have few bits share scales."""

    none = "one step"
    multiplied = "multiples of it by group"
    shifted = "multiples of it by row, and integers that begin anywhere"


def may_have_groups(shape: tuple[int, ...]) -> bool:
    """Whether weights [O, kh, kw, C] of a convolution without groups may have multipliers: where kernels walk K in whole groups, row by row."""
    _, kh, kw, c = shape
    return kh * kw * c >= ALIGNED and (kh * kw == 1 or c % ALIGNED == 0)


def has_groups(shape: tuple[int, ...], pixels: int, bits: int) -> bool:
    """Whether they have, in a layer of so many pixels. Layers of one wait for memory, and multiplying weights for it alone would take longer than
    reading bytes; two and three bits are for size, whatever that takes."""
    return (pixels > 1 or bits < NARROW) and may_have_groups(shape)


@dataclass(frozen=True, eq=False)
class Grid:
    """`scale` [O], the multipliers of all weights [O, K] and the range of q, [O] each."""

    scale: Floats
    multipliers: Integers
    low: Integers
    high: Integers

    @property
    def bits(self) -> int:
        """That its integers need."""
        ends = np.stack([self.multipliers * end[:, None] for end in (self.low, self.high)])
        return int(np.maximum(-ends - 1, ends).max(initial=0)).bit_length() + 1

    def holds(self, q: Integers) -> bool:
        """Whether the integers `q` [O, K] are within."""
        return bool((self.nearest(q.astype(np.float64)) == q).all())

    def nearest(self, w: Floats) -> Floats:
        """Rows [..., O, K] in units of `scale`, each to the nearest integer allowed."""
        return np.asarray(self.multipliers * np.clip(np.rint(w / self.multipliers), self.low[:, None], self.high[:, None]))


def even_grid(scale: Floats, k: int, greatest: int) -> Grid:
    """Integers up to +-`greatest` for rows of k weights."""
    ends = np.full(len(scale), greatest, np.int64)
    return Grid(scale, np.ones((len(scale), k), np.int64), -ends, ends)


def ends_of(bits: int) -> tuple[int, int]:
    """(lowest, greatest) q of so many bits: five eighths of them are negative."""
    low = -(5 << bits >> 3)
    return low, low + (1 << bits) - 1


def grouped_grid(w: Floats, h: Floats, bits: int) -> Grid:
    """A multiplier for each group of the rows `w` [O, K], whose inputs have the variances `h` [O, K]."""
    (groups, weights), ends = (_groups_last(a, GROUP) for a in (w, h)), ends_of(bits)
    top = np.abs(w).max(1) / (-ends[0] * MOST)
    found = [_multiples(groups, weights, np.where(top > 0, top * part, 1.0), ends, SIGNS) for part in TOPS]
    best = np.argmin([error for error, _, _ in found], 0)
    scale, multipliers = (np.choose(best if a[0].ndim == 1 else best[:, None], a) for a in zip(*((s, m) for _, s, m in found)))
    return _multiplied(np.where(top > 0, scale, 0.0), multipliers, w.shape[1], bits)


def _multiplied(scale: Floats, multipliers: Integers, k: int, bits: int) -> Grid:
    """With `multipliers` [O, groups] of rows of k weights."""
    low, high = (np.full(len(scale), end, np.int64) for end in ends_of(bits))
    return Grid(scale, np.repeat(multipliers, GROUP, 1)[:, :k], low, high)


def _in_groups(a: NDArray[Number], group: int) -> NDArray[Number]:
    """[..., K] as [..., groups, group], zeros at the end."""
    return np.pad(a, (*[(0, 0)] * (a.ndim - 1), (0, -a.shape[-1] % group))).reshape(*a.shape[:-1], -1, group)


def _groups_last(a: Floats, group: int) -> Floats:
    """[O, K] as [group, O, groups], whose sums over groups are fast."""
    return np.ascontiguousarray(np.moveaxis(_in_groups(a, group), -1, 0))


def _multiples(w: Floats, h: Floats, scale: Floats, ends: tuple[int, int], signs: Sequence[int]) -> tuple[Floats, Floats, Integers]:
    """(error [O], scale [O], multipliers [O, groups]): the best multiple of `scale` for each group of `w` [group, O, groups]."""
    least, multipliers = np.full(w.shape[1:], np.inf), np.ones(w.shape[1:], np.int64)
    for m in range(1, MOST + 1):
        step = (scale * m)[:, None]
        x = w / step
        nearest = np.rint(x)
        for sign in signs:
            low, high = _multiplied_ends(ends, sign)
            error = (h * (x - np.clip(nearest, low, high)) ** 2).sum(0) * step**2
            better = error < least
            least, multipliers = np.where(better, error, least), np.where(better, sign * m, multipliers)
    return least.sum(1), scale, multipliers


def _multiplied_ends(ends: tuple[int, int], m: int) -> tuple[int, int]:
    """(lowest, greatest) of m q."""
    low, high = sorted(m * end for end in ends)
    return low, high


def row_of(shape: tuple[int, ...]) -> int:
    """Weights of a depthwise kernel [O, kh, kw, 1] that share a multiplier: a row, or all of a kernel that has none."""
    return shape[2] if shape[2] > 2 else shape[1] * shape[2]


def shifted_grid(w: Floats, h: Floats, bits: int, row: int) -> Grid:
    """For each channel of `w` [O, K] the best 2^bits consecutive integers that hold zero, and multipliers of every `row` of them."""
    count, (rows, weights) = (1 << bits) - 1, (_groups_last(a, row) for a in (w, h))
    least, scale, low = np.full(len(w), np.inf), np.zeros(len(w)), np.zeros(len(w), np.int64)
    multipliers = np.ones(rows.shape[1:], np.int64)
    for start, step in _shifts(w, count):
        error, _, found = _multiples(rows, weights, step, (start, start + count), SIGNS[:1])
        better = error < least
        least, scale, low = np.where(better, error, least), np.where(better, step, scale), np.where(better, start, low)
        multipliers = np.where(better[:, None], found, multipliers)
    return Grid(np.where(w.any(1), scale, 0.0), np.repeat(multipliers, row, 1)[:, : w.shape[1]], low, low + count)


def _shifts(w: Floats, count: int) -> Iterable[tuple[int, Floats]]:
    """(lowest integer, steps [O]) to try: those that reach the greatest weights of both signs, and finer ones."""
    up, down = np.maximum(w.max(1), 0), np.maximum(-w.min(1), 0)
    for start in range(-count, 1):
        step = np.maximum(up / max(count + start, 0.5), down / max(-start, 0.5))
        for part, most in product(SHIFTED, range(1, MOST + 1)):
            yield start, np.where(step > 0, step * part / most, 1.0)


def grid_of_rows(q: Integers, scale: Floats, bits: int, row: int) -> Grid:
    """A grid of so many bits that the channels `q` [O, K] of a depthwise kernel lie on: they begin where they do, and have room above.

    Of the places where a channel may begin, that which makes do with the least multipliers; of these the one nearest to zero.
    """
    rows, count = q.reshape(len(q), -1, row), (1 << bits) - 1
    multipliers, begin, least = np.ones(rows.shape[:2], np.int64), np.zeros(len(q), np.int64), np.full(len(q), np.inf)
    for low in range(0, -count - 1, -1):
        found = _least_multipliers(rows, (low, low + count), SIGNS[:1])
        total = np.where(found.all(1), found.sum(1), np.inf)
        better = total < least
        multipliers, begin, least = np.where(better[:, None], found, multipliers), np.where(better, low, begin), np.where(better, total, least)
    return Grid(scale, np.repeat(multipliers, row, 1), begin, begin + count)


def grid_of_integers(q: Integers, scale: Floats, bits: int) -> Grid:
    """A grid of so many bits that the rows `q` [O, K] lie on: what storage finds in them."""
    grid = even_grid(scale, q.shape[1], (1 << (bits - 1)) - 1)
    if (np.abs(q) <= grid.high[:, None]).all():
        return grid
    return _multiplied(scale, multipliers_of(q, bits), q.shape[1], bits)


def multipliers_of(q: NDArray[np.generic], bits: int) -> Integers:
    """m [..., groups] of rows [..., K]: that of least magnitude of which all of a group are multiples, by integers of so many bits; positive where
    both signs will do, 0 where none does."""
    return _least_multipliers(_in_groups(q.astype(np.int16), GROUP), ends_of(bits), SIGNS)


def _least_multipliers(groups: NDArray[np.signedinteger], ends: tuple[int, int], signs: Sequence[int]) -> Integers:
    """m [..., groups] of [..., groups, group], by integers from one of the `ends` to the other; 0 where there is none."""
    found, least, greatest = np.zeros(groups.shape[:-1], np.int64), groups.min(-1), groups.max(-1)
    for m in range(MOST, 0, -1):
        even = (groups % m == 0).all(-1)
        for sign in reversed(signs):
            low, high = _multiplied_ends(ends, sign * m)
            found = np.where(even & (least >= low) & (greatest <= high), sign * m, found)
    return found


def information(q: NDArray[np.generic], bits: int, groups: int) -> int:
    """Bits of what is stored of the integers `q` [O, kh, kw, C], which take `bits`: fewer where groups of them are multiples of one number. The
    convolution has so many `groups`."""
    rows, fewer = q.reshape(len(q), -1), range(2, min(NARROW + 1, bits))
    if groups > 1 and q.shape[-1] == 1:
        return next((few for few in fewer if _are_rows(rows.astype(np.int64), few, row_of(q.shape))), bits)
    if groups > 1 or not may_have_groups(q.shape):
        return bits
    # Most weights are no multiples, which the first row tells.
    return next((few for few in fewer if multipliers_of(rows[:1], few).all() and multipliers_of(rows, few).all()), bits)


def bytes_of_multipliers(k: int) -> int:
    """That are stored for a row of k weights."""
    return -(-k // CODED) + -(-k // SIGNED)


def _are_rows(q: Integers, bits: int, row: int) -> bool:
    return grid_of_rows(q, np.ones(len(q)), bits, row).holds(q)
