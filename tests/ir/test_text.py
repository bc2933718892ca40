import numpy as np
from float_graphs import Build, graph_of

from qcompiler.ir.graph import Graph, apply
from qcompiler.ir.integer import IntSum, Requantize
from qcompiler.ir.ops import Input, Pad, PadMode, Resize, constant
from qcompiler.ir.pointwise import Clip
from qcompiler.ir.text import summary, to_text
from qcompiler.ir.types import DType, Quantization, TensorType, quantized


def test_one_line_per_value_with_what_differs_from_the_defaults():
    b = Build()
    x = b.conv(b.input(1, 8, 8, 4), 8, 3, strides=(2, 2), groups=2)
    text = to_text(graph_of(b.op(Pad(((0, 0), (1, 1), (0, 0), (0, 0)), PadMode.edge), b.op(Clip(0.0), x))))
    assert text.splitlines()[3:] == [
        '%3 = Conv(%0, %1, %2) strides=(2, 2) groups=2 : f32[1x3x3x8]  "conv3"',
        '%4 = Clip(%3) lo=0 : f32[1x3x3x8]  "clip4"',
        '%5 = Pad(%4) pads=((0, 0), (1, 1), (0, 0), (0, 0)) mode=edge : f32[1x5x3x8]  "pad5"',
        "return y0 = %5",
    ]


def test_quantized_types_show_their_numbers():
    q = quantized((2,), Quantization.per_tensor(0.5, 3))
    x = apply(Input(q), name="x")
    acc = apply(IntSum((2, -1)), x, x, name="acc")
    y = apply(Requantize(q, lo=3), acc, constant(np.array([1]), "s"), constant(np.array([20000]), "m"), name="y")
    assert to_text(Graph((x,), (y,), ("y",))).splitlines() == [
        '%0 = Input : i8[2] q8(0.5, 3)  "x"',
        '%1 = IntSum(%0, %0) multipliers=(2, -1) : i32[2]  "acc"',
        '%2 = Const [1] : i64[1]  "s"',
        '%3 = Const [20000] : i64[1]  "m"',
        '%4 = Requantize(%1, %2, %3) type=i8[2] q8(0.5, 3) lo=3 : i8[2] q8(0.5, 3)  "y"',
        "return y = %4",
    ]
    assert "q8(axis 0)" in str(TensorType((2, 3), DType.i8, Quantization((1.0, 2.0), (0, 0), 0)))


def test_constants_and_long_attributes_are_summarised():
    assert summary(np.array([[1.0, 2.5]], np.float32)) == "[1, 2.5]"
    assert summary(np.arange(-5, 95)) == "[-5 .. 94]"
    assert summary(np.zeros((0, 3), np.float32)) == "[]"
    b = Build()
    n = tuple(range(40))
    text = to_text(graph_of(b.op(Resize((None, (n, n, (0.0,) * 40), None, None)), b.input(1, 40, 2, 2))))
    assert "(0, 1, 2, 3, .. 40 in all)" in text
    assert max(map(len, text.splitlines())) < 200


def test_the_text_is_deterministic():
    def build():
        b = Build()
        x = b.input(1, 4, 4, 3)
        return to_text(graph_of(b.normalized(b.conv(x, 3)), b.op(Clip(0.0, 6.0), x)))

    assert build() == build()
