import numpy as np
import pytest
from float_graphs import TO_FIRST, Build, assert_same, census, feeds_for, graph_of

from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import (
    ArgMax,
    Concat,
    Expand,
    Gather,
    Input,
    MatMul,
    Pad,
    PadMode,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Tile,
    Transpose,
    constant,
)
from qcompiler.ir.pointwise import Add, Clip, Exp, Mul, Sigmoid, Sub
from qcompiler.passes.axes import commute, compose, inverse, moves_data, reshape_groups
from qcompiler.passes.simplify import LAYOUT, settle, simplify

SHAPE = (2, 3, 5, 4)
"""An image N, H, W, C."""


def tidy(graph):
    return settle(graph, LAYOUT)


def test_reshape_groups():
    assert reshape_groups((2, 12, 5, 1), (2, 1, 3, 4, 5)) == [((0,), (0,)), ((1,), (2, 3)), ((2,), (4,))]
    assert reshape_groups((4, 6), (6, 4)) == [((0, 1), (0, 1))]
    assert reshape_groups((1, 1), ()) == []


def test_permutations():
    x = np.arange(24).reshape(2, 3, 4)
    p, q = (2, 0, 1), (1, 0, 2)
    assert np.array_equal(x.transpose(p).transpose(q), x.transpose(compose(q, p)))
    assert compose(inverse(p), p) == (0, 1, 2)
    assert not moves_data((1, 4, 1, 5), (0, 2, 1, 3))
    assert moves_data((2, 3), (1, 0))


@pytest.mark.parametrize(
    "shape, perm, out",
    [
        ((2, 5, 6, 8), TO_FIRST, (2, 2, 4, 5, 6)),
        ((2, 5, 6, 8), TO_FIRST, (2, 8, 30)),
        ((1, 5, 6, 8), TO_FIRST, (1, 8, 1, 30)),
        ((1, 1, 6, 8), TO_FIRST, (8, 6)),
        ((2, 5, 6, 2, 4), (0, 4, 3, 1, 2), (2, 8, 5, 6)),
        ((2, 6, 3), (0, 2, 1), (2, 3, 2, 3, 1)),
    ],
)
def test_commute_is_exact(shape, perm, out):
    moved = commute(shape, perm, out)
    assert moved is not None
    x = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(x.transpose(perm).reshape(out), x.transpose(moved.before).reshape(moved.middle).transpose(moved.after))


def test_commute_declines_where_only_the_transposition_itself_will_do():
    assert commute((2, 5, 6, 8), TO_FIRST, (2, 240)) is None
    assert commute((1, 8, 256, 4), (0, 2, 1, 3), (1, 256, 32)) is None, "heads of attention"


AXIS_OPS = [
    Pad(((0, 0), (0, 1), (1, 2), (3, 0))),
    Pad(((0, 0), (0, 0), (1, 2), (3, 0)), PadMode.reflect),
    Slice((0, 1, 2, 0), (2, 4, -1, 5), (1, 2, -1, 1)),
    Tile((1, 2, 1, 3)),
    Expand((2, 4, 3, 5)),
    Resize((None, None, ((0, 0, 1, 1), (0, 1, 1, 2), (0.0, 0.25, 0.5, 0.75)), None)),
    Reduce(Reduction.mean, (2, 3)),
    Reduce(Reduction.max, (1,)),
    Softmax(1),
    Softmax(3, log=True),
    ArgMax(1),
    Reshape((2, 2, 2, 3, 5)),
    Reshape((2, 4, 15)),
    Reshape((2, 4, 15, 1)),
    Clip(0.0, 1.0),
    Sigmoid(),
]


@pytest.mark.parametrize("op", AXIS_OPS, ids=lambda op: f"{type(op).__name__}")
def test_sinks_through(op):
    b = Build()
    inner = b.op(op, b.first(b.op(Clip(-9.0, 9.0), b.input(*SHAPE))))
    graph = graph_of(inner)
    after = tidy(graph)
    assert isinstance(after.outputs[0].op, (Transpose, Reshape)), "the transposition is last, or only moves axes of size 1"
    assert sum(isinstance(v.op, Transpose) for v in after.order) <= 1
    assert_same(graph, after)


def test_gather_by_a_scalar_and_argmax_without_axis():
    b = Build()
    x = b.first(b.op(Clip(-9.0, 9.0), b.input(*SHAPE)))
    graph = graph_of(b.op(Gather(1), x, constant(np.array(2), "i")), b.op(ArgMax(1, keepdims=False), x))
    assert "Transpose" not in census(tidy(graph))
    assert_same(graph, tidy(graph))


OTHERS = {
    "transposed": lambda b: b.first(b.op(Clip(-9.0, 9.0), b.input(*SHAPE, name="z"))),
    "number": lambda b: b.number(2.0),
    "number of rank four": lambda b: b.number(2.0, 1, 1, 1, 1),
    "per channel": lambda b: b.const(4, 1, 1),
    "image": lambda b: b.const(2, 4, 3, 5),
    "one number per channel": lambda b: b.op(Reduce(Reduction.mean, (2, 3)), b.first(b.op(Clip(-9.0, 9.0), b.input(*SHAPE, name="z")))),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("swap", [False, True])
def test_two_operands_meet(other, swap):
    b = Build()
    x = b.first(b.op(Clip(-9.0, 9.0), b.input(*SHAPE)))
    y = OTHERS[other](b)
    graph = graph_of(b.last(b.op(Sub(), y, x) if swap else b.op(Sub(), x, y)))
    after = tidy(graph)
    assert "Transpose" not in census(after)
    assert_same(graph, after)


def test_squeeze_and_excitation():
    b = Build()
    x = b.conv(b.input(1, 6, 6, 4), 4)
    nchw = b.first(x)
    squeezed = b.conv(b.last(b.op(Reduce(Reduction.mean, (2, 3)), nchw)), 4)
    y = b.op(Mul(), nchw, b.op(Sigmoid(), b.first(squeezed)))
    graph = graph_of(b.conv(b.last(y), 3))
    after = simplify(graph)
    assert census(after) == {"Conv": 3, "Reduce": 1, "Sigmoid": 1, "Mul": 1}
    assert_same(graph, after)


def test_channel_shuffle_keeps_one_transposition_of_the_last_axes(golden):
    b = Build()
    nchw = b.first(b.conv(b.input(1, 4, 4, 6), 12))
    split = b.op(Reshape((1, 3, 4, 4, 4)), nchw)
    shuffled = b.op(Reshape((1, 12, 4, 4)), b.op(Transpose((0, 2, 1, 3, 4)), split))
    graph = graph_of(b.conv(b.last(shuffled), 12, groups=3))
    after = simplify(graph)
    (t,) = [v for v in after.order if isinstance(v.op, Transpose)]
    assert t.op.perm == (0, 1, 2, 4, 3)
    assert_same(graph, after)
    golden("channel_shuffle.txt", text_of(graph, after))


@pytest.mark.parametrize("n, h, w", [(1, 3, 5), (2, 3, 5), (1, 1, 1), (3, 1, 4)])
def test_flatten_before_a_dense_layer_permutes_the_rows_instead(n, h, w):
    b = Build()
    flat = b.op(Reshape((n, h * w * 4)), b.first(b.conv(b.input(n, h, w, 3), 4)))
    graph = graph_of(b.op(Add(), b.op(MatMul(), b.op(Clip(0.0, 6.0), flat), b.const(h * w * 4, 7)), b.const(7)))
    after = simplify(graph)
    assert set(census(after)) <= {"Conv", "Clip", "Reshape"}
    assert census(after)["Conv"] == 2
    assert_same(graph, after)


def test_one_dimensional_convolutions():
    """[N, C, W] networks: the image has height 1."""
    b = Build()
    x = b.last(b.op(Reshape((1, 4, 1, 9)), b.input(1, 4, 9)))
    ncw = b.op(Reshape((1, 6, 9)), b.first(b.conv(x, 6)))
    y = b.op(Clip(0.0, 6.0), b.op(Add(), ncw, b.const(6, 1)))
    graph = graph_of(b.conv(b.last(b.op(Reshape((1, 6, 1, 9)), y)), 5))
    after = simplify(graph)
    assert census(after) == {"Conv": 2, "Clip": 1, "Transpose": 1, "Reshape": 1}
    assert_same(graph, after)


def test_preprocessing_is_done_in_the_layout_of_the_network():
    b = Build()
    x = b.input(1, 3, 6, 6)
    normal = b.op(Mul(), b.op(Add(), x, b.const(3, 1, 1)), b.const(3, 1, 1))
    graph = graph_of(b.conv(b.last(normal), 4, 3))
    after = simplify(graph)
    assert census(after) == {"Transpose": 1, "Conv": 1}
    assert_same(graph, after)


def test_an_input_that_is_channels_last_already_needs_no_transposition():
    b = Build()
    nchw = b.first(b.input(1, 6, 6, 3))
    normal = b.op(Mul(), b.op(Add(), nchw, b.const(3, 1, 1)), b.const(3, 1, 1))
    graph = graph_of(b.conv(b.last(b.op(Pad(((0, 0), (0, 0), (1, 1), (1, 1))), normal)), 4, 3))
    after = simplify(graph)
    assert "Transpose" not in census(after)
    assert_same(graph, after)


def test_a_split_of_the_input_turns_with_it():
    b = Build()
    x = b.input(1, 8, 5, 5)
    halves = [b.op(Slice((0, 4 * n, 0, 0), (1, 4 * n + 4, 5, 5), (1, 1, 1, 1)), x) for n in range(2)]
    joined = b.op(Concat(1), b.first(b.conv(b.last(halves[0]), 4)), halves[1])
    graph = graph_of(b.conv(b.last(joined), 3))
    after = simplify(graph)
    assert census(after) == {"Transpose": 1, "Slice": 2, "Conv": 2, "Concat": 1}
    assert isinstance(after.inputs[0].op, Input)
    assert_same(graph, after)


def test_instance_normalization_of_the_input():
    b = Build()
    x = b.input(1, 3, 5, 5)
    centred = b.op(Sub(), x, b.op(Reduce(Reduction.mean, (2, 3)), x))
    spread = b.op(Reduce(Reduction.mean, (2, 3)), b.op(Mul(), centred, centred))
    graph = graph_of(b.conv(b.last(b.op(Mul(), b.op(Mul(), centred, b.op(Exp(), spread)), b.const(3, 1, 1))), 4))
    after = simplify(graph)
    (t,) = [v for v in after.order if isinstance(v.op, Transpose)]
    assert t.inputs == after.inputs
    assert_same(graph, after)


def test_an_input_stays_as_it_is_where_turning_it_gains_nothing():
    b = Build()
    x = b.input(1, 8, 5, 5)
    y = b.op(Softmax(3), x)
    graph = graph_of(b.conv(b.last(b.op(Reshape((1, 20, 2, 5)), y)), 3), y)
    after = simplify(graph)
    assert census(after)["Transpose"] == 1
    assert_same(graph, after)


def test_an_output_in_the_layout_of_the_model_keeps_one():
    b = Build()
    x = b.conv(b.input(1, 6, 6, 3), 4)
    graph = graph_of(b.op(Sigmoid(), b.first(x)), b.first(b.conv(x, 2)))
    after = simplify(graph)
    assert census(after) == {"Conv": 2, "Sigmoid": 1, "Transpose": 2}
    assert all(isinstance(y.op, Transpose) for y in after.outputs)
    assert_same(graph, after)


def test_concat_sinks_only_if_all_operands_agree():
    b = Build()
    x = b.op(Clip(-9.0, 9.0), b.input(*SHAPE))
    agreeing = graph_of(b.op(Concat(1), b.first(x), b.first(x), b.const(2, 6, 3, 5)))
    after = tidy(agreeing)
    assert after.outputs[0].op == Transpose(TO_FIRST)
    assert census(after)["Transpose"] == 1
    assert_same(agreeing, after)
    other = graph_of(b.op(Concat(1), b.first(x), b.input(2, 6, 3, 5, name="z")))
    assert isinstance(tidy(other).outputs[0].op, Concat)


def text_of(before, after):
    from qcompiler.ir.text import to_text

    return f"before\n\n{to_text(before)}\nafter\n\n{to_text(after)}"


def test_simplifying_twice_is_simplifying_once():
    b = Build()
    nchw = b.first(b.conv(b.input(1, 6, 6, 3), 4))
    y = b.op(Mul(), nchw, b.op(Sigmoid(), nchw))
    once = simplify(graph_of(b.last(y)))
    assert simplify(once) is once
    feeds = feeds_for(once)
    assert np.isfinite(evaluate(once, feeds)[once.outputs[0]]).all()
