"""A Q/DQ model as its author wrote it, whoever that is: which tensors are quantized, how, and which operators work on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompiler.ir.types import DType

Array = NDArray[np.generic]
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
SIDE = frozenset({"Constant", "ConstantOfShape", "Shape", "Size", "Range", "Identity"})
"""Nodes that compute nothing a device would quantize."""
STORED = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16)
"""Types of integers that operators may move between QuantizeLinear and DequantizeLinear."""
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu"})
FOLDED = frozenset({"BatchNormalization"})
"""What every toolchain folds into the convolution before it."""
FUSED = ACTIVATIONS | FOLDED
"""What may stand behind the operator that makes its operand without a Q/DQ pair between."""


@dataclass(frozen=True)
class Affine:
    """How a tensor is quantized: integers of `dtype`, `scale` and `zero` along `axis` (None: one for all). `data`: those of a constant."""

    tensor: str
    dtype: DType
    scale: NDArray[np.float64]
    zero: NDArray[np.int64]
    axis: int | None = None
    blocks: int = 0
    data: Array | None = None

    def same(self, other: Affine) -> bool:
        """Whether both map integers to the same numbers."""
        alike = self.dtype is other.dtype and self.axis == other.axis
        return alike and np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute of a node, or what stands for it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def label(node: NodeProto) -> str:
    """What a message calls a node."""
    return node.name or next(iter(node.output), "?")


class QdqModel:
    """Answers about one model; nothing is changed."""

    def __init__(self, model: ModelProto, carriers: frozenset[str] = frozenset()) -> None:
        """`carriers`: operators that hand on the quantization of what they move, without a pair of their own."""
        self.model = model
        self.carriers = carriers
        self.nodes: Sequence[NodeProto] = model.graph.node
        self.producer = {out: n for n in self.nodes for out in n.output if out}
        self.readers: Mapping[str, list[NodeProto]] = defaultdict(list)
        for n in self.nodes:
            for name in filter(None, n.input):
                self.readers[name].append(n)
        self.outputs = {o.name for o in model.graph.output}

    @property
    def opset(self) -> int:
        """Of the default domain."""
        return next((int(o.version) for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 0)

    @cached_property
    def constants(self) -> Mapping[str, Array]:
        """Initializers and the results of Constant."""
        made = {t.name: t for t in self.model.graph.initializer}
        made |= {n.output[0]: attribute(n, "value") for n in self.nodes if n.op_type == "Constant" and attribute(n, "value") is not None}
        found: dict[str, Array] = {name: numpy_helper.to_array(t) for name, t in made.items()}
        for n in self.nodes:
            if n.op_type == "Identity" and n.input[0] in found:
                found[n.output[0]] = found[n.input[0]]
        return found

    @cached_property
    def static(self) -> frozenset[str]:
        """Tensors that depend on constants alone."""
        known = set(self.constants)
        for n in self.nodes:
            if all(not name or name in known for name in n.input) and n.op_type not in ("RandomNormal", "RandomUniform"):
                known.update(n.output)
        return frozenset(known)

    @cached_property
    def types(self) -> Mapping[str, tuple[int, tuple[int | None, ...] | None]]:
        """(element type, dimensions where known) of tensors, as far as shape inference gets."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # inference stops at what it does not know; the declared types remain
            graph = self.model.graph
        infos = (*graph.value_info, *graph.input, *graph.output)
        return {i.name: (i.type.tensor_type.elem_type, _dimensions(i)) for i in infos if i.type.HasField("tensor_type")}

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds floats; one of unknown type does."""
        kind = self.types.get(tensor, (TensorProto.FLOAT, None))[0]
        return kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.UNDEFINED)

    def operators(self) -> Iterator[NodeProto]:
        """The nodes that compute on data at run time."""
        for n in self.nodes:
            moves = any(self.is_float(i) or self.affine(i) is not None for i in self.variable(n))
            if n.op_type not in (QUANTIZE, DEQUANTIZE, *SIDE) and moves:
                yield n

    def variable(self, node: NodeProto) -> list[str]:
        """Operands that are not known before run time."""
        return [i for i in node.input if i and i not in self.static]

    def affine(self, tensor: str) -> Affine | None:
        """How `tensor` is quantized, if a DequantizeLinear makes it, or a QuantizeLinear (then it holds integers, perhaps moved)."""
        node = self.producer.get(tensor)
        if node is None:
            return None
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            return self.parameters(node)
        carried = node.op_type in self.carriers or self.types.get(tensor, (0, None))[0] in STORED
        if carried and node.input and node.input[0] not in self.static:
            return self.affine(node.input[0])
        return None

    def parameters(self, node: NodeProto) -> Affine | None:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear; None where they are computed at run time."""
        scale = self.constants.get(node.input[1])
        zero = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if scale is None or (zero is None and len(node.input) > 2 and node.input[2]):
            return None
        data = self._integers(node)
        kind = self._type(node, zero, data)
        if kind is None:
            return None
        zeros = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
        axis = int(attribute(node, "axis", 1)) if scale.size > 1 else None
        stored = node.output[0] if node.op_type == QUANTIZE else node.input[0]
        return Affine(stored, kind, scale.astype(np.float64).ravel(), zeros.ravel(), axis, int(attribute(node, "block_size", 0)), data)

    def _type(self, node: NodeProto, zero: Array | None, data: Array | None) -> DType | None:
        """The integer type on the quantized side of the node; None for one that is no integer of 8 to 32 bits."""
        stated = int(attribute(node, "output_dtype", 0)) if node.op_type == QUANTIZE else 0
        number = stated or self.types.get(node.output[0] if node.op_type == QUANTIZE else node.input[0], (0, None))[0]
        try:
            found = (
                zero.dtype if zero is not None else data.dtype if data is not None else helper.tensor_dtype_to_np_dtype(number or TensorProto.UINT8)
            )
            return DType.of(found)
        except (KeyError, ValueError):
            return None

    def _integers(self, node: NodeProto) -> Array | None:
        """The integers that a DequantizeLinear of a constant reads; those of QuantizeLinear on a constant, too."""
        if node.op_type != DEQUANTIZE or node.input[0] not in self.static:
            return None
        if node.input[0] in self.constants:
            return self.constants[node.input[0]]
        made = self.producer.get(node.input[0])
        quant = self.parameters(made) if made is not None and made.op_type == QUANTIZE else None
        real = None if quant is None or made is None else self.constants.get(made.input[0])
        return None if real is None or quant is None else rounded(real, quant)

    def result(self, node: NodeProto) -> tuple[list[NodeProto], list[str]]:
        """(the QuantizeLinear nodes that store the result, the tensors that are read otherwise), looked up behind fused activations."""
        stored: list[NodeProto] = []
        loose: list[str] = []
        for out in filter(None, node.output):
            readers = self.readers.get(out, [])
            if not readers or out in self.outputs:
                loose.append(out)
            for r in readers:
                if r.op_type == QUANTIZE:
                    stored.append(r)
                elif len(readers) == 1 and r.op_type in FUSED and self.variable(r) == [out]:
                    more = self.result(r)
                    stored, loose = stored + more[0], loose + more[1]
                elif out not in loose:
                    loose.append(out)
        return stored, loose

    def is_fused(self, node: NodeProto) -> bool:
        """Whether `node` is an activation (or folded) right behind the one operator that makes its operand."""
        variable = self.variable(node)
        made = self.producer.get(variable[0]) if len(variable) == 1 else None
        alone = made is not None and len(self.readers[variable[0]]) == 1 and variable[0] not in self.outputs
        return bool(alone and node.op_type in FUSED and made is not None and made.op_type not in (QUANTIZE, DEQUANTIZE))


def rounded(real: Array, quant: Affine) -> Array:
    """What QuantizeLinear makes of `real`."""
    shape = [1] * real.ndim
    if quant.axis is not None:
        shape[quant.axis] = -1
    scale, zero = (a.reshape(shape) if quant.axis is not None else a.reshape(()) for a in (quant.scale, quant.zero))
    limits = np.iinfo(quant.dtype.numpy)
    exact = np.rint(real.astype(np.float32) / scale.astype(np.float32)).astype(np.int64) + zero.astype(np.int64)
    return np.clip(exact, limits.min, limits.max).astype(quant.dtype.numpy)


def _dimensions(info: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    shape = info.type.tensor_type
    if not shape.HasField("shape"):
        return None
    return tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in shape.shape.dim)
