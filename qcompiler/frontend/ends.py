"""Camera bytes in, class out: what stands around a network becomes part of its graph, so that no float exists outside of the program either.

    x = (scale * p - mean) / std        p: uint8 pixels, mean and std per channel; also from channels-last to channels-first
    y = argmax(scores)                  along the last axis
    y = clip(round(scores / step), 0, 255)    bytes, of images say

The nodes are put into the ONNX model before it is imported; everything behind (folding into the first convolution, quantization, proof) treats
them as the network's own. Scale and mean are folded into the first convolution, also where that pads with zeros (`passes/channel_of_ones`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompiler.errors import UsageError

from .inputs import graph_inputs
from .load import load_model

TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
NCHW, NHWC = "nchw", "nhwc"


@dataclass(frozen=True)
class Pixels:
    """How pixels become what the network was trained on; one number, or one per channel. `layout` None: that of the network."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: str | None = None


def take_pixels(model: onnx.ModelProto | str, pixels: Pixels, shapes: dict[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """`model` reading uint8 images instead of its one input of real numbers. UsageError where that is no image, or the numbers do not fit."""
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(model))
    name, shape, inner = _image(proto, shapes or {})
    _check(pixels, name, shape[1] if inner == NCHW else shape[3])
    outer = pixels.layout or inner
    permutation = None if outer == inner else TO_LAST if outer == NHWC else TO_FIRST
    given = [shape[p] for p in permutation] if permutation else list(shape)
    source = f"{name}.real"
    _rename_uses(proto.graph, name, source)
    nodes = _preprocessing(proto.graph, pixels, name, source, (outer, inner))
    _prepend(proto.graph, nodes)
    _declare(proto.graph, name, given)
    return proto


def name_classes(model: onnx.ModelProto | str, count: int | None = None) -> onnx.ModelProto:
    """`model` with the index of its greatest score, along the last axis, in place of its first output; further outputs are dropped.

    `count`: the indices of so many, the greatest first.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(model))
    scores = proto.graph.output[0].name
    result = f"{scores}.argmax" if count is None else f"{scores}.top{count}"
    if count is None:
        proto.graph.node.append(helper.make_node("ArgMax", [scores], [result], name=result, axis=-1, keepdims=0))
    else:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([count]), f"{result}.k"))
        proto.graph.node.append(helper.make_node("TopK", [scores, f"{result}.k"], [f"{result}.scores", result], name=result, axis=-1))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info(result, TensorProto.INT64, None))
    return proto


def give_bytes(model: onnx.ModelProto | str, step: float = 1 / 255) -> onnx.ModelProto:
    """`model` with its first output as uint8 numbers of `step` each, what lies outside of 0 to 255 steps saturated; further outputs are dropped.

    UsageError where that output is no real numbers, or `step` not positive.
    """
    if not 0 < step < math.inf:
        raise UsageError(f"expected a positive step for the answer in bytes, found {step:g}")
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(model))
    given = proto.graph.output[0]
    if given.type.tensor_type.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        kind = TensorProto.DataType.Name(given.type.tensor_type.elem_type)
        raise UsageError(f"expected real numbers to give as bytes, found output '{given.name}' of {kind}")
    scores, result = given.name, f"{given.name}.u8"
    if given.type.tensor_type.elem_type != TensorProto.FLOAT:
        proto.graph.node.append(helper.make_node("Cast", [scores], [f"{result}.real"], name=f"{result}.real", to=TensorProto.FLOAT))
        scores = f"{result}.real"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), f"{result}.step"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.uint8), f"{result}.zero"))
    proto.graph.node.append(helper.make_node("QuantizeLinear", [scores, f"{result}.step", f"{result}.zero"], [result], name=result))
    given.name, given.type.tensor_type.elem_type = result, TensorProto.UINT8
    del proto.graph.output[1:]
    return proto


def as_pixels(data: NDArray[np.generic], model: onnx.ModelProto | str, pixels: Pixels) -> NDArray[np.uint8]:
    """Images in the network's layout as `take_pixels` takes them: bytes, or real numbers of which the preprocessing is undone."""
    if data.dtype.kind != "f" and data.dtype != np.uint8:
        raise UsageError(f"expected images of uint8, or preprocessed ones of float32, found {data.dtype}")
    _, _, inner = _image(load_model(model), {})
    found = data.astype(np.uint8) if data.dtype == np.uint8 else _undone(data, pixels, inner)
    if (pixels.layout or inner) == inner:
        return found
    return np.ascontiguousarray(found.transpose(TO_LAST if inner == NCHW else TO_FIRST))


def _undone(data: NDArray[np.generic], pixels: Pixels, inner: str) -> NDArray[np.uint8]:
    """p = (x std + mean) / scale, rounded."""
    axis = (1, -1, 1, 1) if inner == NCHW else (1, 1, 1, -1)
    mean, std = (np.array(n, np.float64).reshape(axis) for n in (pixels.mean, pixels.std))
    return np.asarray(np.clip(np.round((data.astype(np.float64) * std + mean) / pixels.scale), 0, 255), np.uint8)


def _image(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...], str]:
    """Name, shape and layout of the one input."""
    inputs = graph_inputs(proto.graph, shapes)
    if len(inputs) != 1:
        raise UsageError(f"--input u8 is for networks with one image as input, found {', '.join(inputs)}")
    ((name, type),) = inputs.items()
    channels = (1, 3, 4)
    if not type.dtype.is_float or type.rank != 4 or not (type.shape[1] in channels or type.shape[3] in channels):
        raise UsageError(f"--input u8 is for images of 1, 3 or 4 channels, found '{name}' {type}")
    return name, type.shape, NCHW if type.shape[1] in channels else NHWC


def _check(pixels: Pixels, name: str, channels: int) -> None:
    for option, values in (("--mean", pixels.mean), ("--std", pixels.std)):
        if len(values) not in (1, channels):
            raise UsageError(f"{option} has {len(values)} values, expected 1 or {channels}, one per channel of '{name}'")
    if 0 in pixels.std or pixels.scale == 0:
        raise UsageError("expected --std and --scale other than zero")
    if pixels.layout not in (None, NCHW, NHWC):
        raise UsageError(f"expected the layout nchw or nhwc, found {pixels.layout!r}")


def _rename_uses(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, operand in enumerate(node.input):
            if operand == old:
                node.input[i] = new
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename_uses(inner, old, new)
    for output in graph.output:
        if output.name == old:
            raise UsageError(f"the network hands out its input '{old}' unchanged; --input u8 cannot")


def _preprocessing(graph: onnx.GraphProto, pixels: Pixels, name: str, result: str, layouts: tuple[str, str]) -> list[onnx.NodeProto]:
    """Nodes from the pixels `name` to the real numbers `result`: p * (scale / std) + (-mean / std), channels last."""
    mean, std = (np.array(n, np.float64) for n in (pixels.mean, pixels.std))
    outer, inner = layouts
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if outer == NCHW:
        steps.append(("Transpose", [], {"perm": TO_LAST}))
    steps.append(("Mul", [_constant(graph, f"{name}.scale", pixels.scale / std)], {}))
    if mean.any():
        steps.append(("Add", [_constant(graph, f"{name}.shift", -mean / std)], {}))
    if inner == NCHW:
        steps.append(("Transpose", [], {"perm": TO_FIRST}))
    names = [name, *(f"{name}.{operator.lower()}{n}" for n, (operator, _, _) in enumerate(steps[:-1])), result]
    return [
        helper.make_node(operator, [before, *more], [after], name=after, **attributes)
        for (operator, more, attributes), before, after in zip(steps, names, names[1:])
    ]


def _constant(graph: onnx.GraphProto, name: str, data: NDArray[np.float64]) -> str:
    graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    return name


def _prepend(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    behind = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *behind])


def _declare(graph: onnx.GraphProto, name: str, shape: list[int]) -> None:
    (info,) = (i for i in graph.input if i.name == name)
    info.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))
