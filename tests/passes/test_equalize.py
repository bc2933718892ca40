from math import inf

import numpy as np
import pytest
from float_graphs import Build, assert_same, graph_of

from qcompiler.ir.graph import Declined, Graph
from qcompiler.ir.ops import AveragePool, Conv, MaxPool, Pad
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Sigmoid
from qcompiler.passes.equalize import BOUND, equalize


def convolutions(graph: Graph):
    return [v for v in graph.order if isinstance(v.op, Conv)]


def spread(b, conv, octaves=3):
    """Scale the output channels of a convolution by widely different factors, in place."""
    factors = 2.0 ** b.rng.uniform(-octaves, octaves, conv.shape[3]).astype(np.float32)
    for c in conv.inputs[1:]:
        c.op.data[...] *= factors.reshape(-1, *[1] * (c.op.data.ndim - 1))
    return conv


@pytest.mark.parametrize("op", [Clip(0.0, inf), LeakyRelu(0.1), MaxPool((2, 2)), AveragePool((2, 2)), Pad(((0, 0), (1, 1), (1, 1), (0, 0)))])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_ranges_become_equal_and_the_function_stays(op, groups):
    b = Build()
    first = spread(b, b.conv(b.input(1, 6, 6, 4), 8, 3))
    graph = graph_of(b.conv(b.op(op, first), 16, groups=groups))
    after = equalize(graph)
    assert_same(graph, after)
    a, c = (np.abs(v.inputs[1].op.data) for v in convolutions(after))
    inputs = c.reshape(groups, 16 // groups, 1, 1, -1).max(axis=(1, 2, 3)).reshape(-1)
    np.testing.assert_allclose(a.max(axis=(1, 2, 3)), inputs, rtol=1e-2)


def test_a_chain_through_a_depthwise_layer():
    b = Build()
    x = b.op(Clip(0.0, inf), spread(b, b.conv(b.input(1, 6, 6, 4), 8)))
    x = b.op(Clip(0.0, inf), spread(b, b.conv(x, 8, 3, groups=8)))
    graph = graph_of(b.conv(x, 5, bias=False))
    after = equalize(graph)
    assert_same(graph, after)
    first, middle, last = (np.abs(v.inputs[1].op.data) for v in convolutions(after))
    np.testing.assert_allclose(first.max(axis=(1, 2, 3)), middle.max(axis=(1, 2, 3)), rtol=2e-2)
    np.testing.assert_allclose(middle.max(axis=(1, 2, 3)), last.max(axis=(0, 1, 2)), rtol=2e-2)
    assert_settled(after)


def assert_settled(graph):
    again = equalize(graph)
    for v, w in zip(convolutions(graph), convolutions(again)):
        np.testing.assert_allclose(v.inputs[1].op.data, w.inputs[1].op.data, rtol=1e-2)


def test_dead_channels_are_left_and_factors_bounded():
    b = Build()
    first = b.conv(b.input(1, 4, 4, 3), 4)
    first.inputs[1].op.data[0] = 0.0
    first.inputs[1].op.data[1] *= 1e9
    second = b.conv(first, 4)
    second.inputs[1].op.data[..., 2] = 0.0
    after = equalize(graph_of(second))
    a, _ = convolutions(after)
    assert np.array_equal(a.inputs[1].op.data[0], first.inputs[1].op.data[0])
    assert np.array_equal(a.inputs[1].op.data[2], first.inputs[1].op.data[2])
    np.testing.assert_allclose(a.inputs[1].op.data[1], first.inputs[1].op.data[1] / BOUND, rtol=1e-6)
    assert_same(graph_of(second), after)


def test_what_does_not_commute_is_declined():
    b = Build()
    first = b.conv(b.input(1, 4, 4, 3), 4)
    declined = Declined()
    graph = graph_of(b.conv(b.op(Clip(0.0, 6.0), first), 4))
    assert equalize(graph, declined) is graph
    assert any("clip at (0, 6)" in reason for _, reason in declined.reasons)
    graph = graph_of(b.conv(b.op(Sigmoid(), first), 4))
    assert equalize(graph) is graph


def test_branches_are_left_alone():
    b = Build()
    first = b.conv(b.input(1, 4, 4, 4), 4)
    graph = graph_of(b.op(Add(), b.conv(first, 4), first))
    assert equalize(graph) is graph
    graph = graph_of(b.conv(first, 4), first)
    assert equalize(graph) is graph
