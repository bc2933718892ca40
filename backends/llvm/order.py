"""The order of lanes in bundles of registers, see `dsl`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .target import Target


def wide_order(target: Target, bits: int, count: int) -> NDArray[np.int64]:
    """Which of the `count * lanes(32)` consecutive channels each lane of a bundle holds.

    `bits` 32: the order of a bundle of `count` registers of int32 that packs to consecutive bytes: register j, part l, element e holds
    channel 4*count*l + 4*j + e. `bits` 16: the same for its `count / 2` packed registers (one, with repeats, where count is 1).
    """
    lanes = target.lanes * count
    channel = np.arange(lanes).reshape(target.parts, count, 4).transpose(1, 0, 2)
    if bits == 32:
        return channel.reshape(-1)
    pairs = channel if count > 1 else np.repeat(channel, 2, axis=0)
    return pairs.reshape(-1, 2, target.parts, 4).transpose(0, 2, 1, 3).reshape(-1)


def part_halves(lanes: int, bits: int) -> tuple[list[int], list[int]]:
    """Lane numbers of the low and of the high half of every 128-bit part."""
    part = 128 // bits
    starts = range(0, lanes, part)
    return [s + e for s in starts for e in range(part // 2)], [s + e for s in starts for e in range(part // 2, part)]
