"""f(reshape(x)) = reshape(f(x)): reshapes move behind pointwise operators, so that these stand next to what they fuse with."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, Conv, Dequantize, Integers, Quantize, Reshape, Slice
from qcompiler.ir.pointwise import Add, Binary, Unary
from qcompiler.ir.sequence import Normalize

from .axes import Axes, reshape_constant, reshape_groups


def sink_reshapes(graph: Graph, declined: Declined | None = None) -> Graph:
    """Move reshapes toward the outputs."""
    return rewrite(graph, RULES, declined)


def sink_reshape(v: Value, sweep: Sweep) -> Value | None:
    """op(reshape(x)) = reshape(op(x)) for pointwise operators, with constants reshaped, too."""
    if not v.inputs or not isinstance(v.inputs[0].op, Reshape) or not isinstance(v.op, (Unary, Binary, Cast, Quantize, Dequantize, Integers)):
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
        case (
            Value(op=Add(), inputs=(x, Value(op=Reshape(), inputs=(Value(op=Conv()) as y,))))
            | Value(op=Add(), inputs=(Value(op=Reshape(), inputs=(Value(op=Conv()) as y,)), x))
        ):
            if isinstance(x.op, (Const, Reshape)) or x.shape != v.shape or y.shape[-1:] != v.shape[-1:]:
                return None
            return apply(Reshape(v.shape), apply(Add(), apply(Reshape(y.shape), x, name=f"{x.name}.rows"), y, name=v.name), name=f"{v.name}.r")
    return None


def slice_before_reshape(v: Value, sweep: Sweep) -> Value | None:
    """slice(reshape(x)) = reshape(slice(x)) where the axis that is cut is the outermost of those that one axis of x was split into:
    queries, keys and values are parts of the channels of the dense layer that makes all three."""
    match v:
        case Value(op=Slice() as op, inputs=(Value(op=Reshape(), inputs=(x,)) as r,)) if v.type.quant is None and 0 not in v.shape:
            cut = [i for i, d in enumerate(r.shape) if v.shape[i] != d]
            if len(cut) != 1 or op.steps[cut[0]] != 1 or any(s != 1 for s in op.steps):
                return None
            split = next(((a, b) for a, b in reshape_groups(x.shape, r.shape) if cut[0] in b), None)
            if split is None or len(split[0]) != 1 or split[1][0] != cut[0]:
                return None
            inner = x.shape[split[0][0]] // r.shape[cut[0]]
            starts, stops = [0] * len(x.shape), list(x.shape)
            starts[split[0][0]], stops[split[0][0]] = op.starts[cut[0]] * inner, op.stops[cut[0]] * inner
            part = apply(Slice(tuple(starts), tuple(stops), (1,) * len(x.shape)), x, name=v.name)
            return apply(Reshape(v.shape), part, name=f"{v.name}.r")
    return None


RULES: tuple[Rule, ...] = (slice_before_reshape, sink_reshape, sink_below_normalization, add_where_dense_layers_are)
