"""Rewrite float operators that have no integer form of their own into ones that have; name those that cannot be compiled.

    a / b  ->  a * (1 / b)

The reciprocal is a table on b.
"""

from __future__ import annotations

from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Declined, Graph, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import ArgMax, Cast, Const, Conv, Dequantize, Input, Integers, MatMul, Pad, PadMode, Quantize, Softmax
from qcompiler.ir.pointwise import Add, Div, Max, Min, Mul, Not, PRelu, Reciprocal, Sub, Unary
from qcompiler.ir.sequence import Attention, Normalize, Rotate
from qcompiler.ir.types import DType
from qcompiler.numerics.normalize import MAX_CHANNELS

from .storage_points import is_accumulating, is_movement
from .symmetric_weights import symmetric_weights


def legalize(graph: Graph, declined: Declined | None = None) -> Graph:
    """The graph in terms of operators with an integer form. UnsupportedModel names every value that has none."""
    graph = rewrite(graph, [divide_by_multiplying], declined)
    graph = symmetric_weights(graph, declined)
    problems = [p for v in graph.order if (p := problem(v)) is not None]
    if problems:
        raise UnsupportedModel(problems)
    return graph


def divide_by_multiplying(v: Value, sweep: Sweep) -> Value | None:
    """a / b as a * (1 / b)."""
    match v:
        case Value(op=Div(), inputs=(a, b)) if v.type.dtype.is_float:
            return apply(Mul(), a, apply(Reciprocal(), b, name=f"{v.name}.reciprocal"), name=v.name)
    return None


def problem(v: Value) -> str | None:
    """Why the float value `v` has no integer form, or None."""
    what = f"{type(v.op).__name__} '{v.name}'"
    match v.op:
        case Const() | Input() | Quantize() | Dequantize() | Integers() | ArgMax() | Softmax():
            return None
        case Conv() if not _constant_weights(v):
            return f"{what} has weights that are computed at run time; expected constants"
        case PRelu() if not _table_slope(v):
            return f"{what} has a slope of shape {v.inputs[1].shape}; expected a constant scalar or one per channel of {v.shape}"
        case MatMul() if any(len(i.shape) < 2 for i in v.inputs):
            return f"{what} multiplies a vector; expected operands of two or more dimensions"
        case Not() if v.inputs[0].type.dtype is DType.bool:
            return None
        case Add() | Sub() | Mul() | Max() | Min() | PRelu() | MatMul() | Unary():
            return _float_only(v, what)
        case Pad(mode=PadMode()):
            return None
        case Normalize() | Attention() | Rotate():
            return _sequence_problem(v, what)
        case Cast(dtype) if not v.inputs[0].type.dtype.is_float and dtype in (DType.f32, DType.bool):
            return None
    return None if is_movement(v) or is_accumulating(v) else f"{what} ({v.type}) has no integer form"


def _sequence_problem(v: Value, what: str) -> str | None:
    """Parameters of normalization and rotation, and the bias of attention, are constants."""
    parameters = v.inputs[3 : 3 + v.op.bias] if isinstance(v.op, Attention) else v.inputs[1:]
    computed = next((p for p in parameters if not isinstance(p.op, Const)), None)
    if computed is not None:
        return f"{what} has a parameter '{computed.name}' that is computed at run time; expected a constant"
    if isinstance(v.op, Normalize) and v.shape[-1] > MAX_CHANNELS:
        return f"{what} normalizes over {v.shape[-1]} channels; supported are {MAX_CHANNELS}"
    return _float_only(v, what)


def _float_only(v: Value, what: str) -> str | None:
    return None if v.type.dtype.is_float else f"{what} computes on {v.type.dtype.name}; only float activations are quantized"


def _constant_weights(v: Value) -> bool:
    w = v.inputs[1]
    return isinstance(w.op, Const) or (isinstance(w.op, Dequantize) and isinstance(w.inputs[0].op, Const))


def _table_slope(v: Value) -> bool:
    slope = v.inputs[1]
    return isinstance(slope.op, Const) and (slope.type.size == 1 or (slope.shape[-1] == v.shape[-1] == slope.type.size))
