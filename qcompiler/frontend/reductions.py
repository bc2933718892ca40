"""Reductions over axes, softmax and argmax."""

from __future__ import annotations

from math import prod

from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import ArgMax, Gather, Reduce, Reduction, Reshape, Softmax

IMPORTERS = Importers()

_KINDS = {"ReduceMean": Reduction.mean, "ReduceSum": Reduction.sum, "ReduceMax": Reduction.max, "ReduceMin": Reduction.min}


@IMPORTERS.register(*_KINDS)
def reduction(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Mean, sum, maximum or minimum over axes (an attribute, later an operand; all where none are given)."""
    return _reduce(node, _KINDS[node.op], x, axes)


@IMPORTERS.register("ReduceL1")
def reduce_l1(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Sum of absolute values."""
    return _reduce(node, Reduction.sum, node.emit(pw.Abs(), x), axes)


@IMPORTERS.register("ReduceSumSquare")
def reduce_sum_square(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Sum of squares."""
    return _reduce(node, Reduction.sum, node.emit(pw.Mul(), x, x), axes)


@IMPORTERS.register("ReduceL2")
def reduce_l2(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Square root of the sum of squares."""
    return node.emit(pw.Sqrt(), _reduce(node, Reduction.sum, node.emit(pw.Mul(), x, x), axes))


@IMPORTERS.register("ReduceLogSum")
def reduce_log_sum(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Logarithm of the sum."""
    return node.emit(pw.Log(), _reduce(node, Reduction.sum, x, axes))


@IMPORTERS.register("ReduceLogSumExp")
def reduce_log_sum_exp(node: Node, x: Value, axes: Value | None = None) -> Value:
    """Logarithm of the sum of exponentials, the greatest element taken out before: m + log(sum(exp(x - m)))."""
    given = node.static_integers(axes, "axes") if axes is not None else node.integers("axes")
    wanted = tuple(sorted({node.axis(x.type.rank, a, "axes") for a in given or range(x.type.rank)}))
    if not given and node.attributes.get("noop_with_empty_axes"):
        return x
    greatest = node.emit(Reduce(Reduction.max, wanted), x)
    total = _reduce(node, Reduction.sum, node.emit(pw.Exp(), node.emit(pw.Sub(), x, greatest)), axes)
    kept = node.emit(Reduce(Reduction.max, wanted, bool(node.integer("keepdims"))), x)
    return node.emit(pw.Add(), node.emit(pw.Log(), total), kept)


def _reduce(node: Node, kind: Reduction, x: Value, axes: Value | None) -> Value:
    """`kind` over the node's axes; with no axes everything, or nothing where noop_with_empty_axes says so."""
    given = node.static_integers(axes, "axes") if axes is not None else node.integers("axes")
    if not given and node.attributes.get("noop_with_empty_axes"):
        return x
    wanted = sorted({node.axis(x.type.rank, a, "axes") for a in given}) if given else range(x.type.rank)
    return node.emit(Reduce(kind, tuple(wanted), bool(node.integer("keepdims"))), x)


@IMPORTERS.register("Softmax", "LogSoftmax")
def softmax(node: Node, x: Value) -> Value:
    """Along one axis; before opset 13 along all axes from `axis` on, taken as one."""
    axis, log = node.axis(x.type.rank), node.op == "LogSoftmax"
    if node.opset >= 13 or prod(x.shape[axis + 1 :]) == 1:
        return node.emit(Softmax(axis, log), x)
    flat = node.emit(Reshape((prod(x.shape[:axis]), prod(x.shape[axis:]))), x)
    return node.emit(Reshape(x.shape), node.emit(Softmax(1, log), flat))


@IMPORTERS.register("ArgMax")
def arg_max(node: Node, x: Value) -> Value:
    """Index of the greatest element along an axis."""
    last = bool(node.attributes.get("select_last_index"))
    return node.emit(ArgMax(node.axis(x.type.rank), bool(node.integer("keepdims")), last), x)


@IMPORTERS.register("TopK")
def top_k(node: Node, x: Value, k: Value) -> tuple[Value, Value]:
    """The greatest elements along an axis, and their indices. The elements themselves are had where there is one row to take them from."""
    if not node.attributes.get("largest", 1):
        raise Unsupported("asks for the least elements; negate the operand and ask for the greatest")
    axis, (count,) = node.axis(x.type.rank), node.static_integers(k, "K")
    indices = node.emit(ArgMax(axis, k=count), x)
    if prod(x.shape) != x.shape[axis]:
        raise Unsupported(f"takes the greatest of several rows ({x.shape} along axis {axis}); only those of one row are supported")
    return node.emit(Gather(axis), x, node.emit(Reshape((count,)), indices)), indices
