"""Pointwise operators as ONNX nodes: they work on names alone, whatever the layout of the operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from math import isinf

import numpy as np

from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Cast, Input, Op, Where, const_data
from qcompiler.ir.types import DType

from .writer import Writer, onnx_dtype


def pointwise(w: Writer, op: Op, names: Sequence[str], dtype: DType, name: str) -> str:
    """Write the pointwise `op` applied to the tensors `names`; `dtype` is the element type of the first."""
    match op:
        case pw.Clip(lo=lo, hi=hi):
            return clip(w, names[0], lo, hi, dtype, name)
        case pw.Gelu(tanh=tanh):
            return w.node("Gelu", names, name, approximate="tanh" if tanh else "none")
        case pw.Mod() if dtype.is_float:
            return _floored_mod(w, names, name)
        case pw.PRelu():
            return _prelu(w, names, dtype, name)
        case pw.Map(body=body):
            return inline(w, body, names[0], name)
        case Cast(dtype=to):
            return w.node("Cast", names, name, to=onnx_dtype(to))
        case pw.Unary() | pw.Binary() | Where():
            return w.node(type(op).__name__, names, name, **{f.name: getattr(op, f.name) for f in fields(op)})
    raise NotImplementedError(f"{type(op).__name__} is not pointwise")


def clip(w: Writer, x: str, lo: float, hi: float, dtype: DType, name: str) -> str:
    """Relu where that is what it is, else Clip with the finite bounds."""
    if lo == 0 and isinf(hi):
        return w.node("Relu", [x], name)
    bounds = ["" if isinf(b) else w.scalar(b, dtype) for b in (lo, hi)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return w.node("Clip", [x, *bounds], name)


def _floored_mod(w: Writer, names: Sequence[str], name: str) -> str:
    """a - floor(a / b) * b: ONNX Mod of floats has the sign of the dividend."""
    quotient = w.node("Floor", [w.node("Div", names, f"{name}_quotient")], f"{name}_floor")
    return w.node("Sub", [names[0], w.node("Mul", [quotient, names[1]], f"{name}_multiple")], name)


def _prelu(w: Writer, names: Sequence[str], dtype: DType, name: str) -> str:
    """Where(x < 0, slope * x, x): ONNX PRelu broadcasts the slope only one way."""
    negative = w.node("Less", [names[0], w.scalar(0, dtype)], f"{name}_negative")
    return w.node("Where", [negative, w.node("Mul", names, f"{name}_scaled"), names[0]], name)


def inline(w: Writer, body: Graph, x: str, name: str) -> str:
    """The body of a `Map` on the tensor `x`; constants have one element and are written as scalars."""
    env: dict[Value, str] = {}
    for v in body.order:
        data = const_data(v)
        if isinstance(v.op, Input):
            env[v] = x
        elif data is not None:
            env[v] = w.scalar(np.asarray(data).reshape(()).item(), v.type.dtype)
        else:
            env[v] = pointwise(w, v.op, [env[i] for i in v.inputs], v.inputs[0].type.dtype, f"{name}/{v.name}")
    return env[body.outputs[0]]
