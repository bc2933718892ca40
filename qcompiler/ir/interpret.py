"""Runs float and Q/DQ graphs, and data movement of any element type, over an array namespace.

`evaluate` runs a graph; `compute` runs one value on given arrays, and is what constant folding and the reference backend
call. The kernels are in `interpret_movement`, `interpret_pointwise` and `interpret_spatial`; written against the array API
standard, they run under numpy and, through array_api_compat, under torch, which then differentiates them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from qcompiler.errors import UsageError

from . import interpret_movement, interpret_pointwise, interpret_sequence, interpret_spatial
from .graph import Graph, Value
from .interpret_movement import Array, Kernel, Namespace, dtype_in
from .ops import Const, CountSteps, Dequantize, Input, Op, Pad, PadMode, Quantize
from .pointwise import Map
from .types import Quantization, TensorType

KERNELS: Mapping[type[Op], Kernel] = {
    **interpret_movement.KERNELS,
    **interpret_pointwise.KERNELS,
    **interpret_spatial.KERNELS,
    **interpret_sequence.KERNELS,
}


def evaluate(graph: Graph, feeds: Mapping[str, Array], wanted: Sequence[Value] | None = None, xp: Namespace = np) -> dict[Value, Array]:
    """The arrays of the `wanted` values (default: the outputs), given one array per input name.

    Intermediate arrays are released after their last use. Raises UsageError where a needed input is not fed, or is fed with
    another shape or element type than the graph declares.
    """
    targets = tuple(graph.outputs if wanted is None else wanted)
    order = Graph((), targets, ()).order
    env = {v: _fed(v, feeds, xp) for v in order if isinstance(v.op, Input)}
    with np.errstate(all="ignore"):
        return run(order, env, targets, xp)


def run(order: Sequence[Value], env: dict[Value, Array], targets: Sequence[Value], xp: Namespace) -> dict[Value, Array]:
    """Compute every value of `order` that `env` does not hold yet, and return those of `targets`."""
    pending = Counter(i for v in order for i in v.inputs)
    pending.update(targets)
    for v in order:
        if v not in env:
            env[v] = compute(v, [env[i] for i in v.inputs], xp)
        for i in v.inputs:
            pending[i] -= 1
            if not pending[i]:
                env.pop(i)
    return {v: env[v] for v in targets}


def compute(v: Value, arrays: Sequence[Array], xp: Namespace = np) -> Array:
    """What `v` is when its operands are `arrays`: one operator, operand types read from `v.inputs`.

    Raises NotImplementedError for inputs and for operators of the integer stage, which belong to `backends/reference`.
    """
    match v.op:
        case Const(data):
            return xp.asarray(data)
        case Quantize(type):
            return quantize(xp, arrays[0], type)
        case CountSteps():
            step, shift = v.op.along(v.type.rank)
            return xp.astype(arrays[0], xp.float32) / xp.asarray(step) + xp.asarray(shift)
        case Dequantize():
            return dequantize(xp, arrays[0], _quantization(v.inputs[0]))
        case Pad(mode=PadMode.constant) if v.inputs[0].type.quant is not None:
            return interpret_movement.pad(_pad_with_integer(v.op, _quantization(v.inputs[0])), xp, arrays[0])
        case Map(body):
            return run(body.order, {body.inputs[0]: arrays[0]}, body.outputs, xp)[body.outputs[0]]
        case op if type_of(op) in KERNELS:
            return KERNELS[type_of(op)](op, xp, *arrays)
        case op:
            raise NotImplementedError(f"the float interpreter has no kernel for {type_of(op).__name__} '{v.name}'")


def type_of(op: Op) -> type[Op]:
    """The operator's class (`type` is also the name of a field)."""
    return op.__class__


def quantize(xp: Namespace, x: Array, type: TensorType) -> Array:
    """ONNX QuantizeLinear: round(x / scale), ties to even, of the float32 quotient; NaN is 0; saturated."""
    quant = type.quant
    if quant is None:
        raise ValueError(f"Quantize needs a quantized type, found {type}")
    scale, zero = _affine(xp, quant, x.ndim)
    steps = xp.astype(xp.round(xp.astype(x, xp.float32) / scale), xp.float64)
    steps = xp.where(xp.isnan(steps), xp.zeros_like(steps), steps) + xp.astype(zero, xp.float64)
    q = xp.clip(steps, quant.qmin, quant.qmax)
    if quant.levels is not None:
        q = xp.take(xp.asarray(quant.nearest_level()), xp.astype(xp.reshape(q, (-1,)), xp.int64) - quant.qmin).reshape(q.shape)
    return xp.astype(q, dtype_in(xp, type.dtype))


def dequantize(xp: Namespace, q: Array, quant: Quantization) -> Array:
    """ONNX DequantizeLinear: (q - zero point) * scale in float32."""
    scale, zero = _affine(xp, quant, q.ndim)
    return xp.astype(xp.astype(q, xp.int64) - zero, xp.float32) * scale


def _affine(xp: Namespace, quant: Quantization, rank: int) -> tuple[Array, Array]:
    scale, zero = quant.broadcast(rank)
    return xp.asarray(scale.astype(np.float32)), xp.asarray(zero)


def _quantization(v: Value) -> Quantization:
    if v.type.quant is None:
        raise ValueError(f"'{v.name}' is not quantized: {v.type}")
    return v.type.quant


def _pad_with_integer(op: Pad, quant: Quantization) -> Pad:
    return replace(op, value=int(quant.quantize(np.asarray(op.value))))


def _fed(v: Value, feeds: Mapping[str, Array], xp: Namespace) -> Array:
    if v.name not in feeds:
        raise UsageError(f"input '{v.name}' is missing; expected {v.type}, found inputs {sorted(feeds)}")
    x = xp.asarray(feeds[v.name])
    if tuple(x.shape) != v.shape or x.dtype != dtype_in(xp, v.type.dtype):
        raise UsageError(f"input '{v.name}' must be {v.type}, found {x.dtype} of shape {tuple(x.shape)}; reshape or convert it")
    return x
