from math import inf

import numpy as np
import pytest
from float_graphs import Build, assert_same, census, graph_of

from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Where
from qcompiler.ir.pointwise import Add, Clip, Div, Erf, Exp, Less, Map, Mul, Pow, Sigmoid, Softplus, Sqrt, Sub, Tanh
from qcompiler.passes.map_unary import map_unary
from qcompiler.passes.simplify import simplify

SHAPE = (1, 4, 4, 3)


def silu(b, x):
    return b.op(Mul(), x, b.op(Sigmoid(), x))


def hard_swish(b, x):
    gate = b.op(Clip(0.0, 6.0), b.op(Add(), x, b.number(3.0, 1)))
    return b.op(Div(), b.op(Mul(), x, gate), b.number(6.0, 1, 1, 1, 1))


def gelu(b, x):
    e = b.op(Erf(), b.op(Div(), x, b.number(2**0.5)))
    return b.op(Mul(), b.op(Mul(), x, b.op(Add(), e, b.number(1.0))), b.number(0.5))


def gelu_tanh(b, x):
    cubic = b.op(Mul(), b.number(0.044715), b.op(Pow(), x, b.number(3.0)))
    inner = b.op(Mul(), b.op(Add(), x, cubic), b.number(0.7978846))
    return b.op(Mul(), b.op(Mul(), b.number(0.5), x), b.op(Add(), b.op(Tanh(), inner), b.number(1.0)))


def mish(b, x):
    return b.op(Mul(), x, b.op(Tanh(), b.op(Softplus(), x)))


def selected(b, x):
    return b.op(Where(), b.op(Less(), x, b.number(0.0)), b.op(Mul(), x, b.number(0.1)), b.op(Exp(), x))


FUNCTIONS = {silu: "mul(sigmoid)", hard_swish: None, gelu: None, gelu_tanh: None, mish: "mul(tanh(softplus))", selected: "where(less, mul, exp)"}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_activations_become_one_function(function):
    b = Build()
    graph = graph_of(function(b, b.conv(b.input(*SHAPE), 5)))
    after = simplify(graph)
    assert census(after) == {"Conv": 1, "Map": 1}
    assert_same(graph, after)
    op = after.outputs[0].op
    assert isinstance(op, Map)
    assert FUNCTIONS[function] in (None, op.label)


def test_the_body_is_a_function_of_256_numbers(golden):
    from qcompiler.ir.text import to_text

    b = Build()
    mapped = map_unary(graph_of(hard_swish(b, b.input(*SHAPE))))
    body = mapped.outputs[0].op.body
    assert body.inputs[0].shape == body.outputs[0].shape == (256,)
    x = np.linspace(-8, 8, 256, dtype=np.float32)
    (y,) = evaluate(body, {"x": x}).values()
    np.testing.assert_allclose(y, x * np.clip(x + 3, 0, 6) / 6, rtol=1e-6, atol=1e-6)
    golden("map_hard_swish.txt", to_text(mapped))


@pytest.mark.parametrize("op", [Sigmoid(), Clip(0.0, 6.0), Sqrt()])
def test_single_unary_operators_stay_what_they_are(op):
    b = Build()
    graph = graph_of(b.op(op, b.input(*SHAPE)))
    assert map_unary(graph) is graph


def test_a_single_operator_with_a_number_is_a_function():
    b = Build()
    graph = graph_of(b.op(Pow(), b.input(*SHAPE), b.number(2.0)))
    assert census(map_unary(graph)) == {"Map": 1}
    assert_same(graph, map_unary(graph))


def test_a_relu_before_a_function_stays_with_its_convolution():
    b = Build()
    graph = graph_of(b.op(Exp(), b.op(Sigmoid(), b.op(Clip(0.0, inf), b.input(*SHAPE)))))
    assert census(map_unary(graph)) == {"Clip": 1, "Map": 1}
    assert_same(graph, map_unary(graph))


def test_values_that_others_read_stay():
    b = Build()
    s = b.op(Exp(), b.op(Sigmoid(), b.input(*SHAPE)))
    y = b.op(Tanh(), b.op(Sqrt(), s))
    graph = graph_of(y, b.op(Add(), s, b.input(*SHAPE, name="z")))
    after = map_unary(graph)
    assert census(after) == {"Map": 2, "Add": 1}
    assert_same(graph, after)


def test_an_output_inside_splits_the_region():
    b = Build()
    s = b.op(Exp(), b.op(Sigmoid(), b.input(*SHAPE)))
    graph = graph_of(b.op(Tanh(), s), s)
    after = map_unary(graph)
    assert census(after) == {"Map": 1, "Tanh": 1}
    assert_same(graph, after)


def test_two_tensors_or_vectors_are_no_region():
    b = Build()
    x = b.input(*SHAPE)
    graph = graph_of(b.op(Mul(), x, b.input(*SHAPE, name="z")), b.op(Add(), x, b.const(3)), b.op(Sub(), x, b.input(1, name="s")))
    assert map_unary(graph) is graph


def test_a_gate_of_another_value_is_not_swallowed():
    """Squeeze and excitation: the product reads two tensors."""
    b = Build()
    x = b.input(*SHAPE)
    gate = b.op(Clip(0.0, 1.0), b.op(Mul(), b.op(Exp(), b.input(1, 1, 1, 3, name="g")), b.number(0.2)))
    graph = graph_of(b.op(Mul(), x, gate))
    after = map_unary(graph)
    assert census(after) == {"Map": 1, "Mul": 1}
    assert_same(graph, after)
