"""Quantized ONNX from the Q/DQ graph, with the scales and zero points of the compiled program.

`export_qdq` writes what toolchains take as input: float operators between QuantizeLinear and DequantizeLinear.
`export_qoperator` writes operators on integers: QLinearConv, QLinearMatMul, data movement on int8, and the com.microsoft ones for sums,
products and averages; what has none stays a float operator between DequantizeLinear and QuantizeLinear.

How far onnxruntime may differ from our integers is stated, and measured, in `bound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from onnx import ModelProto

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value, substitute
from qcompiler.ir.ops import Quantize
from qcompiler.ir.types import DType
from qcompiler.passes.pipeline import Quantized

from .qoperator import fuse_quantized

__all__ = ["export_qdq", "export_qoperator", "export_target", "unsigned"]


def export_qdq(graph: Graph, activations: DType | None = None, opset: int | None = None) -> ModelProto:
    """The Q/DQ graph as ONNX; `activations` i8, or u8 with every zero point higher by 128, which says the same (and i16 or u16 likewise).

    None: i8, but u8 beside values of 16 bits. Those need opset 21, where onnxruntime (up to 1.32 at least) turns int8 quantizers that it
    has moved into uint8, forgets their new attribute `output_dtype`, and refuses its own graph.
    """
    chosen = activations or (DType.u8 if any(v.type.dtype is DType.i16 for v in graph.order) else DType.i8)
    return export(unsigned(graph, STORED_AS[chosen]) if chosen in STORED_AS else graph, opset=opset).model


def export_qoperator(graph: Graph, activations: DType = DType.u8) -> ModelProto:
    """The Q/DQ graph as ONNX operators on integers, of the standard and of the com.microsoft domain; u8 because onnxruntime's
    QLinearConv of int8 activations is ten times slower on x86 (mobilenetv2, one thread of an EPYC with VNNI: 27 ms against 2.5)."""
    return export(unsigned(graph) if activations is DType.u8 else graph, fuse=fuse_quantized).model


def export_target(made: Quantized, target: str) -> ModelProto:
    """What the targets onnx-qdq and onnx-qoperator write.

    The first is the program itself: where convolutions add residuals in their accumulators and streams have 16 bits, so has the graph. The second
    spells all operators out between tensors of 8 bits, as integer operators are.
    """
    return export_qdq(made.qdq_graph) if target == "onnx-qdq" else export_qoperator(made.exchange_graph)


STORED_AS: Mapping[DType, DType] = {DType.u8: DType.i8, DType.u16: DType.i16}
"""Which signed type an unsigned one stands for."""


def unsigned(graph: Graph, signed: DType = DType.i8) -> Graph:
    """The same Q/DQ graph with activations of the type `signed` stored as unsigned, offset by half their range."""
    return substitute(graph, partial(_unsigned, signed))


def _unsigned(signed: DType, v: Value) -> Value:
    """Quantize, and what moves its integers before they are dequantized, in the unsigned type."""
    made = next(u for u, s in STORED_AS.items() if s is signed)
    moved = any(i.type.dtype is made for i in v.inputs)
    if v.type.quant is None or v.type.dtype is not signed or not (moved or isinstance(v.op, Quantize)):
        return v
    offset = 1 << (8 * signed.numpy.itemsize - 1)
    quant = replace(v.type.quant, zero_point=tuple(z + offset for z in v.type.quant.zero_point))
    type = replace(v.type, dtype=made, quant=quant)
    return replace(v, op=Quantize(type) if isinstance(v.op, Quantize) else v.op, type=type)
