"""The first step of a program that is given integers: they must lie in their intervals, or nothing is computed.

    status = 0, or OUT_OF_RANGE + 256 i        inputs[i] is the first with an element outside of [low, high]

All elements are compared before anything is decided: no branch depends on where the bad one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.runtime.artifact import OUT_OF_RANGE, Tensor

from . import instrs
from .dsl import I32, PTR, Index, Kernel, Ptr, Val
from .target import Target


def emit_check(module: Any, target: Target, prefix: str, inputs: Sequence[Tensor]) -> Any | None:
    """int check(inputs); None where no input has an interval."""
    bounded = [(i, t) for i, t in enumerate(inputs) if t.bounded]
    if not bounded:
        return None
    k = Kernel(module, target, f"{prefix}_check", ("inputs",), I32)
    status: Any = ir.Constant(I32, 0)
    for i, t in reversed(bounded):
        pointer = Ptr(k, k.b.load((k.parameters[0] + 8 * i).ir, typ=PTR))
        status = k.b.select(_outside(k, pointer, t), ir.Constant(I32, OUT_OF_RANGE + 256 * i), status)
    k.b.ret(status)
    return k.function


def emit_guard(k: Kernel, check: Any | None, inputs: Ptr) -> None:
    """Return the status of `check` from the function that `k` writes, unless it is 0."""
    if check is None:
        return
    status = k.b.call(check, [inputs.ir])
    refused, accepted = (k.function.append_basic_block(name) for name in ("refused", "accepted"))
    k.b.cbranch(k.b.icmp_signed("!=", status, ir.Constant(I32, 0)), refused, accepted)
    k.b.position_at_end(refused)
    k.b.ret(status)
    k.b.position_at_end(accepted)


def _outside(k: Kernel, p: Ptr, t: Tensor) -> Any:
    """Whether an element of `t`, which lies at `p`, is outside of its interval: whole vectors, the last moved back inside."""
    size = np.dtype(t.storage).itemsize
    lanes = k.target.vector_bytes // size if t.size * size >= k.target.vector_bytes else 1
    kind = instrs.vector_type((lanes, 8 * size))
    low, high = instrs.splat(kind, t.interval[0]), instrs.splat(kind, t.interval[1])
    with k.loop(-(-t.size // lanes), [Val(k, (ir.Constant(kind, None),), 8 * size)]) as (i, carried):
        start = i * lanes
        at = start.minimum(t.size - lanes) * size if isinstance(start, Index) else start * size
        x = k.b.load((p + at).ir, align=1, typ=kind)
        wrong = k.b.or_(k.b.icmp_signed("<", x, low), k.b.icmp_signed(">", x, high))
        carried[0] = Val(k, (k.b.or_(carried[0].regs[0], k.b.sext(wrong, kind)),), 8 * size)
    return k.b.icmp_signed("!=", _any(k, carried[0].regs[0]), ir.Constant(kind.element, 0))


def _any(k: Kernel, x: Any) -> Any:
    """All lanes or-ed together."""
    name = f"llvm.vector.reduce.or.v{x.type.count}i{x.type.element.width}"
    function = k.module.globals.get(name) or ir.Function(k.module, ir.FunctionType(x.type.element, [x.type]), name)
    return k.b.call(function, [x])
