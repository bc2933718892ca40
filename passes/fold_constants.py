"""op(c_1, ..., c_n) = c: operators whose operands are all constants are computed at compile time.

`Quantize` and `Dequantize` of constants stay: in a model that arrives quantized they are its weights. Results that
would be far greater than their operands stay unevaluated, too.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Sweep, Value, rewrite
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Const, Dequantize, Input, Quantize

GROWTH_LIMIT = 1 << 20
"""Bytes beyond which a folded constant may not exceed its operands."""


def fold_constants(graph: Graph, declined: Declined | None = None) -> Graph:
    """Replace operators on constants by their results."""
    return rewrite(graph, [fold_constant], declined)


def fold_constant(v: Value, sweep: Sweep) -> Value | None:
    """A value computed from constants alone, as a constant."""
    if not v.inputs or isinstance(v.op, (Const, Input, Quantize, Dequantize)):
        return None
    if not all(isinstance(i.op, Const) for i in v.inputs):
        return None
    if v.type.nbytes > GROWTH_LIMIT and v.type.nbytes > 2 * sum(i.type.nbytes for i in v.inputs):
        return sweep.declined(v, f"folding would create a constant of {v.type.nbytes} bytes")
    arrays = [i.op.data for i in v.inputs if isinstance(i.op, Const)]
    data = np.asarray(compute(v, arrays, np))
    return Value(Const(data.astype(v.type.dtype.numpy, copy=False), v.type), (), v.type, v.name)
