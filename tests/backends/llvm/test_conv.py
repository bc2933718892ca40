"""Convolution kernels of every target, natively where this CPU can and by meaning elsewhere, against the reference. Exactly."""

from __future__ import annotations

import pytest

from qcompiler.backends.llvm.target import TARGETS, Target

from .convolutions import Case, check

SAME = ((1, 1), (1, 1))
WIDE = ((2, 2), (2, 2))

DENSE = {
    "dense 1-1": Case((1, 1, 1, 1), 1),
    "dense 100-10": Case((1, 1, 1, 100), 10),
    "dense 64-33": Case((1, 1, 1, 64), 33, after=("lookup",)),
    "dense rows 5x17-64": Case((1, 1, 5, 17), 64),
    "1x1 16-16": Case((1, 7, 9, 16), 16),
    "1x1 in two images": Case((2, 3, 5, 4), 20, after=("bounds",)),
    "1x1 gap": Case((1, 5, 6, 16), 10, gap=3),
    "1x1 strided": Case((1, 7, 8, 5), 33, strides=(2, 2)),
    "3x3 1-16": Case((1, 6, 7, 1), 16, (3, 3), pads=SAME),
    "3x3 3-16 strided": Case((1, 9, 8, 3), 16, (3, 3), (2, 2), pads=SAME),
    "3x3 4-10 add": Case((1, 5, 5, 4), 10, (3, 3), pads=SAME, after=("add",)),
    "3x3 16-64 add": Case((1, 6, 6, 16), 64, (3, 3), pads=SAME, after=("add", "clamp")),
    "3x3 5-33 add swapped": Case((1, 4, 7, 5), 33, (3, 3), after=("add-swapped",)),
    "3x3 64-16 gap add": Case((1, 4, 5, 64), 16, (3, 3), pads=SAME, after=("add",), gap=5),
    "3x3 left shifts": Case((1, 4, 4, 8), 24, (3, 3), pads=SAME, after=("left",)),
    "3x3 dilated": Case((1, 9, 9, 17), 10, (3, 3), pads=WIDE, dilations=(2, 2)),
    "3x2 rows dilated": Case((1, 9, 6, 8), 12, (3, 2), dilations=(3, 1)),
    "5x5 asymmetric pads": Case((1, 9, 7, 3), 64, (5, 5), (2, 1), pads=((1, 2), (2, 0))),
    "7x7 3-10 strided": Case((1, 15, 15, 3), 10, (7, 7), (2, 2), pads=((3, 3), (3, 3))),
    "1x5 of 1-D": Case((1, 1, 20, 16), 17, (1, 5), pads=((0, 0), (2, 2))),
    "clamp and lookup": Case((1, 3, 3, 16), 17, after=("clamp", "lookup")),
    "table per channel 33": Case((1, 3, 5, 16), 33, after=("lookup", "channel-lookup")),
    "table per channel in groups": Case((1, 3, 5, 16), 8, groups=2, after=("channel-lookup",)),
    "groups of 4": Case((1, 5, 5, 16), 32, (3, 3), pads=SAME, groups=4, after=("add",)),
    "groups of 1 to 2": Case((1, 5, 5, 6), 12, (3, 3), pads=SAME, groups=6),
    "7 bits: 1x1 64-33": Case((1, 5, 7, 64), 33, reach=63),
    "7 bits: 3x3 5-24": Case((1, 5, 6, 5), 24, (3, 3), pads=SAME, reach=63),
    "6 bits: groups of 8": Case((1, 5, 5, 16), 16, (3, 3), groups=2, reach=31),
    "3 bits: 3x3 dilated": Case((1, 7, 7, 12), 8, (3, 3), dilations=(2, 2), reach=3),
    "4 bits: dense 100-70": Case((1, 1, 1, 100), 70, reach=7),
    "4 bits: 1x1 101-50 lookup": Case((1, 5, 7, 101), 50, reach=7, after=("lookup",)),
    "4 bits: 3x3 5-34 add": Case((1, 5, 6, 5), 34, (3, 3), pads=SAME, reach=7, after=("add",)),
    "4 bits: groups of 34 gap": Case((1, 5, 5, 34), 66, (3, 3), groups=2, reach=7, gap=3),
    "4 bits: 3x3 dilated in two images": Case((2, 7, 7, 12), 21, (3, 3), dilations=(2, 2), reach=7),
    "4 bits: 3x3 12-40 of many pixels": Case((1, 9, 11, 12), 40, (3, 3), pads=SAME, reach=7, after=("add",)),
    "6 bits: 3x3 20-24": Case((1, 5, 6, 20), 24, (3, 3), pads=SAME, reach=31),
    "2 bits: 1x1 64-80 strided": Case((1, 7, 8, 64), 80, strides=(2, 2), reach=1, after=("bounds",)),
    "groups of 17": Case((1, 3, 4, 34), 66, groups=2),
    "16 bits: dense 1-1": Case((1, 1, 1, 1), 1, bits=16),
    "16 bits: dense 101-10": Case((1, 1, 1, 101), 10, bits=16),
    "16 bits: dense 1000-70 lookup": Case((1, 1, 1, 1000), 70, after=("lookup",), reach=60, bits=16),
    "16 bits: dense rows 5x18-33 gap": Case((1, 1, 5, 18), 33, gap=3, bits=16),
    "16 bits: 1x1 strided in two images": Case((2, 7, 8, 5), 33, strides=(2, 2), after=("bounds",), bits=16),
    "16 bits: 3x3 5-34 add": Case((1, 5, 6, 5), 34, (3, 3), pads=SAME, after=("add",), bits=16),
    "16 bits: 3x3 16-64 of 4 bits": Case((1, 6, 6, 16), 64, (3, 3), pads=SAME, reach=7, bits=16),
    "16 bits: 3x3 dilated": Case((1, 9, 9, 17), 10, (3, 3), pads=WIDE, dilations=(2, 2), bits=16),
    "16 bits: 7x7 3-10 strided": Case((1, 15, 15, 3), 10, (7, 7), (2, 2), pads=((3, 3), (3, 3)), bits=16),
    "16 bits: groups of 17": Case((1, 3, 4, 34), 66, groups=2, bits=16),
    "14 bits: 3x3 200-20": Case((1, 4, 4, 200), 20, (3, 3), pads=SAME, bits=14),
}
DEPTHWISE = {
    "3x3 16": Case((1, 5, 7, 16), 16, (3, 3), pads=SAME, groups=16),
    "3x3 strided 100 add": Case((1, 7, 9, 100), 100, (3, 3), (2, 2), pads=SAME, groups=100, after=("add",)),
    "5x5 5 images": Case((2, 6, 11, 5), 5, (5, 5), pads=WIDE, groups=5, after=("bounds",)),
    "7x7 3": Case((1, 8, 8, 3), 3, (7, 7), pads=((3, 3), (3, 3)), groups=3),
    "1x7 64": Case((1, 1, 20, 64), 64, (1, 7), pads=((0, 0), (3, 3)), groups=64),
    "7 bits: 3x3 24": Case((1, 5, 7, 24), 24, (3, 3), pads=SAME, groups=24, reach=63),
    "dilated 24 gap": Case((1, 9, 9, 24), 24, (3, 3), pads=WIDE, dilations=(2, 2), groups=24, gap=5),
    "table per channel": Case((1, 4, 5, 20), 20, (3, 3), groups=20, after=("channel-lookup", "clamp")),
    "1x1 33": Case((1, 3, 3, 33), 33, groups=33, after=("lookup",)),
    "9x9 8": Case((1, 12, 12, 8), 8, (9, 9), pads=((4, 4), (4, 4)), groups=8),
    "10x4 strided 17": Case((1, 25, 11, 17), 17, (10, 4), (2, 2), pads=((4, 5), (1, 1)), groups=17),
    "16 bits: 3x3 16": Case((1, 5, 7, 16), 16, (3, 3), pads=SAME, groups=16, bits=16),
    "16 bits: 3x3 strided 100 add": Case((1, 7, 9, 100), 100, (3, 3), (2, 2), pads=SAME, groups=100, after=("add",), bits=16),
    "16 bits: 5x5 5 images": Case((2, 6, 11, 5), 5, (5, 5), pads=WIDE, groups=5, after=("bounds",), bits=16),
    "16 bits: dilated 24 gap": Case((1, 9, 9, 24), 24, (3, 3), pads=WIDE, dilations=(2, 2), groups=24, gap=5, bits=16),
    "16 bits: 1x1 33": Case((1, 3, 3, 33), 33, groups=33, after=("lookup",), bits=16),
    "16 bits: 9x9 70": Case((1, 12, 12, 70), 70, (9, 9), pads=((4, 4), (4, 4)), groups=70, reach=90, bits=16),
}
CASES = {**{f"dense: {n}": c for n, c in DENSE.items()}, **{f"depthwise: {n}": c for n, c in DEPTHWISE.items()}}
MACHINES = {n: t if t.runs_here else t.generic() for n, t in TARGETS.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("target", MACHINES.values(), ids=MACHINES)
def test_equals_reference(case: Case, target: Target) -> None:
    check(case, target)


@pytest.mark.parametrize("name", ["dense: 3x3 4-10 add", "dense: groups of 4", "depthwise: 3x3 16"])
@pytest.mark.parametrize("target", [t for t in MACHINES.values() if not t.by_meaning], ids=lambda t: t.name)
def test_meaning_equals_reference(name: str, target: Target) -> None:
    check(CASES[name], target.generic())
