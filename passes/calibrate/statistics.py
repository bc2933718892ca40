"""What is remembered of a value that takes many tensors: extremes, histogram and per-channel moments, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram, count, merge


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of all elements seen so far. Channel arrays have one element per index of the last axis of the IR value ([1] for scalars)."""

    count: int
    min: float
    max: float
    histogram: Histogram
    channel_sum: NDArray[np.float64]
    channel_min: NDArray[np.float64]
    channel_max: NDArray[np.float64]

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """E[x] per channel."""
        return self.channel_sum / (self.count / len(self.channel_sum))


def observe(x: NDArray[np.generic], channel_axis: int | None) -> Statistics:
    """The statistics of one tensor, float or integer, whose channels lie along `channel_axis`; ValueError if one is infinite or NaN."""
    real = x.astype(np.float32, copy=False)
    channels = real.reshape(1, 1, -1) if channel_axis is None else _channels_in_the_middle(real, channel_axis)
    least, greatest = channels.min((0, 2)).astype(np.float64), channels.max((0, 2)).astype(np.float64)
    lo, hi = float(least.min()), float(greatest.max())
    if not (np.isfinite(lo) and np.isfinite(hi)):
        raise ValueError("NaN or infinite")
    return Statistics(x.size, lo, hi, count(real, lo, hi), channels.sum((0, 2), dtype=np.float64), least, greatest)


def _channels_in_the_middle(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """`x` as [before, channels, after]."""
    before = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(before, x.shape[axis], -1)


def combine(a: Statistics | None, b: Statistics) -> Statistics:
    """The statistics of all that either saw."""
    if a is None:
        return b
    return Statistics(
        a.count + b.count,
        min(a.min, b.min),
        max(a.max, b.max),
        merge(a.histogram, b.histogram),
        a.channel_sum + b.channel_sum,
        np.minimum(a.channel_min, b.channel_min),
        np.maximum(a.channel_max, b.channel_max),
    )
