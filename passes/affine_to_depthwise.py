"""x * s + t = depthwise_1x1(x; s, t): an affine map per channel that nothing absorbed is a convolution of its own.

So batch normalization before an activation (DenseNet, pre-activation ResNet) is quantized and compiled like any other layer.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value, apply, substitute
from qcompiler.ir.ops import Conv, Reshape

from .constants import same_dtype
from .fold_affine import Affine, affine_of


def affine_to_depthwise(graph: Graph, declined: Declined | None = None) -> Graph:
    """Write the remaining Mul and Add by a constant per channel as depthwise convolutions.

    What follows a convolution made just now is left alone: `fold_affine` makes it part of that.
    """
    waiting = set[Value]()

    def convert(v: Value) -> Value:
        found = affine_of(v)
        if found is None or (found[1].is_uniform and found[0] not in waiting):
            return v
        result = v if found[0] in waiting else to_depthwise(*found, v)
        waiting.add(result)
        return result

    return substitute(graph, convert)


def to_depthwise(x: Value, f: Affine, v: Value) -> Value:
    """f(x) as a depthwise 1x1 convolution, of the shape and name of `v`."""
    c = x.shape[-1]
    image = x if len(x.shape) == 4 else apply(Reshape((1, 1, x.type.size // c, c)), x, name=f"{x.name}.rows")
    weights = same_dtype(np.broadcast_to(f.scale, (c,)).reshape(c, 1, 1, 1), x, f"{v.name}.scale")
    bias = [] if f.is_scale else [same_dtype(np.broadcast_to(f.shift, (c,)), x, f"{v.name}.shift")]
    conv = apply(Conv(groups=c), image, weights, *bias, name=v.name)
    return conv if conv.shape == v.shape else apply(Reshape(v.shape), conv, name=f"{v.name}.affine")
