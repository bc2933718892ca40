"""Constants, and what is known about shapes at compile time."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.frontend.load import tensor_array
from qcompiler.frontend.node import Importers, Node, Unsupported, numpy_dtype
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Expand

IMPORTERS = Importers()

_PLAIN: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


@IMPORTERS.register("Constant")
def constant(node: Node) -> Value:
    """The tensor, number or list in the attribute."""
    if "value" in node.attributes:
        numpy_dtype(node.attributes["value"].data_type)
        return node.constant(tensor_array(node.attributes["value"], node.outputs[0]))
    given = [name for name in _PLAIN if name in node.attributes]
    if not given:
        raise Unsupported(f"holds {sorted(node.attributes) or 'nothing'}; supported are tensors, floats and integers")
    return node.constant(np.asarray(node.attributes[given[0]], _PLAIN[given[0]]))


@IMPORTERS.register("ConstantOfShape")
def constant_of_shape(node: Node, shape: Value) -> Value:
    """One number in the given shape: a broadcast view, which takes no memory however large it is."""
    tensor = node.attributes.get("value")
    value = np.zeros(1, np.float32) if tensor is None else tensor_array(tensor, node.outputs[0])
    if value.size != 1:
        raise ValueError(f"value must have one element, found {value.size}")
    dims = node.static_integers(shape, "shape")
    if any(d < 0 for d in dims):
        raise ValueError(f"shape {dims} has negative dimensions")
    scalar = node.constant(value.reshape(()))
    return node.constant(np.empty(dims, value.dtype)) if 0 in dims else node.emit(Expand(dims), scalar)


@IMPORTERS.register("Shape")
def shape(node: Node, x: Value) -> Value:
    """Dimensions start to end."""
    end = node.attributes.get("end")
    return node.constant(np.asarray(x.shape[slice(node.attributes.get("start", 0), end)], np.int64))


@IMPORTERS.register("Size")
def size(node: Node, x: Value) -> Value:
    """Number of elements."""
    return node.constant(np.asarray(x.type.size, np.int64))


@IMPORTERS.register("Range")
def range_(node: Node, start: Value, limit: Value, step: Value) -> Value:
    """start, start + step ... before limit; all three constant."""
    ends = [node.static(v, role).reshape(()) for v, role in ((start, "start"), (limit, "limit"), (step, "delta"))]
    count = np.ceil((float(ends[1]) - float(ends[0])) / float(ends[2])) if ends[2] else np.inf
    if not count < 2**28:
        raise ValueError(f"cannot count from {ends[0]} to {ends[1]} in steps of {ends[2]}")
    return node.constant((ends[0] + np.arange(max(int(count), 0)) * ends[2]).astype(start.type.dtype.numpy))


@IMPORTERS.register("Dropout")
def dropout(node: Node, x: Value, ratio: Value | None = None, training: Value | None = None) -> list[Value]:
    """The operand itself, at inference; the mask is all true."""
    training_mode = training is not None and bool(node.static(training, "training_mode").any())
    if training_mode and not (ratio is not None and not node.static(ratio, "ratio").any()):
        raise Unsupported("is in training mode; export the model for inference")
    used = len(node.outputs) > 1 and node.outputs[1]
    return [x, node.emit(Expand(x.shape), node.constant(np.asarray(True)))] if used else [x]
