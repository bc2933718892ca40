"""What the imported graph looks like: names, layout, folded constants, kept quantization."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompiler.errors import UnsupportedModel
from qcompiler.frontend import import_model
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Const, Conv, Dequantize, Gather, Quantize, Resize, const_data
from qcompiler.ir.types import DType, Quantization

RNG = np.random.default_rng(0)
node = helper.make_node


def model(nodes: Sequence[NodeProto], shape: Sequence[int], opset: int = 17, **constants: np.ndarray) -> ModelProto:
    """From the float input x to the output y, named arrays stored in it."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None)))
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def kinds(graph: Graph) -> Counter[str]:
    return Counter(type(v.op).__name__ for v in graph.order)


def by_name(graph: Graph, name: str) -> Value:
    return next(v for v in graph.order if v.name == name)


def agrees_with_onnxruntime(m: ModelProto) -> Graph:
    """The imported graph, after its results were compared with onnxruntime's, which runs unoptimized."""
    graph = import_model(m)
    x = 2 * floats(*graph.inputs[0].shape)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(evaluate(graph, {"x": x})[graph.outputs[0]], expected, rtol=1e-5, atol=1e-5)
    return graph


# --- names and layout ---


def test_tensors_keep_their_names() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Identity", ["c"], ["same"]), node("Relu", ["same"], ["r"]), node("Neg", ["r"], ["y"])]
    graph = import_model(model(nodes, (1, 3, 5, 5), w=floats(2, 3, 3, 3)))
    names = [v.name for v in graph.order]
    assert names == ["x", "c/transpose", "w", "c/conv", "c", "r", "y"]
    assert by_name(graph, "w").shape == (2, 3, 3, 3)
    assert graph.output_names == ("y",)


def test_one_dimensional_convolution() -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["c"], group=2, auto_pad="SAME_LOWER", strides=[2]), node("MaxPool", ["c"], ["y"], kernel_shape=[3])]
    graph = agrees_with_onnxruntime(model(nodes, (2, 4, 13), w=floats(6, 2, 4), b=floats(6)))
    conv = next(v for v in graph.order if isinstance(v.op, Conv))
    assert conv.shape == (2, 1, 7, 6)


@pytest.mark.parametrize("attributes", [{"pads": [1, 0, 2, 1]}, {"auto_pad": "SAME_UPPER"}, {"output_shape": [14, 11]}, {"output_padding": [1, 0]}])
def test_transposed_convolution(attributes: dict[str, object]) -> None:
    nodes = [node("ConvTranspose", ["x", "w"], ["y"], group=2, strides=[2, 3], **attributes)]
    agrees_with_onnxruntime(model(nodes, (1, 4, 7, 4), w=floats(4, 3, 3, 4)))


def test_dilated_transposed_convolution() -> None:
    agrees_with_onnxruntime(model([node("ConvTranspose", ["x", "w"], ["y"], dilations=[2, 1])], (1, 4, 5, 4), w=floats(4, 3, 3, 2)))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    agrees_with_onnxruntime(model([node("LRN", ["x"], ["y"], size=size, alpha=0.7, beta=0.75, bias=1.5)], (1, 6, 3, 3)))


@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_with_partial_windows(include: int) -> None:
    nodes = [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=include)]
    agrees_with_onnxruntime(model(nodes, (1, 2, 6, 8)))


@pytest.mark.parametrize("opset", [9, 10])
def test_old_resize(opset: int) -> None:
    op = "Upsample" if opset == 9 else "Resize"
    graph = agrees_with_onnxruntime(model([node(op, ["x", "s"], ["y"])], (1, 2, 3, 3), opset, s=np.array([1, 1, 2, 2], np.float32)))
    assert [v.shape for v in graph.order if isinstance(v.op, Resize)] == [(1, 6, 6, 2)]


def test_softmax_before_opset_13_joins_axes() -> None:
    agrees_with_onnxruntime(model([node("Softmax", ["x"], ["y"], axis=1)], (2, 3, 4), 11))


def test_batch_normalization_is_precise() -> None:
    """Its factors are computed in float64 and rounded once."""
    g, b, m = floats(3), floats(3), floats(3)
    v = np.abs(floats(3))
    graph = import_model(model([node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])], (1, 3, 2, 2), g=g, b=b, m=m, v=v))
    factor = g.astype(np.float64) / np.sqrt(v.astype(np.float64) + np.float32(1e-5))
    constants = [c for v in graph.order if (c := const_data(v)) is not None]
    np.testing.assert_array_equal(constants, [factor.astype(np.float32), (b - m * factor).astype(np.float32)])
    assert kinds(graph) == {"Input": 1, "Transpose": 2, "Const": 2, "Mul": 1, "Add": 1}


# --- folding ---


def test_shape_arithmetic_folds() -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["shape"], axis=0),
        node("Reshape", ["x", "shape"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axes": np.array([0]), "rest": np.array([-1])}
    graph = import_model(model(nodes, (2, 3, 4), **{k: np.asarray(v) for k, v in constants.items()}))
    assert kinds(graph) == {"Input": 1, "Reshape": 1}
    assert graph.outputs[0].shape == (2, 12)


def test_half_precision_weights_behind_a_cast() -> None:
    nodes = [node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), node("Conv", ["x", "w"], ["y"])]
    graph = import_model(model(nodes, (1, 3, 4, 4), h=floats(2, 3, 1, 1).astype(np.float16)))
    assert by_name(graph, "w").type.dtype is DType.f32
    assert isinstance(by_name(graph, "w").op, Const)


def test_generated_weights_take_no_memory() -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.02])
    nodes = [node("ConstantOfShape", ["s"], ["w"], value=value), node("Conv", ["x", "w"], ["y"])]
    graph = import_model(model(nodes, (1, 512, 3, 3), s=np.array([1024, 512, 3, 3])))
    data = const_data(by_name(graph, "w"))
    assert data is not None
    assert set(data.strides) == {0}


def test_constant_index_is_a_slice() -> None:
    graph = agrees_with_onnxruntime(model([node("Gather", ["x", "i"], ["y"], axis=1)], (2, 5, 3), i=np.array(-2)))
    assert not any(isinstance(v.op, Gather) for v in graph.order)


def test_local_functions_are_inlined() -> None:
    m = model([node("Twice", ["x"], ["y"], domain="acme")], (2, 3))
    body = [node("Add", ["a", "a"], ["b"])]
    m.functions.append(helper.make_function("acme", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    m.opset_import.append(helper.make_opsetid("acme", 1))
    assert kinds(agrees_with_onnxruntime(m)) == {"Input": 1, "Add": 1}


# --- quantization ---


def pair(name: str, x: str, scale: str, zero: str, **attributes: object) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear, from `x` to `name`."""
    return [
        node("QuantizeLinear", [x, scale, zero], [f"{name}_q"], **attributes),
        node("DequantizeLinear", [f"{name}_q", scale, zero], [name], **attributes),
    ]


@pytest.mark.parametrize("activation, weight", [(np.uint8, np.int8), (np.int8, np.int8), (np.int8, np.uint8), (np.uint16, np.int8)])
def test_quantized_convolution(activation: type, weight: type) -> None:
    """Integers, scales and zero points are the model's; unsigned ones are moved down by half their range."""
    zero, w_zero = np.array(7, activation), np.full(4, 100 if weight is np.uint8 else 0, weight)
    w = RNG.integers(0, 127, (4, 3, 3, 3)).astype(weight)
    nodes = [
        *pair("xd", "x", "sx", "zx"),
        node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        node("DequantizeLinear", ["b", "sb"], ["bd"], axis=0),
        node("Conv", ["xd", "wd", "bd"], ["c"]),
        *pair("y", "c", "sy", "zx"),
    ]
    scales = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    constants = {
        "sx": np.float32(0.05),
        "zx": zero,
        "w": w,
        "sw": scales,
        "zw": w_zero,
        "b": np.arange(4, dtype=np.int32),
        "sb": scales * np.float32(0.05),
    }
    graph = agrees_with_onnxruntime(model(nodes, (1, 3, 5, 5), 21, sy=np.float32(0.5), **constants))
    down = 1 << (8 * zero.dtype.itemsize - 1) if zero.dtype.kind == "u" else 0
    quantized = by_name(graph, "xd_q")
    assert isinstance(quantized.op, Quantize)
    assert quantized.type.quant == Quantization.per_tensor(float(np.float32(0.05)), 7 - down, 8 * zero.dtype.itemsize)
    weights = by_name(graph, "w")
    w_down = 128 if weight is np.uint8 else 0
    np.testing.assert_array_equal(const_data(weights), w.astype(np.int64).transpose(0, 2, 3, 1) - w_down)
    assert weights.type.quant == Quantization(tuple(map(float, scales)), tuple(int(z) - w_down for z in w_zero), 0)
    assert kinds(graph)["Const"] == 2


def test_quantized_weights_of_transposed_convolution_re_aim_their_axis() -> None:
    w, scales = RNG.integers(-127, 128, (4, 6, 3)).astype(np.int8), np.linspace(0.01, 0.06, 6).astype(np.float32)
    nodes = [node("DequantizeLinear", ["w", "s"], ["wd"], axis=1), node("ConvTranspose", ["x", "wd"], ["y"])]
    graph = agrees_with_onnxruntime(model(nodes, (1, 4, 5), w=w, s=scales))
    weights = by_name(graph, "w")
    assert weights.shape == (4, 1, 3, 6)
    assert weights.type.quant is not None
    assert weights.type.quant.axis == 3


def test_movement_between_quantize_and_dequantize() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
        node("Flatten", ["p"], ["f"]),
        node("DequantizeLinear", ["f", "s", "z"], ["y"]),
    ]
    graph = agrees_with_onnxruntime(model(nodes, (1, 2, 4, 4), s=np.float32(0.1), z=np.uint8(255)))
    assert isinstance(graph.outputs[0].op, Dequantize)
    assert kinds(graph)["Quantize"] == 1


def test_arithmetic_on_quantized_integers_is_refused() -> None:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("Cast", ["q"], ["y"], to=TensorProto.FLOAT, name="reader")]
    with pytest.raises(UnsupportedModel, match="'reader'.*DequantizeLinear"):
        import_model(model(nodes, (1, 2), s=np.float32(0.1), z=np.uint8(3)))


def test_quantized_pad_value() -> None:
    """Tools quantize every float operand, that of Pad too."""
    nodes = [node("DequantizeLinear", ["v", "s", "z"], ["vd"]), node("Pad", ["x", "p", "vd"], ["y"])]
    agrees_with_onnxruntime(model(nodes, (2, 3), v=np.uint8(5), s=np.float32(0.5), z=np.uint8(3), p=np.array([0, 1, 1, 0])))
