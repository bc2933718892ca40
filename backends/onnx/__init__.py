"""Quantized ONNX from the Q/DQ graph, with the scales and zero points of the compiled program.

`export_qdq` writes what toolchains take as input: float operators between QuantizeLinear and DequantizeLinear.
`export_qoperator` writes operators on integers: QLinearConv, QLinearMatMul, data movement on int8, and the com.microsoft ones for sums,
products and averages; what has none stays a float operator between DequantizeLinear and QuantizeLinear.

How far onnxruntime may differ from our integers is stated, and measured, in `bound`.
"""

from __future__ import annotations

from dataclasses import replace

from onnx import ModelProto

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value, substitute
from qcompiler.ir.ops import Quantize
from qcompiler.ir.types import DType, Quantization

from .qoperator import fuse_quantized

__all__ = ["export_qdq", "export_qoperator", "unsigned"]


def export_qdq(graph: Graph, activations: DType = DType.i8) -> ModelProto:
    """The Q/DQ graph as ONNX; `activations` i8, or u8 with every zero point higher by 128, which says the same."""
    return export(unsigned(graph) if activations is DType.u8 else graph).model


def export_qoperator(graph: Graph, activations: DType = DType.i8) -> ModelProto:
    """The Q/DQ graph as ONNX operators on integers, of the standard and of the com.microsoft domain."""
    return export(unsigned(graph) if activations is DType.u8 else graph, fuse=fuse_quantized).model


def unsigned(graph: Graph) -> Graph:
    """The same Q/DQ graph with int8 activations stored as uint8, offset by 128."""
    return substitute(graph, _unsigned)


def _unsigned(v: Value) -> Value:
    quant = v.type.quant
    if not isinstance(v.op, Quantize) or v.type.dtype is not DType.i8 or quant is None:
        return v
    shifted = Quantization(quant.scale, tuple(z + 128 for z in quant.zero_point), quant.axis, quant.bits)
    type = replace(v.type, dtype=DType.u8, quant=shifted)
    return replace(v, op=Quantize(type), type=type)
