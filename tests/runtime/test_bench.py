"""Measurement: summaries are right, and programs take turns."""

from __future__ import annotations

import time

from qcompiler.runtime.bench import AT_LEAST, WARM_UP, Latency, compare, measure


def test_a_summary_is_in_milliseconds() -> None:
    latency = Latency.of([n * 1_000_000 for n in range(1, 12)])
    assert (latency.median, latency.low, latency.high, latency.calls) == (6, 2, 10, 11)
    assert latency.spread == 8 / 6


def test_a_sleep_takes_as_long_as_it_says() -> None:
    latency = measure(lambda: time.sleep(0.002), seconds=0.02)
    assert 2 <= latency.median < 20
    assert latency.calls >= AT_LEAST


def test_programs_take_turns_after_warming_up() -> None:
    order: list[str] = []
    result = compare({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)
    assert order == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * AT_LEAST
    assert result["a"].calls == result["b"].calls == AT_LEAST
