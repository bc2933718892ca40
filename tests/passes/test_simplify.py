"""simplify on whole networks: the function stays, transpositions go, and few kinds of operators are left."""

from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import onnx
import pytest
from float_graphs import Build, assert_same, census, graph_of

from qcompiler.frontend import import_model
from qcompiler.ir.graph import Declined, Graph, Value, substitute
from qcompiler.ir.ops import Concat, Const, Conv, Dequantize, Input, MatMul, MaxPool, Quantize, Reduce, Reduction, Reshape, Transpose, constant
from qcompiler.ir.pointwise import Add, Clip, Mul, Sigmoid
from qcompiler.ir.text import to_text
from qcompiler.ir.types import DType, Quantization, TensorType, quantized
from qcompiler.ir.verify import Stage, verify
from qcompiler.passes.simplify import settle, simplify

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NETWORKS = ["cifar10_resnet20", "cifar10_resnet8_mlperftiny", "cifar10_resnet18", "kws_dscnn", "imagenet_mobilenetv2", "imagenet_squeezenet11"]
GRAPHS = ["resnet50", "densenet121", "shufflenet", "inception_v1", "inception_v2", "squeezenet", "zfnet512", "bvlc_alexnet", "vgg19"]
CANONICAL = {"Conv", "Clip", "Add", "MaxPool", "AveragePool", "Reduce", "Concat", "Reshape", "Slice", "Pad", "Transpose", "Softmax"}


def inner_transposes(graph: Graph) -> list[Value]:
    """Transpositions that neither read an input, nor make an output, nor shuffle channels in place."""
    found = [v for v in graph.order if isinstance(v.op, Transpose)]
    return [v for v in found if not (isinstance(v.inputs[0].op, Input) or v in graph.outputs or v.op.perm == (0, 1, 2, 4, 3))]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_zoo(name):
    if not (path := ZOO / f"{name}.onnx").exists():
        pytest.skip(f"{path} is not on this machine")
    graph = import_model(path)
    after = verify(simplify(graph), Stage.float)
    assert inner_transposes(after) == []
    assert census(after).keys() <= CANONICAL
    assert len({v.name for v in after.order}) == len(after.order)
    assert simplify(after) is after
    assert_same(graph, after)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_nobody_tuned_for(name):
    after = verify(simplify(import_model(LIGHT / f"light_{name}.onnx")), Stage.float)
    assert inner_transposes(after) == []
    assert census(after).keys() <= CANONICAL | {"Map", "Mul"}
    assert census(after)["Mul"] == (2 if name in ("inception_v1", "zfnet512", "bvlc_alexnet") else 0), "of local response normalization"


@pytest.mark.parametrize("name, convolutions", [("densenet121", 121 + 62), ("shufflenet", 50)])
def test_their_function_with_random_weights(name, convolutions):
    """The graphs come with constant weights, under which many mistakes would not show."""
    graph = randomized(import_model(LIGHT / f"light_{name}.onnx"))
    after = simplify(graph)
    assert census(after)["Conv"] == convolutions
    assert_same(graph, after, 1e-4)


def randomized(graph: Graph) -> Graph:
    rng = np.random.default_rng(0)

    def drawn(v: Value) -> Value:
        if not isinstance(v.op, Const) or not v.type.dtype.is_float or v.op.data.size == 1:
            return v
        shape = v.op.data.shape
        data = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, np.sqrt(2 * shape[0] / v.op.data.size), shape)
        return replace(v, op=Const(data.astype(np.float32)))

    return substitute(graph, drawn)


def test_a_dense_block(golden):
    """Batch normalization and Relu behind a concatenation that others read, then a convolution (DenseNet)."""
    b = Build()
    x = b.first(b.conv(b.input(1, 6, 6, 3), 4))
    for _ in range(2):
        normal = b.op(Add(), b.op(Mul(), x, b.const(x.shape[1], 1, 1)), b.const(x.shape[1], 1, 1))
        y = b.conv(b.last(b.op(Clip(0.0, inf), normal)), 2, 3, bias=False, pads=((1, 1), (1, 1)))
        x = b.op(Concat(1), x, b.first(y))
    graph = graph_of(b.op(Reduce(Reduction.mean, (2, 3), False), x))
    declined = Declined()
    after = simplify(graph, declined)
    assert census(after) == {"Conv": 5, "Clip": 2, "Concat": 2, "Reduce": 1, "Reshape": 1}
    assert any("several readers" in reason for _, reason in declined.reasons)
    assert_same(graph, after)
    golden("dense_block.txt", f"before\n\n{to_text(graph)}\nafter\n\n{to_text(after)}")


def test_a_perceptron_with_batch_normalization(golden):
    b = Build()
    x = b.op(Reshape((3, 24)), b.first(b.op(MaxPool((2, 2)), b.input(3, 3, 4, 4))))
    for width in (5, 6):
        x = b.op(Clip(0.0, inf), b.normalized(b.op(Add(), b.op(MatMul(), x, b.const(x.shape[1], width)), b.const(width))))
    graph = graph_of(b.op(Sigmoid(), b.op(MatMul(), x, b.const(6, 2))))
    after = simplify(graph)
    assert census(after)["Conv"] == 3
    assert not census(after).keys() & {"MatMul", "Add", "Mul"}
    assert_same(graph, after)
    golden("perceptron.txt", f"before\n\n{to_text(graph)}\nafter\n\n{to_text(after)}")


def test_dense_layers_with_more_dimensions():
    b = Build()
    three = b.op(Add(), b.op(MatMul(), b.input(2, 5, 4), b.const(4, 6)), b.const(6))
    four = b.op(MatMul(), b.op(MatMul(), b.input(2, 3, 5, 4, name="z"), b.const(4, 6)), b.const(6, 2))
    graph = graph_of(three, four)
    after = simplify(graph)
    assert census(after) == {"Conv": 3, "Reshape": 2}
    assert_same(graph, after)


def test_a_product_of_activations_stays_and_a_batch_of_matrices_is_declined():
    b = Build()
    x, y = b.input(2, 3, 4), b.input(2, 4, 3, name="z")
    declined = Declined()
    after = simplify(graph_of(b.op(MatMul(), x, y), b.op(MatMul(), x, b.const(2, 4, 3))), declined)
    assert census(after) == {"MatMul": 2}
    assert any("is no matrix" in reason for _, reason in declined.reasons)


def test_a_quantized_model_keeps_its_numbers():
    """Quantize and Dequantize of a dense layer on a flattened image: weights move, none is dequantized."""
    b = Build()
    a = quantized((1, 2, 3, 4), Quantization.per_tensor(0.05, 3))
    weights = TensorType((12, 24), DType.i8, Quantization(tuple(b.rng.uniform(0.01, 0.1, 12)), (0,) * 12, axis=0))
    x = b.op(Dequantize(), b.op(Quantize(a), b.input(1, 2, 3, 4)))
    flat = b.op(Reshape((1, 24)), x)
    w = b.op(Dequantize(), constant(b.rng.integers(-99, 99, weights.shape).astype(np.int8), "w", weights))
    graph = graph_of(b.op(MatMul(), flat, b.op(Transpose((1, 0)), w)))
    after = simplify(graph)
    (conv,) = [v for v in after.order if isinstance(v.op, Conv)]
    assert isinstance(conv.inputs[1].op, Dequantize)
    assert conv.inputs[1].inputs[0].type == TensorType((12, 1, 1, 24), DType.i8, weights.quant)
    assert census(after) == {"Quantize": 1, "Dequantize": 2, "Reshape": 2, "Conv": 1}
    assert_same(graph, after)


def test_reasons_are_those_of_the_end():
    """What a later round folds is not reported."""
    b = Build()
    declined = Declined()
    y = b.normalized(b.last(b.op(Clip(0.0, 6.0), b.first(b.normalized(b.conv(b.input(1, 4, 4, 3), 4))))))
    simplify(graph_of(b.conv(y, 5)), declined)
    assert declined.reasons == {}


def test_passes_that_undo_each_other_are_noticed():
    b = Build()
    graph = graph_of(b.first(b.input(1, 2, 3, 4)))

    def renewed(g: Graph, declined: Declined | None) -> Graph:
        return Graph(g.inputs, tuple(replace(v) for v in g.outputs), g.output_names)

    with pytest.raises(RuntimeError, match="did not settle after 50 rounds: .*renewed"):
        settle(graph, (renewed,))
