from math import inf

import numpy as np
import pytest
from float_graphs import Build, assert_same, graph_of

from qcompiler.ir.graph import Declined, Graph
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import AveragePool, Concat, Conv, MaxPool, Pad, Slice
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Mul, Sigmoid
from qcompiler.passes.calibrate.statistics import observe
from qcompiler.passes.equalize import ALPHA, ALPHA_ONE_SCALE, ALPHA_WHOLE, BOUND, channel_classes, class_scales, equalize
from qcompiler.passes.storage_points import storage_points


def measured(graph: Graph) -> dict:
    """Statistics of one random sample."""
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs}
    points = storage_points(graph)
    return {v: observe(np.asarray(x), v.type.rank - 1) for v, x in evaluate(graph, feeds, points).items()}


def unevenness(graph: Graph, op: type) -> float:
    """Greatest over least channel range of the values that `op` computes."""
    ranges = [np.maximum(-s.channel_min, s.channel_max) for v, s in measured(graph).items() if isinstance(v.op, op) and v not in graph.outputs]
    return max(float(r.max() / r[r > 0].min()) for r in ranges)


def spread(b, conv, octaves=3):
    """Scale the output channels of a convolution by widely different factors, in place."""
    factors = 2.0 ** b.rng.uniform(-octaves, octaves, conv.shape[3]).astype(np.float32)
    for c in conv.inputs[1:]:
        c.op.data[...] *= factors.reshape(-1, *[1] * (c.op.data.ndim - 1))
    return conv


@pytest.mark.parametrize("op", [Clip(0.0, inf), LeakyRelu(0.1), MaxPool((2, 2)), AveragePool((2, 2)), Pad(((0, 0), (1, 1), (1, 1), (0, 0)))])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_channels_become_evener_and_the_function_stays(op, groups):
    b = Build()
    first = spread(b, b.conv(b.input(1, 6, 6, 4), 8, 3))
    graph = graph_of(b.conv(b.op(op, first), 16, groups=groups))
    after = equalize(graph, measured(graph))
    assert_same(graph, after)
    kind = Conv if first in measured(graph) else type(op)
    assert unevenness(after, kind) < 0.7 * unevenness(graph, kind)


def test_a_residual_stream_is_scaled_as_one():
    b = Build()
    stem = spread(b, b.conv(b.input(1, 6, 6, 4), 8))
    branch = b.conv(b.op(Clip(0.0, inf), b.conv(stem, 8)), 8)
    graph = graph_of(b.conv(b.op(Clip(0.0, inf), b.op(Add(), branch, stem)), 5))
    after = equalize(graph, measured(graph))
    assert_same(graph, after)
    assert unevenness(after, Conv) < 0.8 * unevenness(graph, Conv)


def test_scales_are_bounded_and_dead_channels_left():
    b = Build()
    v = b.conv(b.input(1, 1, 1, 3), 4)
    classes = {v: channel_classes(graph_of(v))[v]}
    s = class_scales(classes, {v: observe(np.array([[0.0, 1e-6, 0.25, 1.0]], np.float32), 1)})
    np.testing.assert_allclose(s[classes[v]], [1.0, 1 / BOUND, 0.25**ALPHA, 1.0])


@pytest.mark.parametrize(("per_channel", "share"), [(True, ALPHA_WHOLE), (False, ALPHA_ONE_SCALE)])
def test_depthwise_weights_take_up_a_scale_where_they_have_one_for_each_channel(per_channel, share):
    b = Build()
    v = b.conv(b.input(1, 1, 1, 3), 4)
    classes = channel_classes(graph_of(b.conv(v, 4, groups=4)))
    s = class_scales(classes, {v: observe(np.array([[0.5, 0.25, 0.125, 1.0]], np.float32), 1)}, per_channel)
    np.testing.assert_allclose(s[classes[v]], np.array([0.5, 0.25, 0.125, 1.0]) ** share)


def test_channels_keep_their_scale_through_concat_and_slice():
    b = Build()
    x = b.input(1, 6, 6, 4)
    joined = b.op(Concat(3), spread(b, b.conv(x, 8)), spread(b, b.conv(x, 4)))
    sliced = b.op(Slice((0, 0, 0, 2), (1, 6, 6, 10), (1, 1, 1, 1)), joined)
    graph = graph_of(b.op(Add(), b.conv(joined, 5), b.conv(sliced, 5)))
    after = equalize(graph, measured(graph))
    assert_same(graph, after)
    assert unevenness(after, Concat) < 0.7 * unevenness(graph, Concat)


def test_what_does_not_commute_is_declined():
    b = Build()
    first = spread(b, b.conv(b.input(1, 4, 4, 3), 4))
    declined = Declined()
    graph = graph_of(b.conv(b.op(Clip(0.0, 6.0), first), 4))
    assert equalize(graph, measured(graph), declined) is graph
    assert any("does not commute" in reason for _, reason in declined.reasons)
    graph = graph_of(b.conv(b.op(Sigmoid(), first), 4))
    assert equalize(graph, measured(graph)) is graph


def test_inputs_and_outputs_keep_their_scale():
    b = Build()
    first = spread(b, b.conv(b.input(1, 4, 4, 4), 4))
    graph = graph_of(b.conv(first, 4), first)
    assert equalize(graph, measured(graph)) is graph


@pytest.mark.parametrize("swapped", [True, False])
def test_the_linear_factor_of_a_gate_takes_the_scale(swapped):
    """(s u) silu(g) = s (u silu(g)): SwiGLU."""
    b = Build()
    x = b.input(1, 6, 6, 4)
    up, gate = spread(b, b.conv(x, 8)), b.op(Sigmoid(), b.conv(x, 8))
    product = b.op(Mul(), *((gate, up) if swapped else (up, gate)))
    graph = graph_of(b.conv(product, 5))
    after = equalize(graph, measured(graph))
    assert_same(graph, after)
    assert unevenness(after, Mul) < 0.7 * unevenness(graph, Mul)
    kept = [v for v in after.order if isinstance(v.op, Sigmoid)]
    assert kept == [gate], "what the table computes does not change"


def test_a_square_and_a_constant_factor_take_no_scale():
    b = Build()
    first = spread(b, b.conv(b.input(1, 4, 4, 3), 4))
    for product in (b.op(Mul(), first, first), b.op(Mul(), first, b.const(4))):
        graph = graph_of(b.conv(product, 4))
        assert equalize(graph, measured(graph)) is graph


def test_a_gate_of_one_number_per_channel_takes_no_scale():
    b = Build()
    first = spread(b, b.conv(b.input(1, 4, 4, 3), 4))
    gate = b.op(Sigmoid(), b.conv(b.input(1, 1, 1, 3, name="z"), 4))
    graph = graph_of(b.conv(b.op(Mul(), first, gate), 4))
    assert equalize(graph, measured(graph)) is graph
