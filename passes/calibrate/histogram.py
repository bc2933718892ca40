"""A streaming histogram whose result does not depend on the order or the grouping of what it is fed.

    bin k counts x with k * width <= x < (k + 1) * width        width a power of two, one bin edge at zero

The width is the smallest power of two at which the range seen so far takes at most `BINS` bins. When the range grows,
neighbouring bins merge in pairs: exact, because edges of the wider bins are edges of the narrower ones. Feeding the same numbers in any
order ends in the same bins, so a streamed histogram equals a one-shot one bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2

import numpy as np
from numpy.typing import NDArray

BINS = 2048
NARROWEST = -100
"""Exponent of the smallest bin width: float32 can still scale by its inverse."""

_BLOCK = 1 << 15


@dataclass(frozen=True, eq=False)
class Histogram:
    """`counts[i]` numbers fell into bin ``first + i``; the width of a bin is ``2 ** exponent``."""

    exponent: int
    first: int
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        """Width of every bin."""
        return 2.0**self.exponent

    @property
    def least(self) -> float:
        """Lower edge of the first bin."""
        return self.first * self.width

    @property
    def greatest(self) -> float:
        """Lower edge of the last bin."""
        return (self.first + len(self.counts) - 1) * self.width

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of every bin."""
        return (np.arange(len(self.counts), dtype=np.float64) + (self.first + 0.5)) * self.width

    @property
    def edges(self) -> NDArray[np.float64]:
        """Lower edge of every bin and the upper edge of the last."""
        return (np.arange(len(self.counts) + 1, dtype=np.float64) + self.first) * self.width


def exponent_for(lo: float, hi: float) -> int:
    """The smallest exponent at which [lo, hi], lo <= 0 <= hi, takes at most `BINS` bins."""
    exponent = NARROWEST if hi <= lo else max(NARROWEST, floor(log2((hi - lo) / BINS)) - 1)
    while floor(hi / 2.0**exponent) - floor(lo / 2.0**exponent) >= BINS:
        exponent += 1
    return exponent


def coarsen(h: Histogram, exponent: int) -> Histogram:
    """The same counts in wider bins."""
    wide = (h.first + np.arange(len(h.counts))) >> min(exponent - h.exponent, 63)
    counts = np.zeros(int(wide[-1] - wide[0]) + 1, np.int64)
    np.add.at(counts, wide - wide[0], h.counts)
    return Histogram(exponent, int(wide[0]), counts)


def count(x: NDArray[np.floating], lo: float, hi: float) -> Histogram:
    """The histogram of `x`, all finite, whose least and greatest are `lo` and `hi`; its bins reach from zero."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    exponent = exponent_for(lo, hi)
    first = floor(lo / 2.0**exponent)
    return Histogram(exponent, first, _count(x, exponent, first, floor(hi / 2.0**exponent) - first + 1))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of what either counted."""
    lo, hi = min(a.least, b.least), max(a.greatest, b.greatest)
    exponent = max(exponent_for(lo, hi), a.exponent, b.exponent)
    first = floor(lo / 2.0**exponent)
    counts = np.zeros(floor(hi / 2.0**exponent) - first + 1, np.int64)
    for h in (coarsen(a, exponent), coarsen(b, exponent)):
        counts[h.first - first : h.first - first + len(h.counts)] += h.counts
    return Histogram(exponent, first, counts)


def _count(x: NDArray[np.floating], exponent: int, first: int, bins: int) -> NDArray[np.int64]:
    """Scaling by a power of two is exact, so bin numbers are too. In blocks that stay in cache."""
    flat, inverse, counts = x.reshape(-1), x.dtype.type(2.0**-exponent), np.zeros(bins, np.int64)
    for start in range(0, flat.size, _BLOCK):
        scaled = np.floor(flat[start : start + _BLOCK] * inverse).astype(np.int64)
        scaled -= first
        counts += np.bincount(scaled, minlength=bins)
    return counts
