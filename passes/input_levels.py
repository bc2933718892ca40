"""The levels that a graph input takes, where it takes few: pixels remain bytes however they were scaled and shifted.

    x = low_c + step_c k        k in 0 .. 255, c the channel

Stored in steps of any other length, such an input is rounded once more than it has to be; for small networks on images that is the greatest
error of all. The step is the least distance between numbers seen, made precise by their whole span. Data that is not on such a lattice
says so within a few dozen numbers, as its distances are no multiples of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.types import Quantization

Array = NDArray[np.floating]
Feeds = Mapping[str, NDArray[np.generic]]

LEVELS = 256
FEWEST = 16
"""Different numbers, from which on regular distances are no accident."""
SAME = 1e-5
"""Numbers nearer than this part of their span are one, computed twice."""
OFF = 0.02
"""By how much of a step numbers may miss their level."""
MOST_CHANNELS = 4
WHOLE = 1e-3
"""Zero counts as a level where it misses one by no more."""


@dataclass(frozen=True)
class Levels:
    """`step` and `zero` (the level of the number 0, perhaps between two) per index of `axis`; of one entry: for all numbers, `axis` None."""

    step: tuple[float, ...]
    zero: tuple[float, ...]
    axis: int | None = None

    @property
    def common_zero(self) -> int | None:
        """The level of the number 0, where that is the same level for all channels."""
        whole = round(self.zero[0])
        return whole if 0 <= whole < LEVELS and all(abs(z - whole) < WHOLE for z in self.zero) else None

    @property
    def quantization(self) -> Quantization | None:
        """What stores all levels exactly, where one step and zero point do."""
        if len(self.step) > 1 or self.common_zero is None:
            return None
        return Quantization.per_tensor(self.step[0], self.common_zero - LEVELS // 2)


def input_levels(samples: Sequence[NDArray[np.generic]]) -> Levels | None:
    """The levels of an input that took these values: of all numbers, else of each channel along axis 1 or the last; None where there are none."""
    if not samples or samples[0].dtype.kind != "f":
        return None
    shape = samples[0].shape
    axes = [a for a in dict.fromkeys((1, len(shape) - 1)) if len(shape) > 2 and shape[a] <= MOST_CHANNELS]
    if (whole := _lattice(np.concatenate([np.unique(x) for x in samples]))) is None:
        return next((found for axis in axes if (found := _by_channel(samples, axis)) is not None), None)
    found = Levels((whole[0],), (whole[1],))
    if found.common_zero is None and axes:
        return Levels(found.step * shape[axes[0]], found.zero * shape[axes[0]], axes[0])
    return found


def _by_channel(samples: Sequence[NDArray[np.generic]], axis: int) -> Levels | None:
    found = [_lattice(np.concatenate([np.unique(x.take(c, axis)) for x in samples])) for c in range(samples[0].shape[axis])]
    known = [f for f in found if f is not None]
    return Levels(tuple(s for s, _ in known), tuple(z for _, z in known), axis) if len(known) == len(found) else None


def _lattice(numbers: NDArray[np.generic]) -> tuple[float, float] | None:
    """(step, level of the number 0) of numbers that are low + step k."""
    distinct = np.unique(numbers.astype(np.float64))
    span = float(distinct[-1] - distinct[0]) if distinct.size and np.isfinite(distinct).all() else 0.0
    if not span:
        return None
    distances = np.diff(distinct)
    apart = distances[distances > SAME * span]
    if not FEWEST <= apart.size + 1 <= LEVELS:
        return None
    count = round(span / float(apart.min()))
    step = span / count
    k = (distinct - distinct[0]) / step
    if count >= LEVELS or np.abs(k - np.rint(k)).max() > OFF:
        return None
    return _spread(float(distinct[0]), step, count + 1)


def _spread(low: float, step: float, levels: int) -> tuple[float, float]:
    """Levels that are left over make steps finer, then go to both ends; numbers that are never negative stay so."""
    finer = (LEVELS - 1) // (levels - 1)
    step, levels = step / finer, (levels - 1) * finer + 1
    below = (LEVELS - levels) // 2
    if low >= 0:
        below = min(below, round(low / step))
    return float(np.float32(step)), below - low / step
