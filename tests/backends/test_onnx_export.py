"""Quantized ONNX: valid, loads in onnxruntime, holds our scales, and gives our integers within the stated bound."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

from qcompiler.backends.onnx import export_qdq, export_qoperator
from qcompiler.backends.onnx.bound import PER_OPERATOR, differences, saturates
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.types import DType, Quantization, TensorType, float_type, quantized
from qcompiler.passes.calibrate import calibrate, synthetic_batches
from qcompiler.passes.calibrate.choose import MinMax, choose
from qcompiler.passes.insert_qdq import insert_qdq, share
from qcompiler.passes.storage_points import storage_points

RNG = np.random.default_rng(0)
SHAPE = (1, 8, 6, 4)
needs_exact_runtime = pytest.mark.skipif(saturates(), reason="onnxruntime's int8 kernels saturate on x86 without VNNI")


def weights(*shape: int, name: str = "w") -> Value:
    return ops.constant((RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)


def conv(x: Value, out: int, name: str, **attributes: object) -> Value:
    w = weights(out, 3, 3, x.shape[3] // int(attributes.get("groups", 1)), name=f"{name}.w")  # type: ignore[call-overload]
    return apply(ops.Conv(pads=((1, 1), (1, 1)), **attributes), x, w, weights(out, name=f"{name}.b"), name=name)  # type: ignore[arg-type]


def quantized_graph(*outputs: Value) -> Graph:
    """The Q/DQ graph of a float expression over the input x, calibrated on invented data."""
    x = next(v for v in Graph((), outputs, ()).order if isinstance(v.op, ops.Input))
    graph = Graph((x,), outputs, tuple(f"y{i}" for i in range(len(outputs))))
    found = calibrate(graph, synthetic_batches(graph, 8), storage_points(graph))
    return insert_qdq(graph, share(graph, {v: choose(s, MinMax()) for v, s in found.items()}))


def image(*shape: int) -> Value:
    return apply(ops.Input(float_type(*(shape or SHAPE))), name="x")


def network() -> Graph:
    """A residual network with most operators that have integer forms in ONNX."""
    x = image()
    a = apply(pw.Clip(0.0), conv(x, 8, "a"), name="a.relu")
    b = apply(pw.Clip(0.0, 1.0), conv(a, 8, "b", groups=8), name="b.clip")
    c = apply(pw.Add(), a, b, name="sum")
    d = apply(ops.MaxPool((2, 2), (2, 2)), c, name="pool")
    gate = apply(pw.Sigmoid(), conv(d, 8, "gate"), name="sigmoid")
    e = apply(pw.Mul(), d, gate, name="scaled")
    f = apply(ops.Concat(3), d, e, conv(e, 3, "f"), name="joined")
    h = apply(ops.AveragePool((3, 3), pads=((1, 1), (1, 1))), apply(pw.LeakyRelu(0.1), f, name="leaky"), name="average")
    i = apply(ops.Pad(((0, 0), (1, 0), (0, 1), (0, 0))), h, name="padded")
    mean = apply(ops.Reduce(ops.Reduction.mean, (1, 2)), i, name="mean")
    flat = apply(ops.Reshape((1, 19)), mean, name="flat")
    return quantized_graph(apply(ops.Softmax(1), apply(ops.MatMul(), flat, weights(19, 5), name="dense"), name="probabilities"))


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    return dict(next(synthetic_batches(graph, 1, seed=7)))


def kinds(model: ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


@pytest.mark.parametrize("activations", [DType.i8, DType.u8])
@pytest.mark.parametrize("export", [export_qdq, export_qoperator])
@needs_exact_runtime
def test_models_answer_as_the_fake_quantized_graph(export: object, activations: DType) -> None:
    graph = network()
    feeds = feeds_of(graph)
    (expected,) = evaluate(graph, feeds).values()
    (actual,) = run(export(graph, activations), feeds)  # type: ignore[operator]
    np.testing.assert_allclose(actual, expected, atol=4 / 256)


@pytest.mark.parametrize("integer_operators", [False, True])
@needs_exact_runtime
def test_every_operator_is_within_the_bound(integer_operators: bool) -> None:
    graph = network()
    found = list(differences(graph, feeds_of(graph), integer_operators))
    assert len(found) > 12
    assert not [d for d in found if d.greatest > PER_OPERATOR]


def test_qoperator_has_no_float_operator_but_at_the_ends() -> None:
    found = kinds(export_qoperator(network()))
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    assert found["QLinearConv"] == 4
    named = ("Add", "Mul", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "MatMul", "Softmax")
    assert {f"QLinear{n}" for n in named} <= set(found)
    assert not {"Conv", "Add", "Mul", "Sigmoid", "ReduceMean", "MatMul"} & set(found)


def initializers(model: ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_scales_and_zero_points_are_those_of_the_graph() -> None:
    graph = network()
    expected = {(np.float32(v.type.quant.scale[0]), v.type.quant.zero_point[0]) for v in graph.order if isinstance(v.op, ops.Quantize)}
    for activations, offset in ((DType.i8, 0), (DType.u8, 128)):
        model = export_qdq(graph, activations)
        known = initializers(model)
        quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
        assert {(known[n.input[1]].item(), known[n.input[2]].item() - offset) for n in quantizers} == expected


def test_weights_and_biases_are_integers_per_channel() -> None:
    graph = network()
    model = export_qdq(graph)
    known, makers = initializers(model), {o: n for n in model.graph.node for o in n.output}
    for n in (n for n in model.graph.node if n.op_type == "Conv"):
        w, b = (makers[i] for i in n.input[1:])
        assert known[w.input[0]].dtype == np.int8
        assert known[b.input[0]].dtype == np.int32
        assert known[w.input[1]].shape == known[b.input[1]].shape == known[w.input[0]].shape[:1]


def qdq(x: Value, scale: float, zero: int = 0, bits: int = 8) -> Value:
    q = apply(ops.Quantize(quantized(x.shape, Quantization.per_tensor(scale, zero, bits))), x, name=f"{x.name}.q")
    return apply(ops.Dequantize(), q, name=f"{x.name}.dq")


def graph_of(x: Value, y: Value) -> Graph:
    return Graph((x,), (y,), ("y",))


def test_different_scales_are_joined_by_qlinearconcat() -> None:
    x = image()
    a = qdq(x, 0.02)
    b = qdq(apply(ops.Slice((0, 0, 0, 0), SHAPE, (1, 1, 1, 1)), a, name="same"), 0.05, 9)
    graph = graph_of(x, qdq(apply(ops.Concat(3), a, b, name="joined"), 0.04, -3))
    assert kinds(export_qoperator(graph))["QLinearConcat"] == 1
    assert max(d.greatest for d in differences(graph, feeds_of(graph), True)) <= PER_OPERATOR


def test_movement_stays_on_integers_with_one_quantization() -> None:
    x = image()
    v = qdq(x, 0.02, 5)
    moves: list[ops.Op] = [ops.Pad(((0, 0), (1, 1), (0, 0), (0, 0)), value=0.5), ops.Slice((0, 0, 1, 0), (1, 10, 6, 4), (1, 2, 1, 1))]
    moves += [ops.MaxPool((2, 2), pads=((0, 1), (0, 0))), ops.Reduce(ops.Reduction.max, (1,)), ops.Tile((1, 2, 1, 1)), pw.Clip(-0.3, 0.7)]
    moves += [ops.Transpose((0, 3, 1, 2)), ops.Reshape((4, 8))]
    for i, op in enumerate(moves):
        v = qdq(apply(op, v, name=f"v{i}"), 0.02, 5)
    picked = apply(ops.Gather(1), v, ops.constant(np.array([3, -1]), "i"), name="picked")
    graph = graph_of(x, qdq(picked, 0.02, 5))
    for activations in (DType.i8, DType.u8):
        model = export_qoperator(graph, activations)
        assert kinds(model)["QuantizeLinear"] == kinds(model)["DequantizeLinear"] == 1
        (actual,) = run(model, feeds := feeds_of(graph))
        np.testing.assert_allclose(actual, evaluate(graph, feeds)[graph.outputs[0]], atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("export", [export_qdq, export_qoperator])
@pytest.mark.parametrize("activations", [DType.i8, DType.u8])
def test_fewer_bits_are_respected(bits: int, export: object, activations: DType) -> None:
    x = image()
    a = qdq(x, 4.0 / (1 << bits), 1, bits)
    graph = graph_of(x, qdq(apply(pw.Add(), a, a, name="sum"), 4.0 / (1 << bits), -2, bits))
    feeds = {"x": (9 * RNG.standard_normal(SHAPE)).astype(np.float32)}
    (actual,) = run(export(graph, activations), feeds)  # type: ignore[operator]
    np.testing.assert_allclose(actual, evaluate(graph, feeds)[graph.outputs[0]], atol=1e-5)


def test_bias_of_another_scale_keeps_the_convolution_in_float() -> None:
    x = image()
    wq = TensorType((4, 1, 1, 4), DType.i8, Quantization((0.01,) * 4, (0,) * 4, axis=0))
    w = apply(ops.Dequantize(), ops.constant(RNG.integers(-127, 128, wq.shape).astype(np.int8), "w", wq), name="w")
    for factor, kind in ((1.0, "QLinearConv"), (2.0, "Conv")):
        bq = TensorType((4,), DType.i32, Quantization((0.01 * 0.02 * factor,) * 4, (0,) * 4, axis=0, bits=32))
        b = apply(ops.Dequantize(), ops.constant(np.array([99, -5, 0, 7], np.int32), "b", bq), name="b")
        graph = graph_of(x, qdq(apply(ops.Conv(), qdq(x, 0.02, 3), w, b, name="conv"), 0.05, -7))
        assert kinds(export_qoperator(graph))[kind] == 1


def test_integers_that_move_before_they_are_dequantized() -> None:
    """As in models that come quantized: Quantize, MaxPool on int8, Dequantize."""
    x = image()
    q = apply(ops.Quantize(quantized(SHAPE, Quantization.per_tensor(0.02, 9))), x, name="q")
    graph = graph_of(x, apply(ops.Dequantize(), apply(ops.MaxPool((2, 2)), q, name="pool"), name="y"))
    for activations in (DType.i8, DType.u8):
        (actual,) = run(export_qdq(graph, activations), feeds := feeds_of(graph))
        np.testing.assert_allclose(actual, evaluate(graph, feeds)[graph.outputs[0]], atol=1e-6)


def test_operators_without_an_integer_form_stay_float() -> None:
    x = image()
    graph = graph_of(x, qdq(apply(pw.Gelu(), qdq(x, 0.02), name="gelu"), 0.02))
    model = export_qoperator(graph)
    assert kinds(model) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Gelu": 1}
    run(model, feeds_of(graph))
