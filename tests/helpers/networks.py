"""Small networks of many classes, as their exporters write them, with random weights of realistic spread: nobody tuned for them.

`NETWORKS[name]()` is a float `ModelProto`; `inputs(model, count)` are smooth random images for it. Those with attention are in
`transformer_networks`.
"""

from __future__ import annotations

import numpy as np
import onnx
from net import Net, network
from onnx import TensorProto, helper, numpy_helper

# --- classifiers ---


@network
def preactivation_resnet() -> onnx.ModelProto:
    """Eight pre-activation blocks (He et al. 2016)."""
    n = Net(1, 3, 32, 32)
    x = n.conv(n.x, 16)
    for width, stride in ((16, 1), (16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1)):
        y = n.op("Relu", n.bn(x))
        skip = x if stride == 1 and n.c[x] == width else n.conv(y, width, 1, stride, bias=False)
        y = n.conv(n.op("Relu", n.bn(n.conv(y, width, 3, stride, bias=False))), width, bias=False, gain=0.5)
        x = n.op("Add", y, skip)
    return n.model(n.classify(n.op("Relu", n.bn(x))))


@network
def densenet() -> onnx.ModelProto:
    """Dense blocks: batch normalization and Relu behind Concat, before the convolutions."""
    n = Net(1, 3, 32, 32)
    x = n.pool(n.conv_bn(n.x, 24), pad=0)
    for block in range(2):
        for _ in range(4):
            y = n.conv(n.op("Relu", n.bn(x)), 32, 1, bias=False)
            y = n.conv(n.op("Relu", n.bn(y)), 12, bias=False)
            x = n.op("Concat", x, y, axis=1, channels=n.c[x] + 12)
        if block == 0:
            x = n.pool(n.conv(n.op("Relu", n.bn(x)), n.c[x] // 2, 1, bias=False), "AveragePool")
    return n.model(n.classify(n.op("Relu", n.bn(x))))


@network
def repvgg() -> onnx.ModelProto:
    """A plain 3x3 stack whose merged branches leave heavy-tailed, widely spread weights and biases."""
    n = Net(1, 3, 32, 32)
    x = n.x
    for width, stride in ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1)):
        c = n.c[x]
        w = n.weights((width, c, 3, 3), 1.0, spread=1.0) + n.rng.standard_t(3, (width, c, 3, 3)).astype(np.float32) * 0.02
        same = range(min(c, width))
        w[same, same, 1, 1] += n.rng.lognormal(0, 0.7, len(same)).astype(np.float32)
        bias = n.const(n.rng.normal(0, 0.5, width))
        x = n.op("Relu", n.op("Conv", x, n.const(w), bias, channels=width, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2))
    return n.model(n.classify(x))


def _mobilenetv3(opset: int, decomposed: bool) -> onnx.ModelProto:
    n = Net(1, 3, 48, 48, opset=opset)
    swish = n.hard_swish if decomposed else lambda v: n.op("HardSwish", v)
    gate = n.hard_sigmoid if decomposed else lambda v: n.op("HardSigmoid", v, alpha=1 / 6, beta=0.5)

    def relu(v: str) -> str:
        return n.op("Relu", v)

    x = swish(n.conv_bn(n.x, 16, act=None, stride=2))
    rows = (
        (3, 16, 16, True, relu, 2),
        (3, 72, 24, False, relu, 2),
        (3, 88, 24, False, relu, 1),
        (5, 96, 40, True, swish, 2),
        (5, 120, 40, True, swish, 1),
    )
    for k, hidden, out, se, act, stride in rows:
        y = act(n.conv_bn(x, hidden, 1, None))
        y = act(n.conv_bn(y, hidden, k, None, groups=hidden, stride=stride))
        y = n.squeeze_excite(y, gate) if se else y
        y = n.conv_bn(y, out, 1, None)
        x = n.op("Add", x, y) if stride == 1 and n.c[x] == out else y
    x = n.op("Flatten", n.op("GlobalAveragePool", swish(n.conv_bn(x, 96, 1, None))))
    return n.model(n.dense(swish(n.dense(x, 64)), 10))


@network
def mobilenetv3() -> onnx.ModelProto:
    """HardSwish and HardSigmoid as operators."""
    return _mobilenetv3(14, False)


@network
def mobilenetv3_decomposed() -> onnx.ModelProto:
    """The same as Add 3, Clip, Mul, Div 6, opset 11."""
    return _mobilenetv3(11, True)


@network
def efficientnet_lite() -> onnx.ModelProto:
    """Inverted residuals with Relu6 and no gates."""
    n = Net(1, 3, 48, 48)
    x = n.relu6(n.conv_bn(n.x, 16, act=None, stride=2))
    for k, expand, out, stride in ((3, 1, 16, 1), (3, 6, 24, 2), (3, 6, 24, 1), (5, 6, 40, 2), (5, 6, 40, 1)):
        y = n.relu6(n.conv_bn(x, n.c[x] * expand, 1, None))
        y = n.relu6(n.conv_bn(y, n.c[y], k, None, groups=n.c[y], stride=stride))
        y = n.conv_bn(y, out, 1, None)
        x = n.op("Add", x, y) if stride == 1 and n.c[x] == out else y
    return n.model(n.classify(n.relu6(n.conv_bn(x, 96, 1, None))))


@network
def efficientnet() -> onnx.ModelProto:
    """SiLU as x Sigmoid(x), squeeze and excitation with Sigmoid; newest opset that onnxruntime knows."""
    n = Net(1, 3, 48, 48, opset=21)
    x = n.silu(n.conv_bn(n.x, 16, act=None, stride=2))
    for k, expand, out, stride in ((3, 1, 16, 1), (3, 6, 24, 2), (3, 6, 24, 1), (5, 6, 40, 2), (5, 6, 40, 1)):
        y = n.silu(n.conv_bn(x, n.c[x] * expand, 1, None))
        y = n.silu(n.conv_bn(y, n.c[y], k, None, groups=n.c[y], stride=stride))
        y = n.conv_bn(n.squeeze_excite(y, lambda v: n.op("Sigmoid", v), "SiLU"), out, 1, None)
        x = n.op("Add", x, y) if stride == 1 and n.c[x] == out else y
    return n.model(n.classify(n.silu(n.conv_bn(x, 96, 1, None))))


@network
def shufflenetv2() -> onnx.ModelProto:
    """Channel split, concatenation and shuffle."""
    n = Net(1, 3, 48, 48)
    x = n.pool(n.conv_bn(n.x, 24, stride=2), k=3, pad=1)

    def shuffled(a: str, b: str, size: int) -> str:
        c = n.c[a] + n.c[b]
        x = n.op("Concat", a, b, axis=1, channels=c)
        x = n.op("Transpose", n.reshape(x, 1, 2, c // 2, size, size), perm=[0, 2, 1, 3, 4])
        return n.reshape(x, 1, c, size, size, channels=c)

    def branch(x: str, out: int, stride: int) -> str:
        y = n.conv_bn(n.conv_bn(x, out, 1), out, 3, None, groups=out, stride=stride)
        return n.conv_bn(y, out, 1)

    for out, size in ((24, 6), (48, 3)):
        left = n.conv_bn(n.conv_bn(x, n.c[x], 3, None, groups=n.c[x], stride=2), out, 1)
        x = shuffled(left, branch(x, out, 2), size)
        for _ in range(2):
            a, b = n.split(x, [out, out])
            x = shuffled(a, branch(b, out, 1), size)
    return n.model(n.op("Softmax", n.classify(n.conv_bn(x, 96, 1)), axis=1))


@network
def assorted() -> onnx.ModelProto:
    """PRelu, LeakyRelu, Elu, AveragePool that counts its padding, Pad reflect, dilation, LRN."""
    n = Net(1, 3, 40, 40, opset=11)
    pads = n.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    w = n.const(n.weights((16, 3, 3, 3)))
    x = n.op("Conv", n.op("Pad", n.x, pads, mode="reflect"), w, channels=16, strides=[2, 2])
    x = n.op("PRelu", x, n.const(n.rng.uniform(0, 0.4, (16, 1, 1))))
    x = n.op("LRN", x, size=5, alpha=1e-2, beta=0.75, bias=1.0)
    x = n.pool(n.op("LeakyRelu", n.conv(x, 24, dilation=2), alpha=0.1), "AveragePool", 3, 2, 1, count_include_pad=1)
    x = n.pool(n.op("Elu", n.conv(x, 32)), "AveragePool", 3, 2, 1)
    return n.model(n.classify(n.op("Tanh", n.conv(x, 32))))


@network
def instance_norm() -> onnx.ModelProto:
    """Style transfer: InstanceNormalization behind every convolution."""
    n = Net(1, 3, 32, 32)

    def norm(x: str) -> str:
        c = n.c[x]
        return n.op("InstanceNormalization", x, n.const(n.rng.lognormal(0, 0.3, c)), n.const(n.rng.normal(0, 0.3, c)))

    x = n.op("Relu", norm(n.conv(n.x, 16)))
    x = n.op("Relu", norm(n.conv(x, 32, stride=2)))
    x = n.op("Add", x, norm(n.conv(n.op("Relu", norm(n.conv(x, 32))), 32)))
    x = n.op("Relu", norm(n.conv(n.resize(x, 2), 16)))
    return n.model(n.op("Tanh", n.conv(x, 3, gain=0.5)))


@network
def group_norm() -> onnx.ModelProto:
    """GroupNorm as torch writes it: Reshape, InstanceNormalization, Reshape, Mul, Add."""
    n = Net(1, 3, 32, 32)

    def norm(x: str, size: int, groups: int = 4) -> str:
        c = n.c[x]
        y = n.op("InstanceNormalization", n.reshape(x, 1, groups, -1), n.const(np.ones(groups)), n.const(np.zeros(groups)))
        y = n.reshape(y, 1, c, size, size, channels=c)
        return n.op("Add", n.op("Mul", y, n.const(n.rng.lognormal(0, 0.3, (c, 1, 1)))), n.const(n.rng.normal(0, 0.3, (c, 1, 1))))

    x = n.op("Relu", norm(n.conv(n.x, 16, stride=2), 16))
    y = n.op("Relu", norm(n.conv(x, 16), 16))
    x = n.op("Relu", n.op("Add", norm(n.conv(y, 16), 16), x))
    return n.model(n.classify(n.op("Relu", norm(n.conv(x, 32, stride=2), 8))))


# --- dense prediction ---


@network
def unet() -> onnx.ModelProto:
    """Transposed convolution on one level, linear Resize on the other, skips by Concat, Sigmoid map."""
    n = Net(1, 3, 32, 32)
    a = n.conv_bn(n.conv_bn(n.x, 16), 16)
    b = n.conv_bn(n.pool(a), 32)
    x = n.conv_bn(n.pool(b), 48)
    x = n.conv_bn(n.op("Concat", b, n.transposed(x, 32), axis=1, channels=64), 32)
    x = n.conv_bn(n.op("Concat", n.resize(x, 2, "linear", "half_pixel"), a, axis=1, channels=48), 16)
    return n.model(n.op("Sigmoid", n.conv(x, 1, 1)))


@network
def ocr_detection() -> onnx.ModelProto:
    """A feature pyramid of sums and a differentiable-binarization head: two transposed convolutions, Sigmoid."""
    n = Net(1, 3, 64, 64, opset=11)
    c2 = n.hard_swish(n.conv_bn(n.hard_swish(n.conv_bn(n.x, 16, act=None, stride=2)), 24, act=None, stride=2))
    c3 = n.hard_swish(n.conv_bn(c2, 32, act=None, stride=2))
    c4 = n.hard_swish(n.conv_bn(c3, 48, act=None, stride=2))
    p4, p3, p2 = n.conv(c4, 32, 1), n.conv(c3, 32, 1), n.conv(c2, 32, 1)
    p3 = n.op("Add", p3, n.resize(p4, 2))
    p2 = n.op("Add", p2, n.resize(p3, 2))
    levels = [n.resize(n.conv(p4, 8), 4), n.resize(n.conv(p3, 8), 2), n.conv(p2, 8)]
    x = n.conv_bn(n.op("Concat", *levels, axis=1, channels=24), 16)
    x = n.op("Relu", n.bn(n.transposed(x, 16)))
    return n.model(n.op("Sigmoid", n.transposed(x, 1)))


def _recognition(log: bool) -> onnx.ModelProto:
    n = Net(1, 1, 32, 64)
    x = n.hard_swish(n.conv_bn(n.x, 16, act=None, stride=2))
    x = n.hard_swish(n.conv_bn(x, 16, 3, None, groups=16))
    for width in (32, 48):
        x = n.op("MaxPool", n.hard_swish(n.conv_bn(x, width, 1, None)), kernel_shape=[2, 1], strides=[2, 1])
        x = n.hard_swish(n.conv_bn(x, width, 3, None, groups=width))
    x = n.op("AveragePool", x, kernel_shape=[4, 1], strides=[4, 1])
    x = n.op("Transpose", n.op("Squeeze", x, n.const([2], np.int64)), perm=[0, 2, 1])
    x = n.op("Add", n.op("MatMul", x, n.const(n.rng.normal(0, 0.2, (48, 64)))), n.const(n.rng.normal(0, 0.1, 64)))
    x = n.op("Reshape", n.op("Relu", x), n.const([-1, 64], np.int64))
    x = n.op("Gemm", x, n.const(n.rng.normal(0, 0.15, (64, 40))), n.const(n.rng.normal(0, 0.1, 40)))
    x = n.op("Reshape", x, n.const([1, 32, 40], np.int64))
    return n.model(n.op("LogSoftmax" if log else "Softmax", x, axis=2))


@network
def ocr_recognition() -> onnx.ModelProto:
    """Height pooled away, dense layers per time step, Softmax."""
    return _recognition(False)


@network
def ocr_recognition_log() -> onnx.ModelProto:
    """The same with LogSoftmax."""
    return _recognition(True)


@network
def audio() -> onnx.ModelProto:
    """One-dimensional convolutions with batch normalization, dilation and depthwise parts."""
    n = Net(1, 2, 512)
    x = n.op("Relu", n.bn(n.conv(n.x, 16, 9, 4, bias=False, d=1)))
    for dilation in (1, 2, 4):
        y = n.op("Relu", n.bn(n.conv(x, 16, 3, groups=16, dilation=dilation, bias=False, d=1)))
        x = n.op("Add", x, n.bn(n.conv(y, 16, 1, bias=False, d=1)))
    x = n.op("MaxPool", x, kernel_shape=[2], strides=[2])
    x = n.op("ReduceMean", n.op("Relu", n.conv(x, 32, 3, d=1)), axes=[2], keepdims=0)
    return n.model(n.dense(x, 8))


@network
def yolo() -> onnx.ModelProto:
    """Spatial pyramid pooling, upsampled neck, heads decoded with constant grids and anchors, all boxes concatenated."""
    n = Net(1, 3, 64, 64)
    x = n.silu(n.conv_bn(n.silu(n.conv_bn(n.x, 16, act=None, stride=2)), 24, act=None, stride=2))
    c3 = n.silu(n.conv_bn(x, 32, act=None, stride=2))
    x = n.silu(n.conv_bn(n.silu(n.conv_bn(c3, 48, act=None, stride=2)), 24, 1, None))
    pools = [x]
    for _ in range(3):
        pools.append(n.pool(pools[-1], k=5, stride=1, pad=2))
    c4 = n.silu(n.conv_bn(n.op("Concat", *pools, axis=1, channels=96), 32, 1, None))
    c3 = n.silu(n.conv_bn(n.op("Concat", n.resize(c4, 2), c3, axis=1, channels=64), 32, act=None))
    boxes = []
    for feature, size, step in ((c3, 8, 8.0), (c4, 4, 16.0)):
        x = n.reshape(n.conv(feature, 3 * 9, 1), 1, 3, 9, size, size)
        x = n.op("Sigmoid", n.op("Transpose", x, perm=[0, 1, 3, 4, 2]))
        xy, wh, rest = n.split(x, [2, 2, 5], axis=4)
        grid = np.stack(np.meshgrid(range(size), range(size)), -1).reshape(1, 1, size, size, 2) - 0.5
        xy = n.op("Mul", n.op("Add", n.op("Mul", xy, n.const(2.0)), n.const(grid)), n.const(step))
        wh = n.op("Mul", n.op("Pow", n.op("Mul", wh, n.const(2.0)), n.const(2.0)), n.const(n.rng.uniform(5, 30, (1, 3, 1, 1, 2))))
        boxes.append(n.reshape(n.op("Concat", xy, wh, rest, axis=4), 1, -1, 9))
    return n.model(n.op("Concat", *boxes, axis=1))


def _deeplab(n: Net) -> str:
    x = n.conv_bn(n.conv_bn(n.x, 16, stride=2), 32, stride=2)
    pooled = n.op("Relu", n.conv(n.op("GlobalAveragePool", x), 16, 1))
    sizes = n.const([1, 16, 8, 8], np.int64)
    pooled = n.op("Resize", pooled, "", "", sizes, mode="linear", coordinate_transformation_mode="align_corners")
    branches = [n.conv_bn(x, 16, 1), n.conv_bn(x, 16, dilation=2), n.conv_bn(x, 16, dilation=3), pooled]
    x = n.conv_bn(n.op("Concat", *branches, axis=1, channels=64), 24, 1)
    return n.resize(n.conv(x, 5, 1), 4, "linear", "half_pixel")


@network
def deeplab() -> onnx.ModelProto:
    """Atrous spatial pyramid with a globally pooled branch."""
    n = Net(1, 3, 32, 32)
    return n.model(_deeplab(n))


@network
def deeplab_classes() -> onnx.ModelProto:
    """The same ending in ArgMax with the axis kept, beside the same without it."""
    n = Net(1, 3, 32, 32)
    x = _deeplab(n)
    outputs = n.op("ArgMax", x, axis=1, keepdims=1), n.op("ArgMax", x, axis=1, keepdims=0)
    return n.model(*outputs, types=[TensorProto.INT64] * 2)


@network
def two_towers() -> onnx.ModelProto:
    """Two inputs of different ranges, three outputs, shared features."""
    n = Net(1, 3, 32, 32)
    second = n.input(1, 1, 32, 32)
    a = n.conv_bn(n.x, 16, stride=2)
    b = n.conv_bn(n.op("Mul", second, n.const(20.0)), 16, stride=2)
    x = n.conv_bn(n.op("Concat", a, b, axis=1, channels=32), 32)
    flat = n.op("Flatten", n.op("GlobalAveragePool", x))
    normalized = n.op("Div", n.op("ReduceMean", a, axes=[1], keepdims=1), n.const(2.0))
    return n.model(n.dense(flat, 10), n.op("Sigmoid", n.conv(x, 2, 1)), normalized)


@network
def batched() -> onnx.ModelProto:
    """A static batch of three."""
    n = Net(3, 3, 24, 24)
    x = n.conv_bn(n.conv_bn(n.x, 16, stride=2), 32, stride=2)
    x = n.op("Add", x, n.conv_bn(n.conv_bn(x, 32, groups=32), 32, 1, None))
    return n.model(n.op("Softmax", n.classify(n.squeeze_excite(x, lambda v: n.op("Sigmoid", v))), axis=-1))


@network
def half_weights() -> onnx.ModelProto:
    """Weights stored in half precision behind Cast."""
    model = efficientnet_lite()
    for t in list(model.graph.initializer):
        data = numpy_helper.to_array(t)
        if data.ndim == 4:
            name = t.name
            t.CopyFrom(numpy_helper.from_array(data.astype(np.float16), f"{name}.half"))
            model.graph.node.insert(0, helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    return model
