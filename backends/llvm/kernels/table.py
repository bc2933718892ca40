"""Which planner makes the launches of which operator. To add an operator: its file here, and one row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qcompiler.backends.llvm.launch import Launch, Planner
from qcompiler.backends.llvm.target import Target
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import (
    Clamp,
    IntAdd,
    IntAttention,
    IntCast,
    IntConv,
    IntMatMul,
    IntMax,
    IntMin,
    IntMul,
    IntNarrow,
    IntNormalize,
    IntReduceSum,
    IntResize,
    IntRotate,
    IntSoftmax,
    IntSum,
    IntSumPool,
    Lookup,
)
from qcompiler.ir.ops import ArgMax, Const, Gather, Integers, MaxPool, Op, Pad, Reduce, Resize
from qcompiler.ir.types import DType
from qcompiler.passes.partition import Step
from qcompiler.passes.plan_memory import Action, Copy, Fill, Run

from .attention import plan_attention
from .attention_plan import attention_scratch
from .cast import plan_cast, plan_integers
from .elementwise import plan_lookup, plan_mul, plan_narrow, plan_pointwise, plan_sum
from .gather import plan_gather
from .matmul import plan_matmul
from .movement import plan_copy, plan_fill, plan_take
from .normalize import plan_normalize
from .pool import plan_max_pool, plan_sum_pool
from .reduce import plan_argmax, plan_reduce, plan_reduce_sum
from .resize import plan_resize
from .rotate import plan_rotate
from .select import plan_convolution
from .softmax import plan_softmax
from .unpack import unpack_scratch

PLANNERS: dict[type[Op], Planner] = {
    IntConv: plan_convolution,
    IntSum: plan_sum,
    IntMul: plan_mul,
    IntMatMul: plan_matmul,
    IntMax: plan_pointwise,
    IntMin: plan_pointwise,
    IntAdd: plan_pointwise,
    Clamp: plan_pointwise,
    Lookup: plan_lookup,
    MaxPool: plan_max_pool,
    IntSumPool: plan_sum_pool,
    IntReduceSum: plan_reduce_sum,
    Reduce: plan_reduce,
    ArgMax: plan_argmax,
    IntResize: plan_resize,
    IntSoftmax: plan_softmax,
    IntAttention: plan_attention,
    IntNormalize: plan_normalize,
    IntRotate: plan_rotate,
    IntCast: plan_cast,
    Integers: plan_integers,
    IntNarrow: plan_narrow,
    Gather: plan_gather,
    Pad: plan_take,
    Resize: plan_take,
}


def scratch_of(target: Target) -> Callable[[Step], int]:
    """The bytes of working memory of each step's kernel, for `plan_memory`."""

    def scratch(step: Step) -> int:
        return attention_scratch(step, target) if isinstance(step.producer.op, IntAttention) else unpack_scratch(step, target)

    return scratch


NARROW = (IntMul, IntMatMul, IntResize, IntSoftmax, Lookup)
"""What takes operands of 8 bits alone."""


def plan(action: Action, target: Target) -> Iterable[Launch]:
    """The launches of one action of the memory plan."""
    match action:
        case Copy():
            return plan_copy(action, target)
        case Fill():
            return plan_fill(action, target)
        case Run(step):
            planner = PLANNERS.get(type(step.producer.op))
            if planner is None:
                raise UnsupportedModel([f"{type(step.producer.op).__name__} '{step.producer.name}' has no kernel on target '{target.name}'"])
            if problem := _too_wide(step.producer):
                raise UnsupportedModel([problem])
            return planner(action, target)


def _too_wide(v: Value) -> str | None:
    """What is wrong with an operand of 16 bits, if anything."""
    wide = [x for x in v.inputs if x.type.dtype is DType.i16 and not isinstance(x.op, Const)]
    if not wide or not isinstance(v.op, NARROW):
        return None
    return f"{type(v.op).__name__} '{v.name}' expects operands of 8 bits, found '{wide[0].name}' of 16; requantize it first"
