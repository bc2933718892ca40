"""Which planner makes the launches of which operator. To add an operator: its file here, and one row."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.llvm.launch import Launch, Planner
from qcompiler.backends.llvm.target import Target
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import Gather, Op, Pad, Resize
from qcompiler.passes.plan_memory import Action, Copy, Fill, Run

from .movement import plan_copy, plan_fill, plan_take
from .select import plan_convolution

PLANNERS: dict[type[Op], Planner] = {
    IntConv: plan_convolution,
    Gather: plan_take,
    Pad: plan_take,
    Resize: plan_take,
}


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
            return planner(action, target)
