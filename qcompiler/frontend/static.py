"""Operators that are computed while the model is imported, by the reference implementation of the onnx package.

Exporters leave them where they build masks, positions and shapes; no integer program needs them.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir.graph import Value

IMPORTERS = Importers()


_INDEXING = ("ScatterND", "ScatterElements", "GatherND", "GatherElements", "OneHot", "EyeLike")
_COUNTING = ("CumSum", "NonZero", "ReduceProd", "ArgMin", "TopK")


@IMPORTERS.register(*_INDEXING, *_COUNTING)
def compile_time(node: Node, *operands: Value | None) -> list[Value]:
    """Results of constant operands."""
    arrays = [None if v is None else node.static(v, "operand") for v in operands]
    if any(v is not None and v.type.quant is not None for v in operands):
        raise Unsupported("computes on quantized integers")
    results = _computed(node, arrays)
    return [node.constant(np.asarray(r)) for r in results]


def _computed(node: Node, arrays: list[np.ndarray | None]) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    made = helper.make_node(node.op, names, outputs, **{k: v for k, v in node.attributes.items() if v is not None})
    feeds = {n: a for n, a in zip(names, arrays) if a is not None}
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()]
    graph = helper.make_graph([made], "constant", inputs, [helper.make_tensor_value_info(o, TensorProto.UNDEFINED, None) for o in outputs])
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.opset)])
    return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, feeds)]
