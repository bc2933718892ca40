"""What integers a graph may be fed, read off what it does with them; and casts of indices, which are none."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.backends import reference
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import IntCast, Lookup
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.pointwise import Not
from qcompiler.ir.sequence import Attention
from qcompiler.ir.types import DType, TensorType, float_type
from qcompiler.passes.index_ranges import index_problem, indexed_rows, input_interval, out_of_range
from qcompiler.passes.lower import lower_to_integers
from qcompiler.passes.remove_identities import remove_identities


def integers(*shape: int, dtype: DType = DType.i64, name: str = "ids") -> Value:
    return apply(ops.Input(TensorType(shape, dtype)), name=name)


def table(rows: int, name: str = "table") -> Value:
    return ops.constant(np.arange(2 * rows, dtype=np.float32).reshape(rows, 2), name)


def looked_up(rows: int, ids: Value, name: str = "e") -> Value:
    return apply(ops.Gather(0), table(rows, f"{name}.table"), ids, name=name)


def graph(*outputs: Value) -> Graph:
    inputs = dict.fromkeys(v for o in outputs for v in Graph((), (o,), ("y",)).order if isinstance(v.op, ops.Input))
    return Graph(tuple(inputs), outputs, tuple(f"y{n}" for n in range(len(outputs))))


def attended(mask: Value) -> Value:
    q = apply(ops.Input(float_type(1, 4, 1, 8)), name="q")
    return apply(Attention(1.0, mask=True), q, q, q, mask, name="a")


def test_the_shortest_table_rules() -> None:
    ids = integers(1, 4)
    moved = apply(ops.Reshape((4,)), apply(ops.Cast(DType.i32), ids, name="c"), name="r")
    g = graph(looked_up(9, ids, "a"), looked_up(7, moved, "b"))
    assert input_interval(g, ids) == (-7, 6)
    assert indexed_rows(g, ids) == 7
    assert out_of_range(g, ids, np.array([[6, -7, 0, 1]])) is None
    assert out_of_range(g, ids, np.array([[6, -7, 7, -8]])) == "expected integers in [-7, 6], found 7 at [0, 2]"


@pytest.mark.parametrize("dtype", [DType.i32, DType.i64, DType.bool])
def test_what_is_only_seen_or_not_may_be_anything(dtype: DType) -> None:
    mask = integers(1, 1, 1, 4, dtype=dtype)
    seen = mask if dtype is DType.bool else apply(ops.Cast(DType.bool), mask, name="seen")
    assert input_interval(graph(attended(seen)), mask) is None


@pytest.mark.parametrize("dtype", [DType.i32, DType.i64, DType.bool])
def test_what_hides_is_lowered_to_what_shows_and_may_be_anything(dtype: DType) -> None:
    """A mask that is true where nothing may be seen is inverted by a table that tells zero from all else."""
    mask = integers(1, 1, 1, 4, dtype=dtype)
    hidden = mask if dtype is DType.bool else apply(ops.Cast(DType.bool), mask, name="hidden")
    lowered = lower_to_integers(graph(apply(Not(), hidden, name="seen")))
    assert [type(v.op) for v in lowered.order if not isinstance(v.op, ops.Const)] == [ops.Input, IntCast, Lookup]
    assert input_interval(graph(attended(lowered.outputs[0])), mask) is None
    data = np.array([0, 1, 5, -1000]).reshape(mask.shape).astype(dtype.numpy)
    (seen,) = reference.run(lowered, {mask.name: data}).values()
    np.testing.assert_array_equal(seen, data == 0)


def test_what_is_seen_and_counted_is_a_mask() -> None:
    mask = integers(1, 1, 1, 4)
    number = apply(ops.Cast(DType.f32), mask, name="number")
    a = attended(apply(ops.Cast(DType.bool), mask, name="seen"))
    assert input_interval(graph(a, apply(pw.Neg(), number, name="n")), mask) == (0, 1)
    assert input_interval(graph(apply(pw.Neg(), number, name="n")), mask) == (-128, 127)


def test_real_numbers_have_no_interval() -> None:
    x = apply(ops.Input(float_type(2)), name="x")
    assert input_interval(graph(apply(pw.Neg(), x, name="n")), x) is None


def test_indices_made_within_are_proven() -> None:
    ids = integers(4)
    steps = ops.constant(np.array([-5, 3]), "steps")
    joined = apply(ops.Concat(0), ids, steps, name="joined")
    assert index_problem(joined, 5) is None
    assert index_problem(joined, 4) == "'steps' holds indices in [-5, 3], expected [-4, 3]"
    best = apply(ops.ArgMax(0, False, False), apply(ops.Input(float_type(6, 2)), name="x"), name="best")
    assert index_problem(best, 6) is None
    assert index_problem(best, 5) is not None
    assert index_problem(apply(pw.Neg(), ids, name="n"), 5) is not None


def test_casts_of_indices_are_dropped() -> None:
    ids = integers(1, 4, dtype=DType.i32)
    wide = apply(ops.Cast(DType.i64), ids, name="wide")
    moved = apply(ops.Slice((0, 1), (1, 4), (1, 2)), wide, name="moved")
    truth = apply(ops.Cast(DType.bool), apply(ops.Cast(DType.i64), ids, name="again"), name="truth")
    before = graph(looked_up(5, wide, "a"), looked_up(6, moved, "b"), truth)
    after = remove_identities(before)
    assert [v.op.dtype for v in after.order if isinstance(v.op, ops.Cast)] == [DType.bool]
    feeds = {"ids": np.array([[0, 4, -5, 2]], np.int32)}
    for x, y in zip(evaluate(before, feeds, before.outputs).values(), evaluate(after, feeds, after.outputs).values()):
        assert np.array_equal(x, y)
    assert remove_identities(after) is after
