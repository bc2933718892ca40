"""Latency on this machine: calls are warmed up, interleaved and summarized by their median.

Where several programs are compared they take turns, so that a change of clock rate or a busy neighbour strikes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

import numpy as np

WARM_UP, AT_LEAST = 3, 7


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: median, the 10th and the 90th percentile, and how many calls were measured."""

    median: float
    low: float
    high: float
    calls: int

    @property
    def spread(self) -> float:
        """Distance of the percentiles, relative to the median."""
        return (self.high - self.low) / self.median

    @classmethod
    def of(cls, nanoseconds: list[int]) -> Latency:
        """Summary of single calls."""
        low, middle, high = np.percentile(np.array(nanoseconds) / 1e6, (10, 50, 90))
        return cls(float(middle), float(low), float(high), len(nanoseconds))


def measure(call: Callable[[], object], seconds: float = 1.0) -> Latency:
    """Latency of `call`, which is run for about `seconds`."""
    return compare({"call": call}, seconds)["call"]


def compare(calls: Mapping[str, Callable[[], object]], seconds: float = 1.0) -> dict[str, Latency]:
    """Latency of each of `calls`, which take turns for about `seconds` times their number."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[int]] = {name: [] for name in calls}
    take_turns([partial(_time, call, times[name]) for name, call in calls.items()], seconds * len(calls))
    return {name: Latency.of(samples) for name, samples in times.items()}


def take_turns(calls: Collection[Callable[[], object]], seconds: float, at_least: int = AT_LEAST) -> None:
    """Call one after the other, over and over, for `seconds` in all and `at_least` times each."""
    turns, end = 0, perf_counter_ns() + int(seconds * 1e9)
    while perf_counter_ns() < end or turns < at_least:
        for call in calls:
            call()
        turns += 1


def _time(call: Callable[[], object], times: list[int]) -> None:
    start = perf_counter_ns()
    call()
    times.append(perf_counter_ns() - start)
