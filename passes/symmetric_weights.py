"""Weights of a model that arrived quantized, of zero point z and down to -128, as symmetric ones in -127 .. 127.

    w' = max(w - z, -127),  S' = S             where w - z of the output channel fits in int8: a weight of -128 moves by one, the others not at all
    w' = round((w - z) / a),  S' = a S         a = max |w - z| / 127, elsewhere

A zero point of the weights would cost every target the sum of every window; -128 has no negative, which the exact 16-bit
products of AVX2 and NEON need. What is not kept to the bit is said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Declined, Graph, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Const, Conv, Dequantize, constant
from qcompiler.ir.types import DType, Quantization, TensorType

REACH = 127


def symmetric_weights(graph: Graph, declined: Declined | None = None) -> Graph:
    """The graph with the zero points of convolution weights taken into the integers."""
    return rewrite(graph, [symmetric], declined)


def symmetric(v: Value, sweep: Sweep) -> Value | None:
    """A convolution of dequantized weights, with weights that are symmetric."""
    match v:
        case Value(Conv(), (x, Value(Dequantize(), (Value(Const(data), type=TensorType(quant=Quantization() as q)) as w,)) as dw, *bias)):
            if not any(q.zero_point) and (not data.size or data.min() >= -REACH):
                return None
            made, scale = _symmetric(data, q)
            if (moved := int((made * scale.reshape(-1, 1, 1, 1) != q.dequantize(data)).sum())) > 0:
                sweep.declined(v, f"{moved} of {made.size} weights are not kept to the bit: without their zero point they leave -127 .. 127")
            quant = Quantization(tuple(map(float, scale)), (0,) * len(scale), axis=0)
            weights = apply(Dequantize(), constant(made.astype(np.int8), w.name, TensorType(w.shape, DType.i8, quant)), name=dw.name)
            return apply(v.op, x, weights, *bias, name=v.name)
    return None


def _symmetric(data: NDArray[np.generic], q: Quantization) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Integers in -127 .. 127 and one scale per output channel."""
    zero, scale = (np.broadcast_to(np.array(a), data.shape[:1]) for a in (q.zero_point, q.scale))
    integers = data.astype(np.float64) - zero.reshape(-1, 1, 1, 1)
    reach = np.abs(integers).reshape(len(integers), -1).max(1)
    coarser = np.where(reach > REACH + 1, reach / REACH, 1.0)
    made = np.rint(integers / coarser.reshape(-1, 1, 1, 1)).clip(-REACH, REACH)
    return made, (scale * coarser).astype(np.float32)
