import itertools

import pytest
from float_graphs import Build, assert_same, census, graph_of

from qcompiler.ir.graph import Declined
from qcompiler.ir.ops import ConvTranspose
from qcompiler.passes.simplify import simplify
from qcompiler.passes.subpixel import subpixel

KERNELS = [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((4, 4), (2, 2)), ((3, 5), (1, 3)), ((1, 1), (2, 2)), ((2, 3), (3, 4)), ((3, 3), (1, 1))]


@pytest.mark.parametrize("kernel, strides", KERNELS)
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 0), (0, 1))])
@pytest.mark.parametrize("groups, dilation", [(1, 1), (1, 2), (2, 1), (4, 1)])
def test_is_exact(kernel, strides, pads, groups, dilation):
    for extra in itertools.product(range(strides[0]), range(strides[1])):
        b = Build()
        op = ConvTranspose(strides, pads, (dilation, dilation), groups, extra)
        x = b.input(2, 4, 3, 4)
        w = b.const(4, *kernel, 8 // groups)
        try:
            y = b.op(op, x, w, b.const(8))
        except ValueError:
            continue
        if min(y.shape) < 1:
            continue
        graph = graph_of(y)
        after = subpixel(graph)
        assert "ConvTranspose" not in census(after)
        assert_same(graph, after)


def test_padding_beyond_the_kernel():
    b = Build()
    graph = graph_of(b.op(ConvTranspose((2, 2), ((3, 2), (2, 3))), b.input(1, 5, 5, 2), b.const(2, 2, 2, 3)))
    assert_same(graph, subpixel(graph))


def test_batch_normalization_behind_folds_and_nothing_is_wasted():
    b = Build()
    y = b.op(ConvTranspose((2, 2), ((1, 1), (1, 1))), b.input(1, 5, 5, 4), b.const(4, 4, 4, 3), b.const(3))
    graph = graph_of(b.normalized(y))
    after = simplify(graph)
    assert census(after) == {"Conv": 1, "Reshape": 2, "Transpose": 1}
    assert_same(graph, after)


def test_the_usual_upsampling_by_two_is_a_pointwise_convolution():
    b = Build()
    after = simplify(graph_of(b.op(ConvTranspose((2, 2)), b.input(1, 5, 5, 4), b.const(4, 2, 2, 3))))
    (conv,) = [v for v in after.order if type(v.op).__name__ == "Conv"]
    assert conv.inputs[1].shape == (12, 1, 1, 4)


def test_weights_computed_at_run_time_are_declined():
    b = Build()
    declined = Declined()
    graph = graph_of(b.op(ConvTranspose(), b.input(1, 5, 5, 4), b.input(4, 2, 2, 3, name="w")))
    assert subpixel(graph, declined) is graph
    assert list(declined.reasons) == [("convtranspose1", "weights are no constant")]
