"""Which kernel computes a convolution."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.passes.plan_memory import Run

from .conv_plan import is_depthwise, plan_conv
from .depthwise_plan import plan_depthwise


def plan_convolution(run: Run, target: Target) -> Iterable[Launch]:
    """The launches of a step that starts with an `IntConv`."""
    return plan_depthwise(run, target) if is_depthwise(run.step.producer) else plan_conv(run, target)
