"""x @ W = conv_1x1(x, W^T): a dense layer takes the same road as a convolution.

x [.., K] is seen as an image [1, 1, rows, K] and W [K, N] as N filters [1, 1, K].
"""

from __future__ import annotations

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Conv, MatMul, Reshape, Transpose

from .constants import is_weights


def dense_to_conv(graph: Graph, declined: Declined | None = None) -> Graph:
    """Write every product with a constant matrix as a 1x1 convolution."""
    return rewrite(graph, RULES, declined)


def matmul_to_conv(v: Value, sweep: Sweep) -> Value | None:
    """MatMul by a constant [K, N] as Conv; its result reshaped back unless it has four dimensions anyway."""
    match v:
        case Value(MatMul(), (x, w)) if v.type.dtype.is_float and is_weights(w) and not is_weights(x):
            if len(w.shape) != 2:
                return sweep.declined(v, f"constant operand of shape {w.shape} is no matrix")
            k, n = w.shape
            transposed = apply(Transpose((1, 0)), w, name=f"{w.name}.t")
            filters = apply(Reshape((n, 1, 1, k)), transposed, name=w.name)
            rows = x.shape[:3] if len(x.shape) == 4 else (1, 1, x.type.size // k)
            image = apply(Reshape((*rows, k)), x, name=f"{x.name}.rows")
            return apply(Reshape(v.shape), apply(Conv(), image, filters, name=v.name), name=f"{v.name}.dense")
    return None


RULES: tuple[Rule, ...] = (matmul_to_conv,)
