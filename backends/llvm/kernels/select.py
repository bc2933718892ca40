"""Which kernel computes a convolution."""

from __future__ import annotations

from collections.abc import Iterable

from qcompiler.backends.llvm.launch import Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.passes.plan_memory import Run

from .conv_plan import conv_shape, plan_conv
from .depthwise_plan import plan_depthwise


def plan_convolution(run: Run, target: Target) -> Iterable[Launch]:
    """The launches of a step that starts with an `IntConv`."""
    return plan_depthwise(run, target) if conv_shape(run).depthwise else plan_conv(run, target)
