"""The clipping limit of least information loss (Migacz 2017, "8-bit inference with TensorRT").

For each limit t, P is the histogram clipped to [-t, t] with what lies beyond moved to the outermost bins, and Q what remains
of it when its bins are merged into the quantizer's levels and spread again over the bins that were occupied; t minimises KL(P || Q).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram

STEP = 16
"""Bins between neighbouring candidates."""

SMOOTHING = 1e-4
"""Share given to empty bins, so that the divergence is finite."""


def least_divergence(h: Histogram, levels: int) -> float:
    """The limit t of the range [-t, t], in real numbers; the bin at zero counts as its neighbours (Relu puts half of all there)."""
    counts = _without_spike(h).astype(np.float64)
    reach = max(-h.first, h.first + len(counts))
    sides = (h.first < 0) + (h.first + len(counts) > 1)
    limits = list(range(max(levels // max(sides, 1), 1), reach, STEP)) + [reach]
    divergences = [_divergence(counts, h.first, t, levels) for t in limits]
    return limits[int(np.argmin(divergences))] * h.width


def _without_spike(h: Histogram) -> NDArray[np.int64]:
    counts, zero = h.counts.copy(), -h.first
    around = [counts[i] for i in (zero - 1, zero + 1) if 0 <= i < len(counts)]
    counts[zero] = min(counts[zero], max(around, default=counts[zero]))
    return counts


def _divergence(counts: NDArray[np.float64], first: int, limit: int, levels: int) -> float:
    start, stop = max(-limit - first, 0), min(limit - first, len(counts))
    kept = counts[start:stop]
    if not kept.sum():
        return np.inf
    clipped = kept.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    return _kullback_leibler(clipped, _requantized(kept, levels))


def _requantized(kept: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """`kept` averaged over the occupied bins of each level."""
    level = np.arange(len(kept)) * levels // len(kept)
    occupied = kept > 0
    mean = np.bincount(level, kept, levels) / np.maximum(np.bincount(level, occupied, levels), 1)
    return np.where(occupied, mean[level], 0.0)


def _kullback_leibler(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    p, q = (_smoothed(d) for d in (p, q))
    return float(np.sum(p * np.log(p / q)))


def _smoothed(d: NDArray[np.float64]) -> NDArray[np.float64]:
    d = d / d.sum()
    return (1 - SMOOTHING) * d + SMOOTHING / len(d)
