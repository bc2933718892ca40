import numpy as np
import pytest
from float_graphs import Build, assert_same, census, graph_of

from qcompiler.ir.graph import Declined, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import AveragePool, Cast, Concat, Conv, Input, MatMul, MaxPool, Pad, Reshape, Transpose
from qcompiler.ir.pointwise import Add, Clip, LeakyRelu, Mul
from qcompiler.ir.types import DType, TensorType
from qcompiler.passes.affine_to_depthwise import affine_to_depthwise
from qcompiler.passes.fold_affine import fold_affine
from qcompiler.passes.simplify import simplify

INF = float("inf")
PADDED = ((1, 1), (1, 1))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalization_behind_a_convolution(groups, bias):
    b = Build()
    y = b.normalized(b.conv(b.input(2, 6, 6, 4), 8, 3, bias=bias, groups=groups, pads=PADDED))
    folded = fold_affine(graph_of(y))
    assert census(folded) == {"Conv": 1}
    assert_same(graph_of(y), folded)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_normalization_before_an_unpadded_convolution(groups):
    b = Build()
    y = b.conv(b.normalized(b.input(2, 6, 6, 4)), 8, 3, groups=groups)
    folded = fold_affine(graph_of(y))
    assert census(folded) == {"Conv": 1}
    assert_same(graph_of(y), folded)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_of_bytes_folds_into_a_padded_convolution(channels):
    b = Build()
    octets = apply(Input(TensorType((1, 6, 6, channels), DType.u8)), name="x")
    x = b.op(Cast(DType.f32), octets)
    shifted = b.op(Add(), b.op(Mul(), x, b.const(channels)), b.const(channels))
    graph = graph_of(b.conv(shifted, 8, 3, pads=PADDED))
    folded = fold_affine(graph)
    assert census(folded) == {"Cast": 1, "Pad": 1, "Conv": 1}, "a channel of ones"
    feeds = {"x": np.random.default_rng(0).integers(0, 256, (1, 6, 6, channels)).astype(np.uint8)}
    before, after = (evaluate(g, feeds)[g.outputs[0]] for g in (graph, folded))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())


def test_only_the_scale_folds_into_a_padded_convolution():
    b = Build()
    x = b.input(1, 6, 6, 4)
    shifted = b.op(Mul(), b.op(Add(), x, b.const(4)), b.const(4))
    y = b.conv(shifted, 8, 3, pads=PADDED)
    declined = Declined()
    folded = fold_affine(graph_of(y), declined)
    assert census(folded) == {"Add": 1, "Conv": 1}
    assert any("pads with zeros" in reason for _, reason in declined.reasons)
    assert_same(graph_of(y), folded)


@pytest.mark.parametrize("low, kept", [(0.5, {"Conv": 1, "Clip": 1}), (-2.0, {"Conv": 1, "Clip": 1, "Mul": 1})])
def test_a_scale_passes_a_relu_only_if_it_is_positive(low, kept):
    b = Build()
    y = b.op(Mul(), b.op(Clip(0.0, INF), b.conv(b.input(1, 5, 5, 3), 6)), b.const(6, low=low, high=2.0))
    assert census(fold_affine(graph_of(y))) == kept
    assert_same(graph_of(y), fold_affine(graph_of(y)))


def test_a_number_moves_the_bounds_of_a_clip():
    b = Build()
    clipped = b.op(Clip(0.0, 6.0), b.op(Add(), b.conv(b.input(1, 5, 5, 3), 6), b.number(3.0)))
    y = b.op(Mul(), clipped, b.number(1 / 6))
    folded = fold_affine(graph_of(y))
    assert folded.outputs[0].op == Clip(0.0, pytest.approx(1.0))
    assert census(folded) == {"Conv": 1, "Clip": 1}
    assert_same(graph_of(y), folded)


@pytest.mark.parametrize(
    "op", [LeakyRelu(0.1), MaxPool((2, 2)), AveragePool((2, 2), pads=PADDED, counted_pads=PADDED), Pad(((0, 0), (1, 0), (0, 2), (0, 0)))]
)
def test_a_positive_scale_passes(op):
    b = Build()
    y = b.op(Mul(), b.op(op, b.conv(b.input(1, 5, 5, 3), 6)), b.const(6, low=0.5, high=2.0))
    folded = fold_affine(graph_of(y))
    assert census(folded) == {"Conv": 1, type(op).__name__: 1}
    assert_same(graph_of(y), folded)


def test_behind_a_concat_every_branch_takes_its_part():
    b = Build()
    x = b.input(1, 5, 5, 3)
    y = b.normalized(b.op(Concat(3), b.conv(x, 4), b.conv(x, 2), b.op(MaxPool((1, 1)), b.conv(x, 5))), low=0.5)
    folded = fold_affine(graph_of(y))
    assert census(folded) == {"Conv": 3, "Concat": 1, "MaxPool": 1}
    assert_same(graph_of(y), folded)


def test_a_concat_with_a_branch_that_cannot_keeps_its_batch_normalization():
    b = Build()
    x = b.input(1, 5, 5, 3)
    y = b.normalized(b.op(Concat(3), b.conv(x, 4), x))
    declined = Declined()
    assert fold_affine(graph_of(y), declined).outputs[0].op == Add()
    assert any("joined branch" in reason for _, reason in declined.reasons)


def test_a_convolution_with_two_readers_stays():
    b = Build()
    c = b.conv(b.input(1, 5, 5, 3), 4)
    declined = Declined()
    graph = graph_of(b.normalized(c), c)
    assert fold_affine(graph, declined) is graph
    assert ("conv3", "has several readers; the scale and shift of one of them stay separate") in declined.reasons


def test_through_a_reshape_that_splits_channels():
    b = Build()
    c = b.conv(b.input(1, 3, 3, 4), 12)
    split = b.op(Transpose((0, 1, 3, 2, 4)), b.op(Reshape((1, 3, 3, 3, 4)), c))
    y = b.op(Add(), b.op(Mul(), split, b.const(4)), b.const(4))
    folded = fold_affine(graph_of(y))
    assert census(folded) == {"Conv": 1, "Reshape": 1, "Transpose": 1}
    assert_same(graph_of(y), folded)


def test_before_a_dense_layer_each_row_has_its_own():
    b = Build()
    y = b.op(MatMul(), b.op(Reshape((2, 36)), b.op(Add(), b.op(Mul(), b.input(2, 3, 3, 4), b.const(3, 3, 4)), b.const(4))), b.const(36, 5))
    folded = simplify(graph_of(y))
    assert census(folded) == {"Conv": 1, "Reshape": 2}
    assert_same(graph_of(y), folded)


@pytest.mark.parametrize("shape", [(2, 5, 5, 6), (2, 7, 6), (3, 6)])
def test_what_nothing_absorbs_is_one_depthwise_convolution(shape):
    b = Build()
    y = b.op(Clip(0.0, INF), b.normalized(b.normalized(b.input(*shape))))
    simple = simplify(graph_of(y))
    convs = [v for v in simple.order if isinstance(v.op, Conv)]
    assert len(convs) == 1
    assert convs[0].op.groups == 6
    assert set(census(simple)) <= {"Conv", "Clip", "Reshape"}
    assert_same(graph_of(y), simple)


def test_affine_maps_by_numbers_are_no_convolutions():
    b = Build()
    graph = graph_of(b.op(Mul(), b.input(1, 4, 4, 3), b.number(2.0, 3)))
    assert affine_to_depthwise(graph) is graph


def test_folding_happens_in_double_precision():
    b = Build()
    c = b.conv(b.input(1, 4, 4, 3), 4)
    y = b.op(Add(), b.op(Mul(), c, b.number(1e-4)), b.const(4))
    w, s = c.inputs[1].op.data.astype(np.float64), np.float64(np.float32(1e-4))
    folded = fold_affine(graph_of(y)).outputs[0]
    assert np.array_equal(folded.inputs[1].op.data, (w * s).astype(np.float32))
