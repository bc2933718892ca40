from dataclasses import replace

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.errors import ProofError
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import Clamp, IntConv, IntReduceSum, IntResize, IntSum, IntSumPool, Requantize
from qcompiler.ir.ops import Const, Conv, Dequantize, Input, MaxPool, Quantize, Reduce, Reduction, Resize, constant
from qcompiler.ir.pointwise import Add, Clip, Exp
from qcompiler.ir.types import DType, Quantization, TensorType, float_type, quantized
from qcompiler.ir.verify import Stage, verify

X = quantized((1, 4, 4, 2), Quantization.per_tensor(0.5, 3))


def integer_graph(middle=lambda q: q) -> Graph:
    """Quantize, `middle`, Dequantize."""
    x = apply(Input(float_type(*X.shape)), name="x")
    y = middle(apply(Quantize(X), x, name="q"))
    return Graph((x,), (apply(Dequantize(), y, name="y"),), ("y",))


def convolved(q: Value) -> Value:
    w = constant(np.ones((2, 1, 1, 2), np.int8), "w", TensorType((2, 1, 1, 2), DType.i8, Quantization((1.0, 1.0), (0, 0), 0)))
    acc = apply(IntConv(), q, w, constant(np.zeros(2, np.int32), "b"), name="acc")
    return requantized(acc)


def requantized(acc: Value) -> Value:
    ones = constant(np.ones(1, np.int32), "one")
    return apply(Requantize(X), acc, ones, ones, name="r")


def fails(graph: Graph, stage: Stage, *words: str) -> None:
    with pytest.raises(ProofError) as error:
        verify(graph, stage)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_legal_graphs_come_back():
    b = Build()
    graph = graph_of(b.op(Clip(0.0), b.conv(b.input(1, 4, 4, 2), 3)))
    assert verify(graph, Stage.float) is graph
    for middle in (lambda q: q, convolved, lambda q: apply(Clamp(0, 5), convolved(q), name="c"), lambda q: apply(MaxPool((2, 2)), q, name="p")):
        graph = integer_graph(middle)
        assert verify(graph, Stage.integer) is graph


@pytest.mark.parametrize(
    "op",
    [IntReduceSum(Reduction.sum, (1, 2)), IntSumPool((2, 2)), IntResize(((0,), (1,), (64,)), ((0,), (1,), (64,)))],
)
def test_integer_sums_are_no_movement(op):
    x = apply(Input(X), name="x")
    y = requantized(apply(op, x, name="acc"))
    graph = Graph((x,), (y,), ("y",))
    assert verify(graph, Stage.integer) is graph


def test_a_float_operator_is_not_integer_only():
    fails(graph_of(Build().op(Exp(), Build().input(2))), Stage.integer, "Input 'x' (f32[2])", "expected Quantize as only reader", "Exp")
    b = Build()
    inside = integer_graph(lambda q: apply(Quantize(X), apply(Exp(), apply(Dequantize(), q, name="d"), name="e"), name="q2"))
    fails(inside, Stage.integer, "Dequantize 'd'", "expected a graph output that nothing reads")
    constant_only = graph_of(b.number(1.0, 2))
    fails(constant_only, Stage.integer, "Const 'n1' (f32[2])", "expected an integer as result, found f32[2]")


def test_an_accumulator_must_be_requantized():
    acc = apply(IntSum((1,)), apply(Input(X), name="x"), name="acc")
    graph = Graph((acc.inputs[0],), (apply(Clamp(0, 1), acc, name="c"),), ("y",))
    fails(graph, Stage.integer, "Clamp 'c'", "expected int8 or int16 quantized per tensor as", "found i32[1x4x4x2]")


def test_integer_operators_do_not_belong_to_the_float_stage():
    fails(integer_graph(convolved), Stage.float, "IntConv 'acc'", "expected one of its operators (", "Conv, ")


def test_movement_must_keep_the_quantization():
    def wrong(q: Value) -> Value:
        return Value(MaxPool((1, 1)), (q,), replace(X, quant=Quantization.per_tensor(0.25, 3)), "p")

    fails(integer_graph(wrong), Stage.integer, "MaxPool 'p'", "expected the quantization of its operands to be kept", "q8(0.5, 3)")


@pytest.mark.parametrize(
    "op, words",
    [
        (Reduce(Reduction.mean, (1, 2)), "expected a maximum or minimum, found mean"),
        (Resize((None, ((0,), (1,), (0.5,)), None, None)), "interpolation"),
    ],
)
def test_arithmetic_in_disguise(op, words):
    fails(integer_graph(lambda q: apply(op, q, name="p")), Stage.integer, "'p'", words)


def test_types_must_be_what_the_operator_gives():
    b = Build()
    x = b.input(2, 3)
    fails(graph_of(Value(Exp(), (x,), float_type(3, 2), "e")), Stage.float, "Exp 'e' (f32[3x2])", "expected f32[2x3] by inference")
    bad = Value(Add(), (x, b.input(4, name="z")), float_type(2, 3), "s")
    fails(graph_of(bad), Stage.float, "Add 's'", "expected operands that fit")


def test_convolutions_of_the_qdq_stage_read_stored_integers():
    b = Build()
    fails(graph_of(b.conv(b.input(1, 4, 4, 2), 3)), Stage.qdq, "Conv 'conv3'", "expected a Dequantize as operand, found <x: Input")
    x = apply(Dequantize(), apply(Quantize(X), b.input(*X.shape), name="q"), name="d")
    verify(graph_of(b.conv(x, 3)), Stage.qdq)


def test_quantized_values_are_not_for_float_operators():
    b = Build()
    q = apply(Quantize(X), b.input(*X.shape), name="q")
    w = Const(np.ones((2, 1, 1, 2), np.int8))
    bad = Value(Conv(), (q, Value(w, (), w.infer(), "w")), float_type(1, 4, 4, 2), "c")
    fails(graph_of(bad), Stage.float, "Conv 'c'", "expected a float as operand 'q'")
