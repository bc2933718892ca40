"""Reshapes move behind normalizations, additions and slices, so that dense layers, streams and attention stand side by side."""

import pytest
from float_graphs import Build, assert_same, graph_of

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, Reshape, Slice
from qcompiler.ir.pointwise import Add
from qcompiler.ir.sequence import Normalize
from qcompiler.passes.sink_reshapes import sink_reshapes

N, C = 6, 8


def operators(graph: Graph) -> list[str]:
    return [type(v.op).__name__ for v in graph.order if v.inputs]


def normalized(b: Build, x: Value) -> Value:
    return b.op(Normalize(1e-5), x, b.const(x.shape[-1]), b.const(x.shape[-1]))


@pytest.mark.parametrize("shape", [(1, N, C), (N, C), (2, 3, 1, C)])
def test_behind_a_normalization(shape) -> None:
    b = Build()
    graph = graph_of(normalized(b, b.op(Reshape(shape), b.conv(b.input(1, 1, N, 4), C))))
    after = sink_reshapes(graph)
    assert_same(graph, after)
    assert operators(after) == ["Conv", "Normalize", "Reshape"]


def test_not_behind_a_normalization_of_other_channels() -> None:
    b = Build()
    graph = graph_of(normalized(b, b.op(Reshape((1, N, 2, C // 2)), b.conv(b.input(1, 1, N, 4), C))))
    assert sink_reshapes(graph) is graph


@pytest.mark.parametrize("first", [True, False])
def test_a_stream_takes_the_shape_of_dense_layers(first: bool) -> None:
    b = Build()
    x = b.input(1, N, C)
    dense = b.op(Reshape((1, N, C)), b.conv(b.input(1, 1, N, 4, name="z"), C))
    graph = graph_of(b.op(Add(), *((x, dense) if first else (dense, x))))
    after = sink_reshapes(graph)
    assert_same(graph, after)
    addition = next(v for v in after.order if isinstance(v.op, Add))
    assert addition.shape == (1, 1, N, C)
    assert any(isinstance(i.op, Conv) for i in addition.inputs)


def test_a_sum_that_regroups_channels_stays() -> None:
    b = Build()
    dense = b.op(Reshape((1, N, 2, C // 2)), b.conv(b.input(1, 1, N, 4), C))
    graph = graph_of(b.op(Add(), b.input(1, N, 2, C // 2, name="x"), dense))
    assert sink_reshapes(graph) is graph


def cut(b: Build, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    starts, stops, steps = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    starts[axis], stops[axis], steps[axis] = start, stop, step
    return b.op(Slice(tuple(starts), tuple(stops), tuple(steps)), x)


def test_parts_of_a_fused_layer_are_parts_of_its_channels() -> None:
    b = Build()
    qkv = b.op(Reshape((1, N, 3, 2, 4)), b.conv(b.input(1, 1, N, 5), 24))
    graph = graph_of(*(cut(b, qkv, 2, i, i + 1) for i in range(3)))
    after = sink_reshapes(graph)
    assert_same(graph, after)
    slices = [v for v in after.order if isinstance(v.op, Slice)]
    assert [(s.op.starts[-1], s.op.stops[-1]) for s in slices] == [(0, 8), (8, 16), (16, 24)]
    assert all(isinstance(s.inputs[0].op, Conv) for s in slices)


@pytest.mark.parametrize(("axis", "step"), [(3, 1), (4, 1), (2, 2)])
def test_other_slices_stay(axis: int, step: int) -> None:
    """Of an inner axis, or with steps: no range of channels."""
    b = Build()
    qkv = b.op(Reshape((1, N, 3, 2, 4)), b.conv(b.input(1, 1, N, 5), 24))
    graph = graph_of(cut(b, qkv, axis, 0, qkv.shape[axis] if step > 1 else 1, step))
    assert sink_reshapes(graph) is graph
