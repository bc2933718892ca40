"""Unevenly spaced levels for what a table computes: they cost nothing there, whatever they are.

GELU and SiLU leave most of their results near zero and a few far out: 2^b evenly spaced levels waste most of theirs. Lloyd's algorithm
(Lloyd 1982, "Least squares quantization in PCM") places them where the histogram is:

    level_i = mean of the elements nearest to it,        until nothing moves

Levels are integers of eight bits, since that is how activations are stored; 16 of them are as good as 32 evenly spaced ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.types import Quantization

from .choose import MinMax, choose
from .statistics import Statistics

ROUNDS = 200


def codebook(statistics: Statistics, bits: int) -> Quantization:
    """An 8-bit quantization of the whole range that uses 2^bits integers only."""
    count, h = 1 << bits, statistics.histogram
    filled = h.counts > 0
    if filled.sum() <= count:
        return choose(statistics, MinMax(), 8)
    centers = ((h.edges[:-1] + h.edges[1:]) / 2)[filled]
    reals = lloyd(centers, h.counts[filled].astype(np.float64), count)
    lo, hi = min(float(reals[0]), 0.0), max(float(reals[-1]), 0.0)
    scale = float(np.float32((hi - lo) / 255))
    base = Quantization.per_tensor(scale, int(np.clip(np.rint(-128 - lo / scale), -128, 127)))
    return Quantization(base.scale, base.zero_point, levels=tuple(sorted({int(q) for q in base.quantize(reals)})))


def lloyd(values: NDArray[np.float64], weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """`count` levels, ascending, for ascending `values` of these weights; they start halfway between even spacing and quantiles."""
    share = (np.arange(count) + 0.5) / count
    total = np.cumsum(weights) / weights.sum()
    levels = (np.interp(share, total, values) + np.linspace(values[0], values[-1], count)) / 2
    for _ in range(ROUNDS):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        mass = np.bincount(nearest, weights, count)
        moved = np.where(mass > 0, np.bincount(nearest, weights * values, count) / np.maximum(mass, 1e-300), levels)
        if np.allclose(moved, levels, rtol=1e-6, atol=0):
            break
        levels = np.sort(moved)
    return levels
