"""ONNX models written node by node, as exporters spell them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from qcompiler.frontend import import_model
from qcompiler.ir.graph import Graph


class Spelled:
    """Nodes and initializers under construction; arrays given as operands become initializers."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, *shape: int, name: str = "x", dtype: type = np.float32) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        return name

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(-0.5, 0.5, shape).astype(np.float32)

    def op(self, kind: str, *operands: Any, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [self._operand(o) for o in operands]
        made = [f"{kind}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, made, domain=domain, **attributes))
        return made[0] if outputs == 1 else made

    def _operand(self, o: Any) -> str:
        if isinstance(o, str):
            return o
        array = np.asarray(o, np.float32) if isinstance(o, float) else np.asarray(o)
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def dense(self, x: str, n: int, k: int) -> str:
        return self.op("Add", self.weights(k), self.op("MatMul", x, self.weights(n, k)))

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, np.array(shape))

    def heads(self, x: str, positions: int, heads: int, channels: int) -> str:
        """[1,N,H*D] to [1,H,N,D]."""
        return self.op("Transpose", self.reshape(x, -1, positions, heads, channels), perm=[0, 2, 1, 3])

    def merged(self, x: str, positions: int, channels: int) -> str:
        return self.reshape(self.op("Transpose", x, perm=[0, 2, 1, 3]), -1, positions, channels)

    def model(self, *outputs: str, opset: int = 20) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "spelled", self.inputs, results, self.initializers)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def graph(self, *outputs: str, opset: int = 20) -> Graph:
        return import_model(self.model(*outputs, opset=opset))
