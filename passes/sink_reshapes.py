"""f(reshape(x)) = reshape(f(x)): reshapes move behind pointwise operators, so that these stand next to what they fuse with."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, Conv, Dequantize, Quantize, Reshape
from qcompiler.ir.pointwise import Add, Binary, Unary
from qcompiler.ir.sequence import Normalize

from .axes import Axes, reshape_constant


def sink_reshapes(graph: Graph, declined: Declined | None = None) -> Graph:
    """Move reshapes toward the outputs."""
    return rewrite(graph, RULES, declined)


def sink_reshape(v: Value, sweep: Sweep) -> Value | None:
    """op(reshape(x)) = reshape(op(x)) for pointwise operators, with constants reshaped, too."""
    if not v.inputs or not isinstance(v.inputs[0].op, Reshape) or not isinstance(v.op, (Unary, Binary, Cast, Quantize, Dequantize)):
        return None
    x = v.inputs[0].inputs[0]
    if isinstance(x.op, Const) or v.shape != v.inputs[0].shape or 0 in v.shape or any(t.quant and t.quant.axis is not None for t in (v.type, x.type)):
        return None
    others = [_reshaped_back(y, v.shape, x.shape) for y in v.inputs[1:]]
    operands = [y for y in others if y is not None]
    if len(operands) != len(others):
        return None
    return apply(Reshape(v.shape), apply(v.op, x, *operands, name=v.name), name=f"{v.name}.r")


def _reshaped_back(y: Value, after: Axes, before: Axes) -> Value | None:
    """What stands beside a tensor of shape `before` as `y` does beside its reshape to `after`: y is reshaped itself, or constant."""
    match y.op:
        case Reshape() if y.shape == after and y.inputs[0].shape == before:
            return y.inputs[0]
        case Const(data) if y.type.size == 1:
            return replace(y, op=Const(data.reshape(())), type=y.type.with_shape())
        case Const(data) if y.type.quant is None:
            moved = reshape_constant(data, before, after)
            return Value(Const(moved), (), y.type.with_shape(*moved.shape), y.name)
    return None


def sink_below_normalization(v: Value, sweep: Sweep) -> Value | None:
    """normalize(reshape(x)) = reshape(normalize(x)) where channels stay what they are."""
    match v:
        case Value(op=Normalize(), inputs=(Value(op=Reshape(), inputs=(x,)), *parameters)) if x.shape[-1:] == v.shape[-1:]:
            return apply(Reshape(v.shape), apply(v.op, x, *parameters, name=v.name), name=f"{v.name}.r")
    return None


def add_where_dense_layers_are(v: Value, sweep: Sweep) -> Value | None:
    """x + reshape(conv) = reshape(reshape(x) + conv): a residual stream takes the shape in which dense layers leave their results."""
    match v:
        case Value(op=Add(), inputs=(x, Value(op=Reshape(), inputs=(Value(op=Conv()) as y,))) | (Value(op=Reshape(), inputs=(Value(op=Conv()) as y,)), x)):
            if isinstance(x.op, (Const, Reshape)) or x.shape != v.shape or y.shape[-1:] != v.shape[-1:]:
                return None
            return apply(Reshape(v.shape), apply(Add(), apply(Reshape(y.shape), x, name=f"{x.name}.rows"), y, name=v.name), name=f"{v.name}.r")
    return None


RULES: tuple[Rule, ...] = (sink_reshape, sink_below_normalization, add_where_dense_layers_are)
