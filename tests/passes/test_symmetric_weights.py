"""Zero points of weights, and -128, are taken into the integers."""

from __future__ import annotations

import numpy as np
from float_graphs import graph_of

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.ops import Conv, Dequantize, Input, constant
from qcompiler.ir.types import DType, Quantization, TensorType, float_type
from qcompiler.passes.symmetric_weights import symmetric_weights


def convolution(data: np.ndarray, quant: Quantization) -> Graph:
    x = Value(Input(float_type(1, 4, 4, data.shape[3])), (), float_type(1, 4, 4, data.shape[3]), "x")
    w = apply(Dequantize(), constant(data, "w", TensorType(data.shape, DType.i8, quant)), name="dw")
    return graph_of(apply(Conv(), x, w, name="y"))


def weights(graph: Graph) -> tuple[np.ndarray, Quantization]:
    w = graph.outputs[0].inputs[1].inputs[0]
    assert w.type.quant is not None
    return w.op.data, w.type.quant  # type: ignore[attr-defined]


def test_zero_point_that_fits_is_exact() -> None:
    data = np.array([-20, 3, 100], np.int8).reshape(1, 1, 1, 3)
    declined = Declined()
    made, quant = weights(symmetric_weights(convolution(data, Quantization.per_tensor(0.5, 10)), declined))
    np.testing.assert_array_equal(made.reshape(-1), [-30, -7, 90])
    assert quant.scale == (0.5,)
    assert not declined.reasons


def test_zero_point_that_does_not_fit_coarsens_its_channel_alone() -> None:
    data = np.array([[-128, 50], [-5, 7]], np.int8).reshape(2, 1, 1, 2)
    declined = Declined()
    made, quant = weights(symmetric_weights(convolution(data, Quantization.per_tensor(1.0, 100)), declined))
    np.testing.assert_array_equal(made.reshape(2, 2), [[-127, -28], [-105, -93]])
    np.testing.assert_allclose(quant.scale, [228 / 127, 1.0], rtol=1e-6)
    assert "not kept to the bit" in next(iter(declined.reasons))[1]


def test_least_int8_moves_by_one_and_says_so() -> None:
    data = np.array([-128, 127], np.int8).reshape(1, 1, 1, 2)
    declined = Declined()
    made, quant = weights(symmetric_weights(convolution(data, Quantization.per_tensor(0.25)), declined))
    np.testing.assert_array_equal(made.reshape(-1), [-127, 127])
    assert quant.scale == (0.25,)
    assert "1 of 2 weights" in next(iter(declined.reasons))[1]


def test_symmetric_weights_are_left_alone() -> None:
    graph = convolution(np.array([-127, 127], np.int8).reshape(1, 1, 1, 2), Quantization.per_tensor(0.25))
    assert symmetric_weights(graph) is graph
