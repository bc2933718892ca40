"""Q/DQ graphs in the forms that tools for quantization-aware training write, with scales that are nobody's choice but theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx_graphs import Spelled

SIZE = (1, 4, 8, 8)
MIDDLE = np.uint8(119)
"""Nearly."""


class Trained(Spelled):
    """Pairs of QuantizeLinear and DequantizeLinear."""

    def pair(self, x: Any, scale: Any, zero: Any, clip: tuple[int, int] | None = None, domain: str = "", **attributes: Any) -> str:
        """Fake quantization of `x`; `clip`: bounds of fewer bits, between the two (as Brevitas writes them)."""
        scale = np.asarray(scale, np.float32)
        q = self.op("QuantizeLinear", x, scale, zero, domain=domain, **attributes)
        if clip is not None:
            q = self.op("Clip", q, *(np.asarray(c, np.asarray(zero).dtype) for c in clip))
        return self.op("DequantizeLinear", q, scale, zero, domain=domain, **attributes)

    def image(self, scale: float = 0.031, zero: Any = MIDDLE, shape: tuple[int, ...] = SIZE, **given: Any) -> str:
        return self.pair(self.input(*shape), scale, zero, **given)

    def stored(self, *shape: int, dtype: type = np.int8, zero: int = 0, low: int = -127, high: int = 127) -> np.ndarray:
        """Integers around `zero`."""
        return (self.rng.integers(low, high + 1, shape) + zero).astype(dtype)

    def scales(self, count: int) -> np.ndarray:
        return self.rng.uniform(0.001, 0.004, count).astype(np.float32)

    def faked(self, *shape: int, axis: int = 0) -> str:
        """Float weights behind a pair with one scale per output channel, from the greatest of them."""
        w = self.weights(*shape)
        greatest = np.abs(w).max(tuple(a for a in range(w.ndim) if a != axis))
        return self.pair(w, (greatest / 127).astype(np.float32), np.zeros(shape[axis], np.int8), axis=axis)

    def stored_weights(self, *shape: int) -> str:
        """Dequantized weights [O, ...], a scale per output channel."""
        return self.op("DequantizeLinear", self.stored(*shape), self.scales(shape[0]), np.zeros(shape[0], np.int8), axis=0)

    def end(self, y: str, scale: float = 0.043, zero: Any = MIDDLE, opset: int = 17, **given: Any) -> onnx.ModelProto:
        return self.model(self.pair(y, scale, zero, **given), opset=opset)


def torch_fake_quantized() -> onnx.ModelProto:
    """torch.ao QAT through torch.onnx: weights are float behind a pair per channel, biases float, Relu fused; a Gemm with transB."""
    t = Trained()
    w = t.faked(6, 4, 3, 3)
    x = t.op("Relu", t.op("Conv", t.image(), w, t.weights(6), pads=[1, 1, 1, 1]))
    x = t.op("Flatten", t.op("MaxPool", t.pair(x, 0.021, np.uint8(0)), kernel_shape=[4, 4], strides=[4, 4]))
    w = t.faked(5, 24)
    return t.end(t.op("Gemm", x, w, t.weights(5), transB=1), 0.037)


def torch_per_tensor() -> onnx.ModelProto:
    """One scale for all weights, int32 bias with the scale of the accumulator."""
    t = Trained()
    w = t.op("DequantizeLinear", t.stored(6, 4, 3, 3), np.float32(0.0031), np.int8(0))
    b = t.op("DequantizeLinear", t.stored(6, dtype=np.int32, low=-3000, high=3000), np.float32(np.float32(0.031) * np.float32(0.0031)), np.int32(0))
    return t.end(t.op("Conv", t.image(), w, b, strides=[2, 2]))


def tensorflow_channels_last() -> onnx.ModelProto:
    """tf2onnx: NHWC outside, HWIO weights with scales along their last axis behind a Transpose, the bias an Add of its own."""
    t = Trained()
    x = t.op("Transpose", t.image(shape=(1, 8, 8, 4)), perm=[0, 3, 1, 2])
    w = t.faked(3, 3, 4, 6, axis=3)
    y = t.op("Conv", x, t.op("Transpose", w, perm=[3, 2, 0, 1]), pads=[0, 0, 1, 1], strides=[2, 2])
    y = t.op("Add", y, t.weights(1, 6, 1, 1))
    y = t.op("Clip", y, 0.0, 6.0)
    return t.end(t.op("Transpose", y, perm=[0, 2, 3, 1]), 0.0235, np.uint8(0))


def tensorflow_asymmetric_weights() -> onnx.ModelProto:
    """FakeQuantWithMinMaxVars on weights: uint8, per tensor, a zero point that is near but not in the middle."""
    t = Trained()
    w = t.op("DequantizeLinear", t.stored(6, 4, 3, 3, dtype=np.uint8, zero=127, low=-120, high=120), np.float32(0.0031), np.uint8(127))
    return t.end(t.op("Conv", t.image(), w, t.weights(6)))


def brevitas_weights_of_four_bits() -> onnx.ModelProto:
    """QCDQ: QuantizeLinear, Clip to fewer bits, DequantizeLinear; of weights and of activations."""
    t = Trained()
    w = t.pair(t.weights(6, 4, 3, 3), np.full(6, 0.07, np.float32), np.zeros(6, np.int8), clip=(-7, 7), axis=0)
    x = t.image(0.13, np.int8(0), clip=(-15, 15))
    y = t.op("Relu", t.op("Conv", x, w, t.weights(6), pads=[1, 1, 1, 1]))
    return t.end(y, 0.11, np.uint8(0), clip=(0, 63))


def brevitas_stored_weights() -> onnx.ModelProto:
    """The same with integers already stored, and a Clip behind them."""
    t = Trained()
    integers = t.op("Clip", t.stored(5, 32), np.int8(-127), np.int8(127))
    w = t.op("DequantizeLinear", integers, np.float32(0.0043), np.int8(0))
    return t.end(t.op("Gemm", t.pair(t.input(3, 32), 0.05, np.int8(0)), w, t.weights(5), transB=1), 0.061, np.int8(0))


def tensorrt_residual() -> onnx.ModelProto:
    """pytorch-quantization: symmetric, no pair between the convolution and the addition; the ratio of scales is no integer."""
    t = Trained()
    x = t.image(0.0291, np.int8(0))
    w = t.faked(4, 4, 3, 3)
    y = t.op("Add", t.op("Conv", x, w, t.weights(4), pads=[1, 1, 1, 1]), t.pair(x, 0.0333, np.int8(0)))
    return t.end(t.op("Relu", y), 0.0411, np.int8(0))


def matmul_weights_along_columns() -> onnx.ModelProto:
    """A MatMul whose constant [K, N] has a scale per column, axis 1; its bias is an int32 pair of its own behind it."""
    t = Trained()
    scales = t.scales(7)
    w = t.op("DequantizeLinear", t.stored(16, 7), scales, np.zeros(7, np.int8), axis=1)
    b = t.op("DequantizeLinear", t.stored(7, dtype=np.int32, low=-3000, high=3000), scales * np.float32(0.02), np.zeros(7, np.int32), axis=0)
    return t.end(t.op("Add", t.op("MatMul", t.pair(t.input(5, 16), 0.02, np.uint8(99)), w), b), 0.033)


def unsigned_weights() -> onnx.ModelProto:
    """uint8 weights around 128, one scale per channel."""
    t = Trained()
    zeros = np.full(6, 128, np.uint8)
    w = t.op("DequantizeLinear", t.stored(6, 4, 3, 3, dtype=np.uint8, zero=128), t.scales(6), zeros, axis=0)
    return t.end(t.op("Conv", t.image(), w))


def bias_of_another_scale() -> onnx.ModelProto:
    """An int32 bias whose scale is not that of the accumulator: it is rounded to it."""
    t = Trained()
    w = t.stored_weights(6, 4, 3, 3)
    b = t.op("DequantizeLinear", t.stored(6, dtype=np.int32, low=-9000, high=9000), np.float32(3e-5), np.int32(0))
    return t.end(t.op("Conv", t.image(), w, b))


def transposed_convolution() -> onnx.ModelProto:
    """Output channels of ConvTranspose are axis 1 of its weights."""
    t = Trained()
    w = t.op("DequantizeLinear", t.stored(4, 6, 2, 2), t.scales(6), np.zeros(6, np.int8), axis=1)
    return t.end(t.op("ConvTranspose", t.image(), w, t.weights(6), strides=[2, 2]))


def concatenated() -> onnx.ModelProto:
    """Operands of Concat in three scales, none of them its own."""
    t = Trained()
    x = t.image()
    parts = [t.pair(t.op("Relu", x), 0.017, np.uint8(0)), t.pair(t.op("Sigmoid", x), 1 / 256, np.uint8(0)), x]
    return t.end(t.op("Concat", *parts, axis=1), 0.0297, np.uint8(103))


def added() -> onnx.ModelProto:
    t = Trained()
    x = t.image()
    return t.end(t.op("Add", x, t.pair(t.op("Tanh", x), 0.0079, np.uint8(128))), 0.0391)


def multiplied() -> onnx.ModelProto:
    t = Trained()
    x = t.image()
    return t.end(t.op("Mul", x, t.pair(t.op("Sigmoid", x), 0.0039, np.uint8(0))), 0.029)


def pooled() -> onnx.ModelProto:
    """Pairs around a MaxPool and an average over everything, each in a scale of its own."""
    t = Trained()
    x = t.pair(t.op("MaxPool", t.image(), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.0373, np.uint8(109))
    return t.end(t.op("GlobalAveragePool", x), 0.0151)


def resized() -> onnx.ModelProto:
    """Pairs around nearest and linear interpolation, between convolutions."""
    t = Trained()
    scales = np.array([1, 1, 2, 2], np.float32)
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    x = t.pair(t.op("Conv", t.image(), t.stored_weights(6, 4, 3, 3)), 0.0411, np.uint8(120))
    x = t.pair(t.op("Resize", x, "", scales, **nearest), 0.0433, np.uint8(111))
    x = t.pair(t.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel"), 0.0451, np.uint8(118))
    return t.end(t.op("Conv", x, t.stored_weights(5, 6, 1, 1)), 0.0383)


def contrib_pairs() -> onnx.ModelProto:
    """The pairs of onnxruntime's own domain, for a 16-bit answer in an opset that has none."""
    t = Trained()
    w = t.op("DequantizeLinear", t.stored(6, 4, 3, 3), t.scales(6), np.zeros(6, np.int8), axis=0, domain="com.microsoft")
    x = t.image(domain="com.microsoft")
    return t.end(t.op("Conv", x, w), 2.0**-9, np.int16(0), domain="com.microsoft")


FORMS = {
    f.__name__.replace("_", "-"): f
    for f in (
        torch_fake_quantized,
        torch_per_tensor,
        tensorflow_channels_last,
        tensorflow_asymmetric_weights,
        brevitas_weights_of_four_bits,
        brevitas_stored_weights,
        tensorrt_residual,
        matmul_weights_along_columns,
        unsigned_weights,
        bias_of_another_scale,
        transposed_convolution,
        concatenated,
        added,
        multiplied,
        pooled,
        resized,
        contrib_pairs,
    )
}
