"""Pooling over windows (1-D and 2-D) and over whole images."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.frontend.convolution import Pairs, as_2d, from_2d, resolve_pads, spatial, spatial_rank
from qcompiler.frontend.node import Importers, Node
from qcompiler.ir import ops
from qcompiler.ir.graph import Value

IMPORTERS = Importers()


@IMPORTERS.register("MaxPool")
def max_pool(node: Node, x: Value) -> Value:
    """Maximum over windows; the indices (a second output) are not supported."""
    rank = spatial_rank(node, x)
    x2 = as_2d(node, x)
    kernel, strides, dilations, _, pads = _window(node, x2, rank)
    return from_2d(node, node.emit(ops.MaxPool(kernel, strides, pads, dilations), x2), rank)


@IMPORTERS.register("AveragePool")
def average_pool(node: Node, x: Value) -> Value:
    """Mean over windows, padding counted or not."""
    rank = spatial_rank(node, x)
    x2 = as_2d(node, x)
    kernel, strides, dilations, stated, pads = _window(node, x2, rank)
    counted = stated if node.integer("count_include_pad") else ((0, 0), (0, 0))
    return from_2d(node, node.emit(ops.AveragePool(kernel, strides, pads, dilations, counted), x2), rank)


@IMPORTERS.register("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, x: Value) -> Value:
    """Mean or maximum over all spatial positions."""
    kind = ops.Reduction.mean if node.op == "GlobalAveragePool" else ops.Reduction.max
    return node.channels_first(node.emit(ops.Reduce(kind, tuple(range(1, x.type.rank - 1))), node.channels_last(x)))


Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], Pairs, Pairs]


def _window(node: Node, x: Value, rank: int) -> Window:
    """Kernel, strides, dilations, pads as stated, and pads with what ceil_mode adds at the end."""
    kernel, strides = spatial(node, "kernel_shape", rank), spatial(node, "strides", rank)
    dilations = spatial(node, "dilations", rank) if "dilations" in node.attributes else (1, 1)
    stated = resolve_pads(node, x.shape[1:3], kernel, strides, dilations)
    if not node.attributes.get("ceil_mode"):
        return kernel, strides, dilations, stated, stated
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations)]
    return kernel, strides, dilations, stated, tuple(map(_ceiled, x.shape[1:3], reach, strides, stated))


def _ceiled(size: int, reach: int, stride: int, pads: Sequence[int]) -> tuple[int, int]:
    """`pads` grown at the end for a last partial window, unless that would begin in the padding behind the image."""
    before, after = pads
    count = -(-(size + before + after - reach) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return before, max(after, (count - 1) * stride + reach - size - before)
