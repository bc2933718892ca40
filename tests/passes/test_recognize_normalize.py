"""Normalizations in the spellings of exporters become one operator, and what is none stays."""

import numpy as np
import pytest
from float_graphs import assert_same, census
from onnx_graphs import Spelled

from qcompiler.ir.sequence import Normalize
from qcompiler.passes.simplify import simplify

LAST = np.array([-1])
EPSILON = 1e-5


def deviation(o, c, epsilon=EPSILON, square="Pow"):
    squares = o.op("Pow", c, 2.0) if square == "Pow" else o.op("Mul", c, c)
    return o.op("Sqrt", o.op("Add", o.op("ReduceMean", squares, LAST), epsilon))


def centred(o, x):
    return o.op("Sub", x, o.op("ReduceMean", x, LAST))


def torch_layer_norm(o, x):
    c = centred(o, x)
    return o.op("Add", o.op("Mul", o.op("Div", c, deviation(o, c)), o.weights(8)), o.weights(8))


def two_differences(o, x):
    """The difference is computed twice, as older exporters write it."""
    return o.op("Mul", o.weights(8), o.op("Div", centred(o, x), deviation(o, centred(o, x), 1e-6)))


def keras_layer_norm(o, x):
    """x * (gamma / deviation) + (beta - mean * (gamma / deviation))."""
    mean = o.op("ReduceMean", x, LAST)
    inverse = o.op("Mul", o.op("Reciprocal", deviation(o, centred(o, x), 1e-3, "Mul")), o.weights(8))
    return o.op("Add", o.op("Mul", x, inverse), o.op("Sub", o.weights(8), o.op("Mul", mean, inverse)))


def without_parameters(o, x):
    c = centred(o, x)
    return o.op("Mul", c, o.op("Pow", o.op("Add", o.op("ReduceMean", o.op("Mul", c, c), LAST), EPSILON), -0.5))


def sums_instead_of_means(o, x):
    c = o.op("Sub", x, o.op("Div", o.op("ReduceSum", x, LAST), 8.0))
    variance = o.op("Mul", o.op("ReduceSum", o.op("Mul", c, c), LAST), 0.125)
    return o.op("Div", c, o.op("Sqrt", o.op("Add", variance, EPSILON)))


def rms_norm(o, x):
    return o.op("Mul", o.op("Div", x, deviation(o, x, 1e-6)), o.weights(8))


def llama_rms_norm(o, x):
    inverse = o.op("Div", 1.0, deviation(o, x))
    return o.op("Mul", o.weights(8), o.op("Mul", x, inverse))


def gemma_rms_norm(o, x):
    inverse = o.op("Reciprocal", deviation(o, x, 1e-6, "Mul"))
    return o.op("Mul", o.op("Mul", x, inverse), o.op("Add", 1.0, o.weights(8)))


LAYER_NORMS = [torch_layer_norm, two_differences, keras_layer_norm, without_parameters, sums_instead_of_means]
RMS_NORMS = [rms_norm, llama_rms_norm, gemma_rms_norm]


@pytest.mark.parametrize("spelling", LAYER_NORMS + RMS_NORMS, ids=lambda f: f.__name__)
def test_spellings(spelling):
    o = Spelled()
    graph = o.graph(o.op("Identity", spelling(o, o.input(2, 5, 8))))
    after = simplify(graph)
    assert census(after) == {"Normalize": 1}
    assert_same(graph, after)
    op = after.outputs[0].op
    assert isinstance(op, Normalize)
    assert op.centered == (spelling in LAYER_NORMS)
    expected = {two_differences: 1e-6, keras_layer_norm: 1e-3, rms_norm: 1e-6, gemma_rms_norm: 1e-6}.get(spelling, EPSILON)
    assert op.epsilon == pytest.approx(expected, rel=1e-5)


def test_length_one_vectors_are_a_normalization_without_epsilon():
    o = Spelled()
    graph = o.graph(o.op("LpNormalization", o.input(3, 8), axis=-1, p=2))
    after = simplify(graph)
    assert census(after) == {"Normalize": 1}
    assert after.outputs[0].op == Normalize(0.0, centered=False)
    assert_same(graph, after)


def test_residual_and_activation_around_stay_outside():
    o = Spelled()
    x = o.input(2, 5, 8)
    graph = o.graph(o.op("Add", x, o.op("Sigmoid", torch_layer_norm(o, x))))
    after = simplify(graph)
    assert census(after) == {"Normalize": 1, "Sigmoid": 1, "Add": 1}
    assert_same(graph, after)


@pytest.mark.parametrize("axis", [0, 1])
def test_other_axes_are_none(axis):
    o = Spelled()
    x = o.input(4, 5, 8)
    c = o.op("Sub", x, o.op("ReduceMean", x, np.array([axis])))
    graph = o.graph(o.op("Div", c, o.op("Sqrt", o.op("Add", o.op("ReduceMean", o.op("Mul", c, c), np.array([axis])), EPSILON))))
    after = simplify(graph)
    assert "Normalize" not in census(after)
    assert_same(graph, after)


@pytest.mark.parametrize("square", [lambda o, c: o.op("Abs", c), lambda o, c: o.op("Pow", c, 4.0)], ids=["mean absolute", "fourth power"])
def test_other_norms_are_none(square):
    o = Spelled()
    c = centred(o, o.input(4, 5, 8))
    graph = o.graph(o.op("Div", c, o.op("Sqrt", o.op("Add", o.op("ReduceMean", square(o, c), LAST), EPSILON))))
    after = simplify(graph)
    assert "Normalize" not in census(after)
    assert_same(graph, after)


def test_channels_first_normalization_loses_its_transpositions():
    """ConvNeXt: convolution, channels to the end, normalization, back."""
    o = Spelled()
    x = o.op("Conv", o.input(1, 3, 6, 6), o.weights(8, 3, 1, 1))
    last = o.op("Transpose", x, perm=[0, 2, 3, 1])
    first = o.op("Transpose", torch_layer_norm(o, last), perm=[0, 3, 1, 2])
    graph = o.graph(o.op("Conv", first, o.weights(4, 8, 1, 1)))
    after = simplify(graph)
    assert census(after) == {"Transpose": 2, "Conv": 2, "Normalize": 1}, "transpositions of input and output only"
    assert_same(graph, after)
