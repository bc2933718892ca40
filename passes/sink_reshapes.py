"""f(reshape(x)) = reshape(f(x)): reshapes move behind pointwise operators, so that these stand next to what they fuse with."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, Dequantize, Quantize, Reshape
from qcompiler.ir.pointwise import Binary, Unary

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


RULES: tuple[Rule, ...] = (sink_reshape,)
