"""Estimated cycles: proportional to the work, and wholly modelled."""

from __future__ import annotations

from collections import Counter

import pytest
from toy_objects import ARCHITECTURES, INTERFACE, platform, rows, toy

from qcompiler.backends import cycles
from qcompiler.backends.cycles import CORES, estimate
from qcompiler.backends.emulate import UnicornExecutor
from qcompiler.backends.image import Image, flatten
from qcompiler.runtime import MachineError, Program

needs_analyzer = pytest.mark.skipif(cycles.analyzer() is None, reason="not installed: llvm-mca 17 or later")


def traced(image: Image) -> Counter[tuple[int, int]]:
    executor = UnicornExecutor.of_image(image.data, image.entries, image.arch)
    with executor.tracing() as blocks:
        Program(INTERFACE, executor).run_integer({"x": rows(1)})
    return blocks


@needs_analyzer
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cycles_are_those_of_the_blocks_executed(arch: str) -> None:
    image = flatten(toy(arch))
    blocks = traced(image)
    once = estimate(image, blocks, platform(arch).features)
    assert once.core == CORES[arch]
    assert once.modelled > 0.9
    instructions = sum(n * sum(1 for _ in cycles._instructions(image, place)) for place, n in blocks.items())
    assert instructions / 8 < once.cycles < 20 * instructions
    twice = estimate(image, Counter({place: 2 * n for place, n in blocks.items()}), platform(arch).features)
    assert twice.cycles == pytest.approx(2 * once.cycles)


@needs_analyzer
def test_unknown_cores_are_refused() -> None:
    image = flatten(toy("aarch64"))
    with pytest.raises(MachineError, match="no-such-core"):
        estimate(image, traced(image), (), "no-such-core")


def test_a_missing_analyzer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycles, "analyzer", lambda: None)
    with pytest.raises(MachineError, match="apt install llvm-19"):
        estimate(flatten(toy("aarch64")), {}, ())
