"""From float through Q/DQ to integers, on hand-built graphs: the numbers agree, the proofs hold, the messages say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from qcompiler.backends import reference
from qcompiler.errors import ProofError, UnsupportedModel
from qcompiler.ir import ops, pointwise
from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.integer import IntConv, IntNarrow, IntRotate, Requantize
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, Input, Reduce, Reduction, constant
from qcompiler.ir.pointwise import Add, Clip
from qcompiler.ir.types import DType, Quantization, float_type, quantized
from qcompiler.passes.insert_qdq import insert_qdq, share
from qcompiler.passes.legalize import legalize
from qcompiler.passes.lower import lower_to_integers
from qcompiler.passes.prove_ranges import Bound, prove_ranges
from qcompiler.passes.quantize_weights import quantize_weights
from qcompiler.passes.storage_points import sharing_groups, storage_points

RNG = np.random.default_rng(7)
Body = Callable[..., Value]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def source(name: str, *shape: int) -> Value:
    return Value(Input(float_type(*shape)), (), float_type(*shape), name)


def graph_of(body: Body, *shapes: tuple[int, ...]) -> Graph:
    inputs = tuple(source(f"x{i}", *s) for i, s in enumerate(shapes))
    return Graph(inputs, (body(*inputs),), ("y",))


def min_max(values: np.ndarray) -> Quantization:
    lo, hi = min(0.0, float(values.min())), max(1e-3, float(values.max()))
    return Quantization.per_tensor((hi - lo) / 255, round(-128 - lo * 255 / (hi - lo)))


def quantized_graphs(graph: Graph, feeds: dict[str, np.ndarray]) -> tuple[Graph, Graph]:
    graph = legalize(graph)
    points = storage_points(graph)
    values = evaluate(graph, feeds, points)
    qdq = insert_qdq(graph, share(graph, {v: min_max(np.asarray(values[v])) for v in points}))
    return qdq, lower_to_integers(qdq)


def conv(x: Value, out: int = 6, kernel: int = 3, groups: int = 1, name: str = "conv", **attributes: object) -> Value:
    w = constant(normal(out, kernel, kernel, x.shape[3] // groups) / kernel, f"{name}.w")
    return apply(Conv(pads=((1, 1), (1, 1)), groups=groups, **attributes), x, w, constant(normal(out), f"{name}.b"), name=name)  # type: ignore[arg-type]


def resize(x: Value) -> Value:
    taps = ((0, 0, 1, 2), (0, 1, 2, 3), (0.0, 0.5, 0.5, 0.25))
    return apply(ops.Resize((None, taps, taps, None)), x, name="resize")


SHAPE = (1, 6, 6, 4)
BODIES: dict[str, tuple[Body, tuple[tuple[int, ...], ...]]] = {
    "conv": (conv, (SHAPE,)),
    "conv-relu6": (lambda x: apply(Clip(0.0, 1.0), conv(x), name="clip"), (SHAPE,)),
    "depthwise-stride": (lambda x: conv(x, 4, groups=4, strides=(2, 2)), (SHAPE,)),
    "grouped-dilated": (lambda x: conv(x, 8, groups=2, dilations=(2, 1)), (SHAPE,)),
    "residual": (lambda x: apply(Add(), conv(x, 4), x, name="add"), (SHAPE,)),
    "residual-relu": (lambda x, y: apply(Clip(0.0), apply(Add(), y, conv(x, 4), name="add"), name="relu"), (SHAPE, SHAPE)),
    "add": (lambda x, y: apply(Add(), x, y, name="add"), (SHAPE, SHAPE)),
    "sub-broadcast": (lambda x, y: apply(pointwise.Sub(), x, y, name="sub"), (SHAPE, (1, 1, 1, 4))),
    "add-constant": (lambda x: apply(Add(), x, constant(normal(4), "c"), name="add"), (SHAPE,)),
    "mul": (lambda x, y: apply(pointwise.Mul(), x, y, name="mul"), (SHAPE, (1, 1, 1, 4))),
    "matmul": (lambda x, y: apply(ops.MatMul(), x, y, name="matmul"), ((2, 5, 8), (2, 8, 3))),
    "max": (lambda x, y: apply(pointwise.Max(), x, y, name="max"), (SHAPE, SHAPE)),
    "mean": (lambda x: apply(Reduce(Reduction.mean, (1, 2)), x, name="mean"), (SHAPE,)),
    "reduce-max": (lambda x: apply(Reduce(Reduction.max, (1, 2), False), x, name="max"), (SHAPE,)),
    "average-pool": (lambda x: apply(ops.AveragePool((3, 3), (2, 2), ((1, 1), (1, 1))), x, name="pool"), (SHAPE,)),
    "max-pool": (lambda x: apply(ops.MaxPool((3, 3), (2, 2), ((1, 1), (1, 1))), x, name="pool"), (SHAPE,)),
    "resize": (resize, (SHAPE,)),
    "sigmoid": (lambda x: apply(pointwise.Sigmoid(), x, name="sigmoid"), (SHAPE,)),
    "prelu": (lambda x: apply(pointwise.PRelu(), x, constant(normal(4), "slope"), name="prelu"), (SHAPE,)),
    "softmax": (lambda x: apply(ops.Softmax(3), x, name="softmax"), (SHAPE,)),
    "log-softmax": (lambda x: apply(ops.Softmax(3, log=True), x, name="log-softmax"), (SHAPE,)),
    "concat": (lambda x, y: apply(ops.Concat(3), x, y, name="concat"), (SHAPE, SHAPE)),
    "transpose": (lambda x: apply(ops.Transpose((0, 3, 1, 2)), x, name="transpose"), (SHAPE,)),
    "pad": (lambda x: apply(ops.Pad(((0, 0), (1, 2), (0, 1), (0, 0))), x, name="pad"), (SHAPE,)),
    "relu-alone": (lambda x: apply(Clip(0.0), x, name="relu"), (SHAPE,)),
}


@pytest.mark.parametrize("name", BODIES)
def test_integers_are_within_two_steps_of_float(name: str) -> None:
    body, shapes = BODIES[name]
    graph = graph_of(body, *shapes)
    feeds = {v.name: normal(*v.shape) for v in graph.inputs}
    qdq, integer = quantized_graphs(graph, feeds)
    assert prove_ranges(integer).keys() == {v for v in integer.order if v.type.dtype.name == "i32" and v.inputs}
    y = reference.run(integer, feeds)["y"]
    simulated = evaluate(qdq, feeds)[qdq.outputs[0]]
    step = qdq.outputs[0].inputs[0].type.quant.scale[0]
    assert np.abs(y - simulated).max() <= 1.01 * step
    exact = np.asarray(evaluate(graph, feeds)[graph.outputs[0]])
    assert np.abs(y - exact).max() <= max(0.15 * np.abs(exact).max(), 2 * step)


def test_a_residual_is_added_in_the_accumulator_exactly() -> None:
    graph = graph_of(lambda x, y: apply(Add(), conv(x, 4), y, name="add"), SHAPE, SHAPE)
    _, integer = quantized_graphs(graph, {v.name: normal(*v.shape) for v in graph.inputs})
    acc = next(v for v in integer.order if isinstance(v.op, IntConv))
    r, m = acc.inputs[3:]
    unit = acc.inputs[0].type.quant.scale[0] * np.array(acc.inputs[1].type.quant.scale)  # type: ignore[union-attr]
    np.testing.assert_allclose(unit * m.op.data, r.type.quant.scale[0], rtol=1e-9)  # type: ignore[attr-defined,union-attr]
    assert not any(type(v.op).__name__ == "IntSum" for v in integer.order)


@pytest.mark.parametrize("coarser", [1.0, 4.0])
def test_what_additions_pass_on_is_fine_where_that_shows(coarser: float) -> None:
    """x -> r = relu conv x; y = relu(conv(relu conv r) + r), with y four times as coarse or not."""

    def body(x: Value) -> Value:
        r = apply(Clip(0.0), conv(x, 4, name="first"), name="r")
        inner = apply(Clip(0.0), conv(r, 4, name="second"), name="inner")
        y = apply(Clip(0.0), apply(Add(), conv(inner, 4, name="third"), r, name="add"), name="y")
        return conv(y, 4, name="last")

    graph = graph_of(body, SHAPE)
    quant = {v: Quantization.per_tensor(0.02 * (coarser if v.name == "y" else 1), -128 if "conv" not in v.name else 0) for v in storage_points(graph)}
    integer = lower_to_integers(insert_qdq(graph, quant))
    fine = {v.name: v for v in integer.order if v.type.dtype is DType.i16}
    assert set(fine) == ({"r.fine"} if coarser < 2 else set())
    assert sum(isinstance(v.op, IntNarrow) for v in integer.order) == len(fine)
    assert [v.type.dtype for v in integer.order if isinstance(v.op, IntConv) and len(v.inputs) > 3] == [DType.i32]
    exchanged = insert_qdq(graph, quant, spell_out=True)
    assert not any(v.type.dtype is DType.i16 for v in exchanged.order), "other tools know 8 bits"


def test_a_division_becomes_a_product() -> None:
    graph = legalize(graph_of(lambda x, y: apply(pointwise.Div(), x, y, name="div"), SHAPE, SHAPE))
    assert [type(v.op).__name__ for v in graph.order] == ["Input", "Input", "Reciprocal", "Mul"]


def test_movement_shares_and_concat_joins() -> None:
    def body(x: Value, y: Value) -> Value:
        return apply(ops.Concat(3), conv(x, name="a"), apply(ops.MaxPool((1, 1)), conv(y, name="b"), name="pool"), name="concat")

    graph = graph_of(body, SHAPE, SHAPE)
    assert sorted(sorted(v.name for v in g) for g in sharing_groups(graph)) == [["a", "b", "concat", "pool"], ["x0"], ["x1"]]


def test_all_unsupported_operators_are_named_at_once() -> None:
    def body(x: Value) -> Value:
        a = apply(pointwise.Pow(), x, x, name="power")
        return apply(pointwise.Mod(), a, x, name="modulo")

    with pytest.raises(UnsupportedModel, match=r"'power'.*'modulo'"):
        legalize(graph_of(body, SHAPE))


def test_a_dead_channel_keeps_its_bias() -> None:
    w, b = normal(3, 1, 1, 4), np.array([0.5, 100.0, -2.0], np.float32)
    w[1] = 0
    x, y = Quantization.per_tensor(0.1), Quantization.per_tensor(1.0)
    made = quantize_weights(w, b, x, y)
    assert np.allclose(made.bias * made.scale * 0.1, b, rtol=1e-2)


def test_a_huge_bias_raises_the_scale_and_is_reported() -> None:
    w, b = np.full((1, 1, 1, 2), 1e-9, np.float32), np.array([50.0], np.float32)
    made = quantize_weights(w, b, Quantization.per_tensor(0.01), Quantization.per_tensor(1.0))
    assert made.raised == (0,)
    assert np.isclose(made.bias[0] * made.scale[0] * 0.01, 50.0)


@pytest.mark.parametrize("stored", [0.0, 0.05])
def test_bias_correction_removes_the_mean_error(stored: float) -> None:
    """Of weights, and of operands whose stored mean is `stored` above what it was."""
    w, mean = normal(5, 3, 3, 8), np.abs(normal(8)) + 1
    x, error = Quantization.per_tensor(0.02), np.full(8, stored)
    plain, corrected = quantize_weights(w, None, x, None), quantize_weights(w, None, x, None, mean, stored_error=error)
    target = (w.astype(np.float64).sum((1, 2)) * mean).sum(1)

    def result(made: object) -> np.ndarray:
        taps = (made.weights * made.scale.reshape(-1, 1, 1, 1)).sum((1, 2))  # type: ignore[attr-defined]
        return (taps * (mean + error)).sum(1) + made.bias * made.scale * 0.02  # type: ignore[attr-defined]

    assert np.abs(result(corrected) - target).max() < 0.1 * np.abs(result(plain) - target).max()


def test_the_proof_refuses_what_may_overflow() -> None:
    graph = graph_of(conv, SHAPE)
    _, integer = quantized_graphs(graph, {"x0": normal(*SHAPE)})
    acc = next(v for v in integer.order if isinstance(v.op, IntConv))
    huge = replace(acc, inputs=(*acc.inputs[:2], constant(np.full(6, 2**31 - 100, np.int32), "bias")))
    with pytest.raises(ProofError, match=r"accumulator of 'conv\.acc' may reach"):
        prove_ranges(Graph(graph.inputs, (huge,), ("y",)))


def test_the_proof_refuses_weights_that_no_sixteen_bit_sum_can_hold() -> None:
    graph = graph_of(conv, SHAPE)
    _, integer = quantized_graphs(graph, {"x0": normal(*SHAPE)})
    acc = next(v for v in integer.order if isinstance(v.op, IntConv))
    weights = constant(np.full(acc.inputs[1].shape, -128, np.int8), "w", acc.inputs[1].type)
    with pytest.raises(ProofError, match="hold -128"):
        prove_ranges(Graph(graph.inputs, (replace(acc, inputs=(acc.inputs[0], weights, *acc.inputs[2:])),), ("y",)))


TURNED = Quantization.per_tensor(0.1, -28)


def rotation(shift: int, quant: Quantization = TURNED) -> tuple[Graph, Value]:
    x = apply(Input(quantized((1, 2, 1, 2), quant)), name="x")
    cos, sin = (constant(np.array(rows, np.int16), n) for n, rows in (("cos", [[16384, 0], [-5, 3]]), ("sin", [[0, -16384], [7, 11]])))
    acc = apply(IntRotate((1, 0)), x, cos, sin, name="acc")
    numbers = constant(np.array([shift], np.int32), "shift"), constant(np.array([1 << 14], np.int32), "q")
    y = apply(Requantize(quantized(acc.shape, Quantization.per_tensor(0.1))), acc, *numbers, name="y")
    return Graph((x,), (y,), ("y",)), acc


def test_rotations_are_proven_from_their_angles() -> None:
    """x - z is in [-100, 155]; the greatest sums are those of an angle of a quarter turn."""
    graph, acc = rotation(8)
    assert prove_ranges(graph)[acc] == Bound(-155 << 14, 155 << 14, (255 << 14) + 128)
    with pytest.raises(ProofError, match="accumulator of 'acc' may reach"):
        prove_ranges(rotation(-10)[0])


def test_rotations_of_sixteen_bits_are_proven_from_what_may_be_turned() -> None:
    graph, acc = rotation(8, Quantization.per_tensor(0.001, 0, 16))
    assert prove_ranges(graph)[acc] == Bound(-(1 << 29), 1 << 29, (1 << 29) + 128)
    with pytest.raises(ProofError, match="accumulator of 'acc' may reach"):
        prove_ranges(rotation(-2, Quantization.per_tensor(0.001, 0, 16))[0])


def test_raised_scales_reach_the_report() -> None:
    def body(x: Value) -> Value:
        return apply(Conv(), x, constant(np.full((1, 1, 1, 4), 1e-9, np.float32), "w"), constant(np.array([50.0], np.float32), "b"), name="conv")

    graph, declined = graph_of(body, SHAPE), Declined()
    insert_qdq(graph, {v: Quantization.per_tensor(0.5) for v in storage_points(graph)}, declined=declined)
    assert any("scale of output channel 0 was raised" in reason for _, reason in declined.reasons)


def test_a_much_finer_operand_of_concat_keeps_its_scale():
    """Where it is read elsewhere, too; what Concat alone reads is made in Concat's scale."""
    x = Value(Input(float_type(1, 4, 4, 2)), (), float_type(1, 4, 4, 2), "x")
    fine, wide = apply(pointwise.Sigmoid(), x, name="fine"), apply(pointwise.Exp(), x, name="wide")
    joined = apply(ops.Concat(3), fine, wide, name="joined")
    chosen = {fine: Quantization.per_tensor(0.01), wide: Quantization.per_tensor(1.0), joined: Quantization.per_tensor(1.0)}
    chosen[x] = Quantization.per_tensor(0.1)
    alone = Graph((x,), (joined,), ("y",))
    assert share(alone, chosen)[fine] == chosen[joined]
    shared = Graph((x,), (joined, fine), ("y", "z"))
    assert share(shared, chosen)[fine] == chosen[fine]
    assert share(shared, chosen)[wide] == chosen[joined]
