"""Scales that follow from a model that arrived quantized, for values between its own pairs of Quantize and Dequantize.

    Quantize(move(x))          x takes that quantization: movement, maxima and clips commute with it, so nothing is rounded twice
    move(Dequantize(q))        keeps the quantization of q
    Quantize(clip(x + r))      x, a convolution's result that no pair stores, takes 16 bits of S = S_y (2^8 + reach(r) / S_y) / 2^14

In the last S_r / (S_x S_w) is whatever training made it, no integer, so that r cannot be added in the accumulator. Values of x beyond
that range leave y saturated whatever r is, and an error of 1.5 S is below a tenth of S_y.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from qcompiler.ir import integer
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Concat, Const, Conv, Dequantize, MatMul, Quantize, const_data
from qcompiler.ir.pointwise import Add, Clip, Mul, Sub
from qcompiler.ir.types import DType, Quantization

from .prove_ranges import Bound
from .storage_points import is_accumulating, is_movement, is_stored, storage_points

LEVELS, WIDE_REACH = 256, 1 << 14
"""Of a result of 8 bits; steps that a requantization to 16 bits reaches without saturating."""


def given_scales(graph: Graph) -> dict[Value, Quantization]:
    """The quantizations that stored values must have; empty for a float graph."""
    if not any(isinstance(v.op, Quantize) for v in graph.order):
        return {}
    found = dict[Value, Quantization]()
    for v in storage_points(graph):
        quant = carried(v, found) or moved(graph, v) or summed(graph, v)
        if quant is not None:
            found[v] = quant
    return found


def carried(v: Value, known: Mapping[Value, Quantization]) -> Quantization | None:
    """The 8-bit quantization of what `v` moves, where that is one."""
    operands = v.inputs if isinstance(v.op, Concat) else v.inputs[:1]
    quants = {i.inputs[0].type.quant if isinstance(i.op, Dequantize) else known.get(i) for i in operands} if is_movement(v) else set()
    quant = quants.pop() if len(quants) == 1 else None
    return quant if quant is not None and quant.axis is None and quant.bits <= 8 else None


def moved(graph: Graph, v: Value) -> Quantization | None:
    """The one quantization of 8 bits in which all that reads `v`, through movement and clips, stores it."""
    asked = set(_asked(graph, v))
    return asked.pop() if len(asked) == 1 and v not in graph.outputs else None


def _asked(graph: Graph, v: Value) -> Iterator[Quantization | None]:
    for u in graph.uses[v]:
        if isinstance(u.op, Quantize):
            yield u.type.quant if u.type.dtype is DType.i8 and u.type.quant is not None and u.type.quant.axis is None else None
        elif (is_movement(u) or isinstance(u.op, Clip)) and u not in graph.outputs:
            yield from _asked(graph, u)
        else:
            yield None


def summed(graph: Graph, v: Value) -> Quantization | None:
    """16 bits for an operand of an addition whose result has a quantization, where the operand itself has none."""
    user = graph.only_use(v)
    if not is_accumulating(v) or user is None or not isinstance(user.op, (Add, Sub)) or _is_float_layer(v):
        return None
    y = _result(graph, user)
    if y is None:
        return None
    reach = sum(_reach(o, y) for o in user.inputs if o is not v)
    return Quantization.per_tensor(float(np.float32((LEVELS * y.scale[0] + reach) / WIDE_REACH)), 0, 16)


def _is_float_layer(v: Value) -> bool:
    """Whether the weights of `v` are still to be quantized: their scales can be made to fit the other operand (`residuals`)."""
    return len(v.inputs) > 1 and isinstance(v.inputs[1].op, Const)


def _result(graph: Graph, v: Value) -> Quantization | None:
    """The 8-bit quantization that the only reader of `v` gives it, perhaps behind a Clip."""
    user = graph.only_use(v)
    if user is not None and isinstance(user.op, Clip) and not is_stored(graph, v):
        user = graph.only_use(user)
    given = user is not None and isinstance(user.op, Quantize) and user.type.dtype is DType.i8
    return user.type.quant if given and user is not None else None


def _reach(o: Value, y: Quantization) -> float:
    """The greatest magnitude of the other operand; of one that is not stored either, twice that of the result."""
    if isinstance(o.op, Const):
        return float(np.abs(o.op.data).max())
    if isinstance(o.op, Dequantize) and (q := o.inputs[0].type.quant) is not None and q.axis is None:
        return q.scale[0] * max(abs(q.qmin - q.zero_point[0]), abs(q.qmax - q.zero_point[0]))
    return 2 * LEVELS * y.scale[0]


# --- what has no integer form ---


def refused_pairs(graph: Graph) -> list[str]:
    """Every Quantize of activations whose numbers have no arithmetic here, and what to do."""
    return [p for v in graph.order if (p := _problem(graph, v)) is not None]


def _problem(graph: Graph, v: Value) -> str | None:
    quant, what = v.type.quant, f"QuantizeLinear '{v.name}'"
    if not isinstance(v.op, Quantize) or quant is None:
        return None
    if quant.axis is not None:
        return f"{what} gives activations {len(quant.scale)} scales; expected one per tensor"
    if v.type.dtype is DType.i32:
        return f"{what} gives activations 32 bits; expected 8 or 16"
    if v.type.dtype is DType.i16 and quant.zero_point[0]:
        return f"{what} gives 16 bits with a zero point that is not the middle of their range; quantize symmetrically"
    reader = next((u for d in graph.uses[v] for u in graph.uses[d] if isinstance(u.op, (Conv, MatMul, Mul))), None)
    if v.type.dtype is DType.i16 and reader is not None:
        return f"{what} gives 16 bits to {type(reader.op).__name__} '{reader.name}'; products are of 8 bits: quantize its operand to int8 or uint8"
    return None


def saturating_pairs(graph: Graph, integers: Graph, bounds: Mapping[Value, Bound]) -> list[str]:
    """16-bit results whose scale the model gives and so fine that a requantization may saturate: between 2^14 and 2^15 steps it may."""
    given = {v.name for v in graph.order if isinstance(v.op, Quantize) and v.type.dtype is DType.i16}
    wide = [v for v in integers.order if v.name in given and isinstance(v.op, integer.Requantize)]
    return [
        f"QuantizeLinear '{v.name}' stores 16 bits in steps of {v.type.quant.scale[0]:.3g}, of which its operand may reach {most:.0f}; "
        f"expected at most {WIDE_REACH}: quantize with a coarser scale"
        for v in wide
        if v.type.quant is not None and (most := _most_steps(v, bounds)) > WIDE_REACH
    ]


def _most_steps(v: Value, bounds: Mapping[Value, Bound]) -> float:
    shift, q = (np.asarray(const_data(i), np.float64) for i in v.inputs[1:])
    bound = bounds[v.inputs[0]]
    return float((q * 2.0 ** -(15 + shift)).max() * max(abs(bound.lo), abs(bound.hi)))
