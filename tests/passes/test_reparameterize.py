"""Scales of normalizations per channel become one: the same function, the same integers, evener channels."""

import numpy as np
import pytest
from float_graphs import Build, assert_same, graph_of

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, Reshape, constant
from qcompiler.ir.pointwise import Add, Gelu
from qcompiler.ir.sequence import Normalize
from qcompiler.passes.calibrate.statistics import Statistics, observe
from qcompiler.passes.reparameterize import BOUND, LEVELS, from_ranges, reparameterize

D, ROWS = 24, 50


def normalized(b: Build, x: Value, centered: bool = True) -> Value:
    """With channels of very different reach, some far from zero."""
    gamma = constant(b.rng.lognormal(0, 1.0, D).astype(np.float32), "gamma")
    beta = constant(b.rng.normal(0, 3.0, D).astype(np.float32), "beta")
    return b.op(Normalize(1e-5, centered), x, gamma, beta)


def measured(graph: Graph) -> dict[Value, Statistics]:
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs}
    norms = [v for v in graph.order if isinstance(v.op, Normalize)]
    return {v: observe(np.asarray(x), x.ndim - 1) for v, x in evaluate(graph, feeds, norms).items()}


def one_reader(b: Build) -> Graph:
    return graph_of(b.conv(normalized(b, b.input(1, 1, ROWS, D)), 8))


def root_mean_square(b: Build) -> Graph:
    return graph_of(b.conv(normalized(b, b.input(1, 1, ROWS, D), centered=False), 8))


def several_readers(b: Build) -> Graph:
    n = normalized(b, b.input(1, 1, ROWS, D))
    return graph_of(b.conv(n, 8), b.conv(n, 5, bias=False), b.op(Gelu(), b.conv(n, 6)))


def behind_a_reshape(b: Build) -> Graph:
    n = normalized(b, b.input(1, ROWS, D))
    return graph_of(b.conv(b.op(Reshape((1, 1, ROWS, D)), n), 8), b.conv(b.op(Reshape((1, 5, 10, D)), n), 4))


def spatial_reader(b: Build) -> Graph:
    """Patches are merged by a convolution without padding."""
    return graph_of(b.conv(normalized(b, b.input(1, 10, 10, D)), 8, 2, strides=(2, 2)))


def one_after_the_other(b: Build) -> Graph:
    n = normalized(b, b.input(1, 1, ROWS, D))
    return graph_of(b.conv(normalized(b, b.conv(n, D)), 8))


GRAPHS = [one_reader, root_mean_square, several_readers, behind_a_reshape, spatial_reader, one_after_the_other]


def unevenness(graph: Graph) -> float:
    """Widest over narrowest channel of all normalizations, geometric."""
    widths = [s.channel_max - s.channel_min for s in measured(graph).values()]
    return max(float(w.max() / w.min()) for w in widths)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("make", GRAPHS)
def test_same_function_with_evener_channels(make, strength: float) -> None:
    graph = make(Build())
    after = reparameterize(graph, measured(graph), None, strength)
    assert after is not graph
    assert_same(graph, after, 1e-5)
    assert unevenness(after) == pytest.approx(unevenness(graph) ** (1 - strength), rel=0.02)


def test_the_integers_are_those_of_a_scale_and_a_zero_point_per_channel() -> None:
    """x'_d / S + Z = x_d / s_d + z_d with integer z_d, for the S that all channels share and any integer Z."""
    graph = one_reader(Build())
    (v, statistics), *_ = measured(graph).items()
    p = from_ranges(statistics, 1.0)
    width = (statistics.channel_max - statistics.channel_min) / LEVELS
    s = np.exp(np.log(width).mean())
    s_d = s * p.r
    k_d = np.rint(p.shift / s_d)
    np.testing.assert_allclose(p.shift / s_d, k_d, rtol=0, atol=1e-9)
    assert k_d.any()
    x = np.random.default_rng(2).normal(0, 5, (400, D))
    zero = 3
    np.testing.assert_array_equal(np.rint((x + p.shift) / p.r / s) + zero, np.rint(x / s_d) + zero + k_d)
    ends = [np.rint(e / s_d) + k_d for e in (statistics.channel_min, statistics.channel_max)]
    assert np.ptp(ends[0] + ends[1]) <= 4, "all channels have the same middle"
    assert (np.abs(ends[1] - ends[0] - LEVELS) <= 1).all(), "all channels use all levels"
    assert v.shape[-1] == D


def test_factors_are_bounded_and_a_constant_channel_is_kept_finite() -> None:
    data = np.zeros((100, 4), np.float32)
    data[:, 1:] = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 1e6, 1e-6]
    p = from_ranges(observe(data, 1), 1.0)
    assert p.r.min() == 1 / BOUND
    assert p.r.max() == BOUND
    assert np.isfinite(p.shift).all()


def test_constants_keep_their_types_and_names() -> None:
    graph = several_readers(Build())
    after = reparameterize(graph, measured(graph))
    for old, new in zip(graph.order, after.order):
        if isinstance(old.op, (Conv, Normalize)) and len(old.inputs) == len(new.inputs):
            assert [(i.name, i.type) for i in old.inputs[1:]] == [(i.name, i.type) for i in new.inputs[1:]]


def residual(b: Build) -> Graph:
    n = normalized(b, b.input(1, 1, ROWS, D))
    return graph_of(b.op(Add(), n, b.conv(n, D)))


def an_output(b: Build) -> Graph:
    n = normalized(b, b.input(1, 1, ROWS, D))
    return graph_of(b.conv(n, 8), n)


def depthwise(b: Build) -> Graph:
    return graph_of(b.conv(normalized(b, b.input(1, 10, 10, D)), D, 3, groups=D))


def padded(b: Build) -> Graph:
    return graph_of(b.conv(normalized(b, b.input(1, 10, 10, D)), 8, 3, pads=((1, 1), (1, 1))))


def computed_parameter(b: Build) -> Graph:
    x, gamma = b.input(1, 1, ROWS, D), b.input(D, name="gamma")
    return graph_of(b.conv(apply(Normalize(1e-5), x, gamma, b.const(D), name="n"), 8))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (residual, "its reader Add"),
        (an_output, "output of the network"),
        (depthwise, "its reader Conv"),
        (padded, "its reader Conv"),
        (computed_parameter, "computed at run time"),
    ],
)
def test_declines(make, reason: str) -> None:
    graph, declined = make(Build()), Declined()
    assert reparameterize(graph, measured(graph), declined) is graph
    assert any("is not reparameterized" in text and reason in text for _, text in declined.reasons), declined.reasons
