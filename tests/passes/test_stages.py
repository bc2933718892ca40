"""Values through which a network passes as a whole."""

from __future__ import annotations

from float_graphs import Build, graph_of

from qcompiler.ir.ops import Concat
from qcompiler.ir.pointwise import Add, Clip
from qcompiler.passes.stages import stages


def test_what_lies_between_a_split_and_its_sum_is_none() -> None:
    b = Build()
    x = b.input(1, 4, 4, 8)
    stem = b.op(Clip(0, 6), b.conv(x, 8))
    inner = b.op(Clip(0, 6), b.conv(stem, 16))
    total = b.op(Add(), stem, b.conv(inner, 8))
    y = b.conv(total, 4)
    assert stages(graph_of(y)) == [stem.inputs[0], stem, total]


def test_nor_is_what_a_later_layer_reads_again() -> None:
    b = Build()
    x = b.input(1, 4, 4, 8)
    first = b.conv(x, 8)
    second = b.conv(first, 8)
    joined = b.op(Concat(3), first, second)
    assert stages(graph_of(b.conv(joined, 4))) == [first, joined]


def test_inputs_meet_before_the_first_stage() -> None:
    b = Build()
    x, y = (b.input(1, 4, 4, 8, name=name) for name in "xy")
    total = b.op(Add(), b.conv(x, 8), b.conv(y, 8))
    assert stages(graph_of(b.op(Clip(0, 1), total))) == [total]
    assert stages(graph_of(b.op(Add(), x, y))) == []
    assert stages(graph_of(b.const(3))) == []
