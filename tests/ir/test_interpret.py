"""The interpreter on quantized values, as a namespace-independent evaluator, and its errors."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.errors import UsageError
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import Clamp
from qcompiler.ir.interpret import compute, evaluate
from qcompiler.ir.types import DType, Quantization, TensorType, float_type, quantized

QUANT = Quantization.per_tensor(0.5, -3)


def given(*shape: int) -> Value:
    return apply(ops.Input(float_type(*shape)), name="x")


def integers(*shape: int) -> Value:
    return apply(ops.Input(quantized(shape, QUANT)), name="q")


def one(v: Value, x: object) -> np.ndarray:
    return np.asarray(compute(v, [np.asarray(x)]))


def test_quantize_as_onnx() -> None:
    """Ties to even of the float32 quotient, saturated; NaN is the zero point."""
    v = apply(ops.Quantize(quantized((), QUANT)), given(8), name="v")
    x = np.array([0, 0.25, 0.75, -0.25, 1e9, -np.inf, np.nan, -1], np.float32)
    assert one(v, x).tolist() == [-3, -3, -1, -3, 127, -128, -3, -5]
    assert one(v, x).dtype == np.int8


def test_quantize_divides_in_float32() -> None:
    """x / scale rounds in float32 before it is rounded to an integer, as ONNX Runtime does."""
    scale = np.float32(0.1)
    x = np.nextafter(np.float32(0.25), np.float32(0))
    v = apply(ops.Quantize(quantized((), Quantization.per_tensor(float(scale)))), given(1), name="v")
    assert one(v, np.array([x])).tolist() == [int(np.rint(x / scale))]


def test_dequantize_per_axis_and_wide() -> None:
    quant = Quantization((0.5, 2.0), (0, 1), 1, 32)
    kind = TensorType((1, 2), DType.i32, quant)
    v = apply(ops.Dequantize(), ops.constant(np.array([[-(2**31), 3]], np.int32), "c", kind), name="v")
    assert one(v, v.inputs[0].op.data).tolist() == [[-(2.0**30), 4.0]]


def test_quantized_pad_holds_the_real_value() -> None:
    v = apply(ops.Pad(((1, 1),), value=1.0), integers(2), name="v")
    assert one(v, np.array([5, 6], np.int8)).tolist() == [-1, 5, 6, -1]


def test_padding_never_wins_a_maximum() -> None:
    v = apply(ops.MaxPool((3, 3), (1, 1), ((1, 1), (1, 1))), integers(1, 1, 1, 1), name="v")
    assert one(v, np.full((1, 1, 1, 1), -128, np.int8)).tolist() == [[[[-128]]]]


@pytest.mark.parametrize("mode", ops.PadMode)
def test_pad_modes_and_cropping(mode: ops.PadMode) -> None:
    x = np.arange(4, dtype=np.float32)
    v = apply(ops.Pad(((-1, 2),), mode, 9.0), given(4), name="v")
    kwargs = {"constant_values": 9.0} if mode is ops.PadMode.constant else {}
    np.testing.assert_array_equal(one(v, x), np.pad(x[1:], (0, 2), mode=mode.value, **kwargs))


def test_map_runs_its_body() -> None:
    x = given(4)
    body = Graph((x,), (apply(pw.Mul(), x, apply(pw.Sigmoid(), x, name="s"), name="y"),), ("y",))
    v = apply(pw.Map(body, "silu"), given(2, 2), name="v")
    data = np.array([[-1, 0], [1, 30]], np.float32)
    np.testing.assert_allclose(one(v, data), data / (1 + np.exp(-data)), rtol=1e-6)


def test_wanted_values_in_the_middle() -> None:
    x = given(2)
    a = apply(pw.Neg(), x, name="a")
    b = apply(pw.Exp(), a, name="b")
    graph = Graph((x,), (b,), ("b",))
    results = evaluate(graph, {"x": np.array([1, 2], np.float32)}, [a, x])
    assert results[a].tolist() == [-1, -2]
    assert results[x].tolist() == [1, 2]
    assert set(evaluate(graph, {"x": np.zeros(2, np.float32)})) == {b}


def test_results_have_the_inferred_types() -> None:
    """A sample of operators that numpy would widen."""
    x = given(2, 4, 4, 3)
    rng = np.random.default_rng(0)
    w = ops.constant(rng.standard_normal((6, 3, 3, 1)).astype(np.float32), "w")
    values = [
        apply(ops.Conv(groups=3), x, w, name="conv"),
        apply(ops.AveragePool((2, 2), pads=((1, 0), (0, 1))), x, name="pool"),
        apply(ops.Reduce(ops.Reduction.mean, (1, 2), False), x, name="mean"),
        apply(ops.Resize((None, ((0, 1), (1, 2), (0.5, 0.25)), None, None)), x, name="resize"),
        apply(ops.ArgMax(3, last=True), x, name="argmax"),
        apply(pw.Gelu(), x, name="gelu"),
        apply(pw.Clip(-0.5, 0.5), x, name="clip"),
        apply(ops.Softmax(3, log=True), x, name="softmax"),
    ]
    results = evaluate(Graph((x,), tuple(values), ()), {"x": rng.standard_normal(x.shape).astype(np.float32)})
    for v in values:
        assert (results[v].shape, results[v].dtype) == (v.shape, v.type.dtype.numpy), v.name


@pytest.mark.parametrize(
    "feeds, words",
    [
        ({}, "'x' is missing"),
        ({"x": np.zeros(3, np.float32)}, r"'x' must be f32\[2\], found float32 of shape \(3,\)"),
        ({"x": np.zeros(2)}, "found float64"),
    ],
)
def test_bad_feeds(feeds: dict[str, np.ndarray], words: str) -> None:
    x = given(2)
    with pytest.raises(UsageError, match=words):
        evaluate(Graph((x,), (x,), ("x",)), feeds)


def test_integer_operators_belong_to_the_reference() -> None:
    with pytest.raises(NotImplementedError, match="Clamp 'v'"):
        one(apply(Clamp(0, 5), integers(1), name="v"), np.zeros(1, np.int8))
