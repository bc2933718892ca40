"""How work is divided: into which pieces, and that these cover every place."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from llvmlite import ir

from qcompiler.backends.llvm.codegen import jit
from qcompiler.backends.llvm.dsl import I8, WHOLE, Kernel
from qcompiler.backends.llvm.split import MOST_PIECES, Shared, bound, busy, grid, makespan, most_balanced, pieces
from qcompiler.backends.llvm.target import TARGETS

HERE = [t for t in TARGETS.values() if t.runs_here]


def test_small_work_is_not_divided() -> None:
    assert pieces(100, 500.0) == 1
    assert pieces(1, 1e6) == 1
    assert 2 <= pieces(100, 5000.0) <= pieces(100, 1e6) <= MOST_PIECES


def test_pieces_cover_every_round() -> None:
    assert makespan([(7, 7.0)], 7, 2) == 4.0
    assert makespan([(8, 8.0)], 8, 2) == 4.0
    assert makespan([(8, 8.0)], 2, 4) == 4.0
    assert busy([(1, 1.0)]) == pytest.approx(0.375)


def test_the_balanced_axis_is_chosen() -> None:
    assert most_balanced({"rows": [(7, 1.0)], "blocks": [(16, 1.0)]}) == "blocks"
    assert most_balanced({"rows": [(56, 1.0)], "blocks": [(16, 1.0)]}) == "rows"


@pytest.mark.parametrize("rows, width, size", [(14, 14, 4), (5, 3, 3), (1, 9, 2), (3, 8, 1)])
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_pieces_of_bands_stay_within_their_rows(rows: int, width: int, size: int, count: int) -> None:
    """Every pixel is met, and by no other piece than that of its row."""
    module = ir.Module()
    k = Kernel.divided(module, HERE[0], "f", ("out",))
    k.function.linkage = "external"
    with k.bands(rows, width, size) as start:
        for i in range(size):
            at = k.parameters[0] + start + i
            k.b.store(k.b.add(k.b.load(at.ir, typ=I8), ir.Constant(I8, 1)), at.ir)
    k.ret()
    (function,) = jit(module, HERE[0], ["f"])
    step = -(-WHOLE // count)
    for piece in range(count):
        visits = np.zeros(rows * width, np.uint8)
        function(visits.ctypes.data, piece * step, (piece + 1) * step)
        first, last = (width * bound(rows, p, count) for p in (piece, piece + 1))
        assert np.array_equal(visits > 0, [first <= i < last for i in range(rows * width)])


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("shared", [None, (0, 1), (1, 2), (2, 4), (1, 4), (0, 4)])
def test_pieces_of_a_grid_meet_every_place_once(shared: Shared | None, count: int) -> None:
    """Each place of the grid counts its visits; without shared loops every piece visits them all."""
    module, sizes = ir.Module(), (2, 1, 3, 5)
    k = Kernel.divided(module, HERE[0], "f", ("out",))
    k.function.linkage = "external"
    with grid(k, sizes, shared) as index:
        assert len(index) == 4
        at = k.parameters[0]
        for i, stride in zip(index, (15, 15, 5, 1)):
            at = at + i * stride
        k.b.store(k.b.add(k.b.load(at.ir, typ=I8), ir.Constant(I8, 1)), at.ir)
    k.ret()
    (function,) = jit(module, HERE[0], ["f"])
    visits, bounds = np.zeros(30, np.uint8), [WHOLE * i // count for i in range(count + 1)]
    for first, last in pairwise(bounds):
        function(visits.ctypes.data, first, last)
    assert visits.tolist() == [1 if shared else count] * 30
    assert k.span is not None
    assert k.span.units == (prod(sizes[slice(*shared)]) if shared else 0)
