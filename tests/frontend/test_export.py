"""Every float operator, exported to ONNX and run by onnxruntime, gives what the float interpreter gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.frontend.export import export
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.types import DType, Quantization, TensorType, float_type, quantized

RNG = np.random.default_rng(0)


def given(*shape: int, name: str = "x") -> Value:
    return apply(ops.Input(float_type(*shape)), name=name)


def weights(*shape: int, name: str = "w") -> Value:
    return ops.constant(RNG.standard_normal(shape).astype(np.float32), name)


def integers(values: object, name: str = "i") -> Value:
    return ops.constant(np.asarray(values, np.int64), name)


def graph_of(*outputs: Value) -> Graph:
    found = Graph((), outputs, ()).order
    inputs = tuple(v for v in found if isinstance(v.op, ops.Input))
    return Graph(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs))))


def run_onnx(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = export(graph).model
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def random_feeds(graph: Graph) -> dict[str, np.ndarray]:
    return {v.name: RNG.standard_normal(v.shape).astype(v.type.dtype.numpy) for v in graph.inputs}


def assert_same(graph: Graph, feeds: dict[str, np.ndarray] | None = None) -> None:
    feeds = random_feeds(graph) if feeds is None else feeds
    expected = evaluate(graph, feeds)
    for v, actual in zip(graph.outputs, run_onnx(graph, feeds)):
        assert actual.dtype == expected[v].dtype
        np.testing.assert_allclose(actual, expected[v], rtol=2e-5, atol=2e-5)


IMAGE = (1, 7, 6, 4)

UNARY = [
    pw.Clip(0.0), pw.Clip(0.0, 6.0), pw.Clip(-1.0, 0.5), pw.Clip(hi=0.25), pw.Clip(),
    pw.LeakyRelu(0.2), pw.Elu(0.7), pw.Selu(1.6, 1.05), pw.HardSigmoid(0.3, 0.4),
    pw.Gelu(), pw.Gelu(True), pw.Softplus(), pw.Sigmoid(), pw.HardSwish(), pw.Mish(), pw.Tanh(), pw.Erf(), pw.Exp(),
    pw.Neg(), pw.Abs(), pw.Sin(), pw.Cos(),
    pw.Sign(), pw.Floor(), pw.Ceil(), pw.Round(), ops.Cast(DType.i32), ops.Cast(DType.bool),
]  # fmt: skip
POSITIVE = [pw.Log(), pw.Sqrt(), pw.Reciprocal()]
BINARY = [pw.Add(), pw.Sub(), pw.Mul(), pw.Div(), pw.Min(), pw.Max(), pw.Mod(), pw.PRelu()]
BINARY += [pw.Equal(), pw.Less(), pw.LessOrEqual(), pw.Greater(), pw.GreaterOrEqual()]


def name_of(op: object) -> str:
    return repr(op) if "(" in repr(op) else type(op).__name__


@pytest.mark.parametrize("op", UNARY, ids=name_of)
def test_unary(op: ops.Op) -> None:
    assert_same(graph_of(apply(op, given(*IMAGE), name="v")))


@pytest.mark.parametrize("op", POSITIVE, ids=name_of)
def test_unary_of_positive(op: ops.Op) -> None:
    graph = graph_of(apply(op, given(*IMAGE), name="v"))
    assert_same(graph, {"x": RNG.uniform(0.1, 5, IMAGE).astype(np.float32)})


@pytest.mark.parametrize("shape", [IMAGE, (4,), (6, 1), (), (1, 7, 1, 1)], ids=str)
@pytest.mark.parametrize("op", BINARY, ids=name_of)
def test_binary_broadcasts(op: ops.Op, shape: tuple[int, ...]) -> None:
    convolved = apply(ops.Conv(), given(*IMAGE), weights(4, 1, 1, 4), name="conv")
    assert_same(graph_of(apply(op, convolved, weights(*shape), name="v"), apply(op, convolved, given(*shape, name="z"), name="v")))


def test_binary_of_scalars_and_higher_rank_constant() -> None:
    assert_same(graph_of(apply(pw.Add(), given(), weights(), name="v"), apply(pw.Mul(), given(4, name="z"), weights(1, 3, 4), name="v")))


def test_power() -> None:
    graph = graph_of(apply(pw.Pow(), given(3, 4), weights(4), name="v"))
    assert_same(graph, {"x": RNG.uniform(0.1, 2, (3, 4)).astype(np.float32)})


def test_logic_and_where() -> None:
    x, z = given(*IMAGE), given(*IMAGE, name="z")
    less, small = apply(pw.Less(), x, z, name="less"), apply(pw.Greater(), x, weights(4), name="small")
    both, either = apply(pw.And(), less, small, name="both"), apply(pw.Or(), less, apply(pw.Not(), small, name="not"), name="either")
    assert_same(graph_of(apply(ops.Where(), both, x, z, name="v"), apply(ops.Where(), either, x, weights(4), name="v"), both))


def test_map_is_inlined() -> None:
    p = apply(ops.Input(float_type(1)), name="p")
    body = graph_of(apply(pw.Mul(), apply(pw.Sigmoid(), apply(pw.Add(), p, ops.constant(0.5, "half"), name="a"), name="s"), p, name="m"))
    assert_same(graph_of(apply(pw.Map(body, "silu"), given(*IMAGE), name="v")))


CONVOLUTIONS = [
    (ops.Conv(), (5, 1, 1, 4)),
    (ops.Conv((2, 1), ((1, 0), (2, 1))), (5, 3, 3, 4)),
    (ops.Conv(pads=((2, 2), (2, 2)), dilations=(2, 2)), (5, 3, 3, 4)),
    (ops.Conv(groups=4, pads=((1, 1), (1, 1))), (8, 3, 3, 1)),
    (ops.ConvTranspose((2, 2), ((1, 0), (0, 1)), output_padding=(1, 0)), (4, 3, 2, 5)),
    (ops.ConvTranspose(groups=2, dilations=(2, 1)), (4, 2, 3, 3)),
]


@pytest.mark.parametrize(("op", "shape"), CONVOLUTIONS, ids=repr)
def test_convolution(op: ops.Conv | ops.ConvTranspose, shape: tuple[int, ...]) -> None:
    w = weights(*shape)
    channels = shape[0] if isinstance(op, ops.Conv) else shape[3] * op.groups
    x = given(*IMAGE)
    assert_same(graph_of(apply(op, x, w, name="v"), apply(op, x, w, weights(channels, name="b"), name="v")))


POOLS = [
    ops.MaxPool((2, 2), (2, 2)),
    ops.MaxPool((3, 3), (2, 2), ((1, 1), (1, 2))),
    ops.MaxPool((2, 2), (2, 2), ((0, 2), (0, 3))),
    ops.MaxPool((2, 3), dilations=(2, 1)),
    ops.AveragePool((2, 2), (2, 2)),
    ops.AveragePool((3, 3), (2, 2), ((1, 1), (1, 1))),
    ops.AveragePool((3, 3), (2, 2), ((1, 1), (1, 1)), counted_pads=((1, 1), (1, 1))),
    ops.AveragePool((3, 3), (2, 2), ((1, 2), (1, 2)), counted_pads=((1, 1), (1, 1))),
    ops.AveragePool((2, 2), pads=((1, 1), (0, 0)), dilations=(2, 2)),
]


@pytest.mark.parametrize("op", POOLS, ids=repr)
def test_pool(op: ops.Op) -> None:
    assert_same(graph_of(apply(op, given(*IMAGE), name="v")))


MOVES: list[Callable[[Value], Value]] = [
    lambda x: apply(ops.Transpose((0, 3, 1, 2)), x, name="v"),
    lambda x: apply(ops.Transpose((3, 1, 0, 2)), x, name="v"),
    lambda x: apply(ops.Reshape((1, 42, 4)), x, name="v"),
    lambda x: apply(ops.Reshape((2, 84)), x, name="v"),
    lambda x: apply(ops.Expand((3, 7, 6, 4)), x, name="v"),
    lambda x: apply(ops.Expand((2, 3, 7, 6, 4)), x, name="v"),
    lambda x: apply(ops.Tile((1, 2, 1, 3)), x, name="v"),
    lambda x: apply(ops.Concat(3), x, weights(1, 7, 6, 2), x, name="v"),
    lambda x: apply(ops.Concat(1), weights(1, 2, 6, 4), x, name="v"),
    lambda x: apply(ops.Slice((0, 1, 0, 0), (1, 6, 6, 3), (1, 2, 1, 1)), x, name="v"),
    lambda x: apply(ops.Slice((0, 6, 0, 0), (1, -1, 6, 4), (1, -2, 1, 1)), x, name="v"),
    lambda x: apply(ops.Slice((0, 0, 0, 0), (1, 7, 6, 4), (1, 1, 1, 1)), x, name="v"),
    lambda x: apply(ops.Pad(((0, 0), (1, 2), (0, 3), (0, 1)), value=0.5), x, name="v"),
    lambda x: apply(ops.Pad(((0, 0), (-1, 2), (1, -2), (0, 0))), x, name="v"),
    *(lambda x, m=m: apply(ops.Pad(((0, 0), (1, 2), (0, 3), (0, 0)), m), x, name="v") for m in list(ops.PadMode)[1:]),
    lambda x: apply(ops.Gather(3), x, integers([2, -1, 0]), name="v"),
    lambda x: apply(ops.Gather(2), x, integers([[2, -1], [0, 1]]), name="v"),
    lambda x: apply(ops.Gather(1), x, integers(3), name="v"),
    lambda x: apply(ops.MatMul(), x, weights(4, 5), name="v"),
    lambda x: apply(ops.MatMul(), x, weights(4), name="v"),
    lambda x: apply(ops.Softmax(3), x, name="v"),
    lambda x: apply(ops.Softmax(1, log=True), x, name="v"),
    *(lambda x, k=k: apply(ops.Reduce(k, (1, 2)), x, name="v") for k in ops.Reduction),
    *(lambda x, k=k: apply(ops.Reduce(k, (1, 3), keepdims=False), x, name="v") for k in ops.Reduction),
    lambda x: apply(ops.ArgMax(3), x, name="v"),
    lambda x: apply(ops.ArgMax(1, k=2), x, name="v"),
    lambda x: apply(ops.ArgMax(1, keepdims=False, last=True), x, name="v"),
]  # fmt: skip


@pytest.mark.parametrize("convolved", [False, True], ids=["plain", "channels-first"])
@pytest.mark.parametrize("move", MOVES, ids=lambda m: name_of(m(given(*IMAGE)).op))
def test_layouts_are_followed(move: Callable[[Value], Value], convolved: bool) -> None:
    x = given(*IMAGE)
    v = move(apply(ops.Conv(), x, weights(4, 1, 1, 4), name="conv") if convolved else x)
    same_rank = apply(pw.Neg(), v, name="n") if v.type.dtype.is_float else v
    assert_same(graph_of(v, same_rank, apply(ops.Transpose(tuple(reversed(range(v.type.rank)))), v, name="t")))


def linear(size: int, out: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    x = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    low = np.floor(x).astype(int)
    return tuple(low.tolist()), tuple(np.minimum(low + 1, size - 1).tolist()), tuple((x - low).tolist())


def nearest(*picked: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    return picked, picked, (0.0,) * len(picked)


RESIZES = [
    (ops.Resize((None, linear(7, 14), linear(6, 9), None)), "Resize"),
    (ops.Resize((None, linear(7, 3), linear(6, 6), None)), "Resize"),
    (ops.Resize((None, nearest(*np.repeat(np.arange(7), 2).tolist()), nearest(*np.repeat(np.arange(6), 2).tolist()), None)), "Resize"),
    (ops.Resize((None, nearest(0, 5, 5, 2), None, None)), "Gather"),
    (ops.Resize((None, linear(7, 14), None, linear(4, 9))), "Gather"),
]


@pytest.mark.parametrize(("op", "kind"), RESIZES, ids=["linear up", "linear down", "nearest", "odd table", "channels too"])
def test_resize(op: ops.Resize, kind: str) -> None:
    graph = graph_of(apply(op, given(*IMAGE), name="v"))
    assert kind in {n.op_type for n in export(graph).model.graph.node}
    assert_same(graph)


def test_integers_keep_their_type() -> None:
    tokens = apply(ops.Input(TensorType((1, 5), DType.i64)), name="tokens")
    table = weights(11, 8, name="table")
    graph = graph_of(apply(ops.Gather(0), table, tokens, name="v"), apply(pw.Div(), tokens, integers(-3), name="q"))
    assert_same(graph, {"tokens": np.array([[0, 10, 3, 4, 5]])})


def test_quantized_values() -> None:
    x = given(*IMAGE)
    activation = Quantization.per_tensor(1 / 64, 3)
    wq = TensorType((5, 1, 1, 4), DType.i8, Quantization((0.01, 0.02, 0.03, 0.04, 0.05), (0,) * 5, axis=0))
    w = apply(ops.Dequantize(), ops.constant(RNG.integers(-127, 128, wq.shape).astype(np.int8), "w", wq), name="w")
    bq = TensorType((5,), DType.i32, Quantization(tuple(s / 64 for s in wq.quant.scale), (0,) * 5, axis=0, bits=32))
    b = apply(ops.Dequantize(), ops.constant(RNG.integers(-500, 500, 5).astype(np.int32), "b", bq), name="b")
    real = apply(ops.Dequantize(), apply(ops.Quantize(quantized(IMAGE, activation)), x, name="q"), name="d")
    narrow = apply(ops.Quantize(quantized(IMAGE, Quantization.per_tensor(0.25, 0, bits=4))), x, name="q4")
    assert_same(graph_of(apply(ops.Conv(), real, w, b, name="v"), real, apply(ops.Dequantize(), narrow, name="d4")))


def test_natural_graph_has_no_transpose() -> None:
    """A channels-first model, imported as transposes around channels-last operators, comes back channels-first."""
    image = given(1, 4, 7, 6)
    x = apply(ops.Transpose((0, 2, 3, 1)), image, name="t")
    v = apply(pw.Clip(0.0), apply(ops.Conv(pads=((1, 1), (1, 1))), x, weights(4, 3, 3, 4), name="c"), name="r")
    v = apply(pw.Mul(), apply(pw.Add(), v, x, name="a"), weights(4), name="m")
    pooled = apply(ops.Reduce(ops.Reduction.mean, (1, 2)), v, name="p")
    flat = apply(ops.Reshape((1, 4)), pooled, name="f")
    graph = graph_of(apply(ops.MatMul(), flat, apply(ops.Transpose((1, 0)), weights(3, 4), name="wt"), name="y"))
    assert "Transpose" not in {n.op_type for n in export(graph).model.graph.node}
    assert_same(graph)


def test_extra_outputs_are_recorded_with_their_layout() -> None:
    x = given(*IMAGE)
    w = weights(5, 1, 1, 4)
    conv = apply(ops.Conv(), x, w, name="conv")
    graph = graph_of(apply(pw.Neg(), conv, name="n"))
    exported = export(graph, [conv, x, w, conv])
    feeds = random_feeds(graph)
    session = ort.InferenceSession(exported.model.SerializeToString())
    expected = evaluate(graph, feeds, [conv, x, w])
    for v in (conv, x, w):
        (actual,) = session.run([exported.names[v]], feeds)
        np.testing.assert_allclose(actual, expected[v].transpose(exported.perms[v]), atol=1e-5)
    assert exported.perms[conv] == (0, 3, 1, 2)


def test_outputs_that_are_inputs_constants_or_repeated() -> None:
    x = given(2, 3)
    n = apply(pw.Neg(), x, name="y1")
    assert_same(graph_of(x, n, n, weights(2, 2), apply(ops.Transpose((1, 0)), n, name="t")))


def test_long_chains_do_not_recurse() -> None:
    v = given(1)
    for _ in range(3000):
        v = apply(pw.Neg(), v, name="n")
    assert len(export(graph_of(v)).model.graph.node) == 3000


def test_integer_operators_are_refused() -> None:
    from qcompiler.ir.integer import Clamp

    with pytest.raises(NotImplementedError, match="found Clamp at 'v'"):
        export(graph_of(apply(Clamp(0, 3), given(2), name="v")))
