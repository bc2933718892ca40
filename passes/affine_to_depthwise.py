"""x * s + t = depthwise_1x1(x; s, t): an affine map per channel that nothing absorbed is a convolution of its own.

So batch normalization before an activation (DenseNet, pre-activation ResNet) is quantized and compiled like any other layer.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Conv, Reshape

from .constants import same_dtype
from .fold_affine import affine_of


def affine_to_depthwise(graph: Graph, declined: Declined | None = None) -> Graph:
    """Write the remaining Mul and Add by a constant per channel as depthwise convolutions."""
    return rewrite(graph, RULES, declined)


def to_depthwise(v: Value, sweep: Sweep) -> Value | None:
    """Mul or Add by a vector over the last axis as a depthwise 1x1 convolution; numbers are left to `map_unary`."""
    found = affine_of(v)
    if found is None or found[1].is_uniform or not v.type.dtype.is_float:
        return None
    x, f = found
    c = x.shape[-1]
    image = x if len(x.shape) == 4 else apply(Reshape((1, 1, x.type.size // c, c)), x, name=f"{x.name}.rows")
    weights = same_dtype(np.broadcast_to(f.scale, (c,)).reshape(c, 1, 1, 1), x, f"{v.name}.scale")
    bias = [] if f.is_scale else [same_dtype(np.broadcast_to(f.shift, (c,)), x, f"{v.name}.shift")]
    conv = apply(Conv(groups=c), image, weights, *bias, name=v.name)
    return conv if conv.shape == v.shape else apply(Reshape(v.shape), conv, name=f"{v.name}.affine")


RULES: tuple[Rule, ...] = (to_depthwise,)
