"""Writes networks as exporters write them, with random weights of realistic spread, and inputs for them.

Convolutions are He-initialized with uneven output channels, batch normalizations nearly normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]


class Net:
    """Writes an ONNX graph node by node; values are names, and the number of channels of those on axis 1 is known."""

    def __init__(self, *shape: int, opset: int = 13, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.c: dict[str, int] = {}
        self.x = self.input(*shape) if shape else ""

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self.c[name] = shape[1]
        return name

    def ids(self, length: int, rows: int) -> str:
        """Tokens, [1, length]."""
        return self._integers("ids", (1, length), TensorProto.INT64, str(rows))

    def mask(self, length: int, kind: int = TensorProto.INT64, sense: str = "seen") -> str:
        """Ones (with sense "hidden", zeros) for the first positions, [1, length]."""
        return self._integers("mask", (1, length), kind, sense)

    def _integers(self, what: str, shape: tuple[int, ...], kind: int, meaning: str) -> str:
        name = f"{what}{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape, doc_string=meaning))
        return name

    def const(self, data: object, dtype: type = np.float32) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(data, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, channels: int | None = None, **attributes: object) -> str:
        names = [f"{kind.lower()}{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        known = next((self.c[i] for i in inputs if i in self.c), 0)
        self.c |= dict.fromkeys(names, known if channels is None else channels)
        return names[0]

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset >= 13:
            first = self.op("Split", x, self.const(sizes, np.int64), outputs=len(sizes), axis=axis)
        else:
            first = self.op("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        names = [first[:-1] + str(i) for i in range(len(sizes))]
        if axis == 1:
            self.c |= dict(zip(names, sizes))
        return names

    def weights(self, shape: tuple[int, ...], gain: float = 2.0, spread: float = 0.3) -> Floats:
        rows = self.rng.lognormal(0, spread, (shape[0],) + (1,) * (len(shape) - 1))
        return (self.rng.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape) * rows).astype(np.float32)

    def conv(
        self, x: str, out: int, k: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1, bias: bool = True, gain: float = 2.0, d: int = 2
    ) -> str:
        w = self.weights((out, self.c[x] // groups) + (k,) * d, gain)
        operands = [x, self.const(w)] + ([self.const(self.rng.normal(0, 0.2, out))] if bias else [])
        pad = dilation * (k - 1) // 2
        return self.op(
            "Conv", *operands, channels=out, kernel_shape=[k] * d, strides=[stride] * d, pads=[pad] * 2 * d, dilations=[dilation] * d, group=groups
        )

    def bn(self, x: str, gamma: float = 1.0) -> str:
        c = self.c[x]
        scale, var = gamma * self.rng.lognormal(0, 0.3, c), self.rng.lognormal(0, 0.3, c)
        return self.op("BatchNormalization", x, *map(self.const, (scale, self.rng.normal(0, 0.3, c), self.rng.normal(0, 0.3, c), var)), epsilon=1e-5)

    def conv_bn(self, x: str, out: int, k: int = 3, act: str | None = "Relu", **options: int) -> str:
        y = self.bn(self.conv(x, out, k, bias=False, **options))
        return y if act is None else self.op(act, y)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.const(0.0), self.const(6.0))

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def hard_swish(self, x: str) -> str:
        """As torch writes hardswish before opset 14: x relu6(x + 3) / 6."""
        return self.op("Div", self.op("Mul", x, self.relu6(self.op("Add", x, self.const(3.0)))), self.const(6.0))

    def hard_sigmoid(self, x: str) -> str:
        return self.op("Div", self.relu6(self.op("Add", x, self.const(3.0))), self.const(6.0))

    def pool(self, x: str, kind: str = "MaxPool", k: int = 2, stride: int = 2, pad: int = 0, **attributes: int) -> str:
        return self.op(kind, x, kernel_shape=[k, k], strides=[stride, stride], pads=[pad] * 4, **attributes)

    def reshape(self, x: str, *shape: int, channels: int | None = None) -> str:
        return self.op("Reshape", x, self.const(shape, np.int64), channels=channels)

    def resize(self, x: str, factor: float, mode: str = "nearest", coordinates: str = "asymmetric") -> str:
        scales = self.const([1, 1, factor, factor])
        roi = "" if self.opset >= 13 else self.const([])
        return self.op("Resize", x, roi, scales, mode=mode, coordinate_transformation_mode=coordinates, nearest_mode="floor")

    def transposed(self, x: str, out: int, k: int = 2, stride: int = 2) -> str:
        w = self.rng.normal(0, np.sqrt(2 / self.c[x]), (self.c[x], out, k, k))
        bias = self.const(self.rng.normal(0, 0.1, out))
        return self.op("ConvTranspose", x, self.const(w), bias, channels=out, kernel_shape=[k, k], strides=[stride, stride])

    def dense(self, x: str, out: int) -> str:
        w = self.weights((out, self.c[x]), gain=1.0)
        return self.op("Gemm", x, self.const(w), self.const(self.rng.normal(0, 0.2, out)), transB=1, channels=out)

    def classify(self, x: str, classes: int = 10) -> str:
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), classes)

    def squeeze_excite(self, x: str, gate: Callable[[str], str], act: str = "Relu") -> str:
        c = self.c[x]
        inner = self.conv(self.op("GlobalAveragePool", x), max(c // 4, 4), 1)
        inner = self.silu(inner) if act == "SiLU" else self.op(act, inner)
        return self.op("Mul", x, gate(self.conv(inner, c, 1)))

    def model(self, *outputs: str, types: Sequence[int] | None = None) -> onnx.ModelProto:
        self._train()
        infos = [helper.make_tensor_value_info(o, t, None) for o, t in zip(outputs, types or [TensorProto.FLOAT] * len(outputs))]
        graph = helper.make_graph(self.nodes, "net", self.inputs, infos, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8 if self.opset < 19 else 10)

    def _train(self) -> None:
        """Batch normalizations get the statistics of what they read, nearly: what was drawn for them is taken relative to it."""
        position = {t.name: i for i, t in enumerate(self.initializers)}
        for node in self.nodes:
            if node.op_type == "BatchNormalization":
                seen = self._values(node.input[0])
                std = seen.std((0, *range(2, seen.ndim))) + 1e-3
                mean, var = (numpy_helper.to_array(self.initializers[position[i]]) for i in node.input[3:])
                made = mean * std + seen.mean((0, *range(2, seen.ndim))), var * std**2
                for name, data in zip(node.input[3:], made):
                    self.initializers[position[name]] = numpy_helper.from_array(data.astype(np.float32), name)

    def _values(self, name: str) -> Floats:
        """What value `name` is on some inputs."""
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "part", self.inputs, [info], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        options = ort.SessionOptions()
        options.log_severity_level, options.graph_optimization_level = 3, ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run([name], feeds)[0] for feeds in inputs(model, 4, seed=5)])


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {}


def network(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
    """Enters a builder in `NETWORKS`."""
    NETWORKS[build.__name__] = build
    return build


def inputs(model: onnx.ModelProto, count: int, seed: int = 1) -> list[dict[str, NDArray[np.generic]]]:
    """Smooth random images: coarse noise, interpolated, with uneven channels, and a little white noise. Few tokens are common, many rare."""
    rng = np.random.default_rng(seed)
    return [{i.name: _input(i, rng) for i in model.graph.input} for _ in range(count)]


def _input(info: onnx.ValueInfoProto, rng: np.random.Generator) -> NDArray[np.generic]:
    shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if dtype == np.float32:
        return _smooth(shape, rng)
    if info.doc_string in ("seen", "hidden"):
        seen = np.arange(shape[1])[None] < rng.integers(shape[1] // 2, shape[1] + 1)
        return (seen if info.doc_string == "seen" else ~seen).astype(dtype)
    rows = int(info.doc_string)
    return np.asarray((rng.zipf(1.3, shape) - 1) % rows, dtype)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    coarse = rng.normal(0, 1, (*shape[:2], *(-(-n // 8) for n in shape[2:]))) + rng.normal(0, 0.5, shape[:2] + (1,) * (len(shape) - 2))
    for axis in range(2, len(shape)):
        coarse = coarse.repeat(8, axis).take(range(shape[axis]), axis)
    return np.asarray(coarse + rng.normal(0, 0.3, shape), np.float32)
