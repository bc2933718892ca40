"""transpose(op(input)) = op(transpose(input)): preprocessing inside the model is done in the layout that follows it.

A transposition that could sink no further, and stands behind pointwise operators on a graph input, moves up to that
input; the operators then meet the convolution, which absorbs them. Run after `sink_transposes`, not beside it.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Declined, Graph, Rule, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, Input, Op, Pad, Transpose
from qcompiler.ir.pointwise import Binary, Unary

from .axes import Axes
from .sink_transposes import transposed_constant


def hoist_transposes(graph: Graph, declined: Declined | None = None) -> Graph:
    """Move transpositions behind preprocessing up to the graph inputs."""
    return rewrite(graph, RULES, declined)


def hoist_transpose(v: Value, sweep: Sweep) -> Value | None:
    """The transposition moves before a pointwise operator on a chain that starts at an input."""
    match v:
        case Value(Transpose(perm), (Value(_, (x, *constants)) as u,)) if _is_preprocessing(u) and sweep.single_use(u):
            up = apply(Transpose(perm), x, name=f"{x.name}.t")
            return apply(_permuted(u.op, perm), up, *(transposed_constant(c, perm) for c in constants), name=u.name)
    return None


def _is_preprocessing(v: Value) -> bool:
    match v:
        case Value(Unary() | Cast() | Pad(), (x,)):
            return isinstance(x.op, Input) or _is_preprocessing(x)
        case Value(Binary(), (x, Value(Const()))) if x.shape == v.shape:
            return isinstance(x.op, Input) or _is_preprocessing(x)
    return False


def _permuted(op: Op, perm: Axes) -> Op:
    return replace(op, pads=tuple(op.pads[p] for p in perm)) if isinstance(op, Pad) else op


RULES: tuple[Rule, ...] = (hoist_transpose,)
