"""Runs a memory plan over a real byte array: every kernel reads and writes exactly where the plan says.

Convolutions read their padding from memory, so a missing halo, an overlap or a wrong view gives wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import as_strided

from qcompiler.backends.reference.operators import compute
from qcompiler.ir.graph import Value, apply
from qcompiler.ir.integer import IntConv, IntSumPool
from qcompiler.ir.ops import Const, Input
from qcompiler.passes.layouts import Layout, Space
from qcompiler.passes.plan_memory import Copy, Fill, Plan, Run


class MemoryModel:
    """The arena, poisoned with random bytes, and the caller's buffers."""

    def __init__(self, plan: Plan, feeds: Mapping[str, np.ndarray], seed: int = 0) -> None:
        self.plan = plan
        self.arena = np.random.default_rng(seed).integers(0, 256, plan.arena_size).astype(np.uint8)
        self.inputs = [np.ascontiguousarray(feeds[v.name]).view(np.uint8).ravel().copy() for v in plan.inputs]
        self.outputs = [np.zeros(v.type.nbytes, np.uint8) for v in plan.outputs]

    def run(self) -> list[np.ndarray]:
        before = [x.copy() for x in self.inputs]
        for action in self.plan.actions:
            match action:
                case Run():
                    self._run(action)
                case Copy():
                    source = self.view(action.source, action.shape, action.value)
                    self.view(action.target, action.shape, action.value)[...] = source.copy()
                    if action.trailing is not None:
                        behind = (*action.shape[:-1], 1), action.target.moved((*[0] * (len(action.shape) - 1), action.shape[-1]))
                        self.view(behind[1], behind[0], action.value)[...] = action.trailing
                case Fill():
                    self.view(action.target, action.shape, action.value)[...] = action.q
        assert all((a == b).all() for a, b in zip(before, self.inputs)), "the plan writes to its inputs"
        return [x.view(v.type.dtype.numpy).reshape(v.shape) for x, v in zip(self.outputs, self.plan.outputs)]

    def view(self, layout: Layout, shape: tuple[int, ...], value: Value) -> np.ndarray:
        dtype = value.type.dtype.numpy
        match layout.buffer.space:
            case Space.constant:
                assert isinstance(value.op, Const)
                memory = np.ascontiguousarray(value.op.data).view(np.uint8).ravel()
            case Space.input:
                memory = self.inputs[layout.buffer.index]
            case Space.output:
                memory = self.outputs[layout.buffer.index]
            case Space.arena:
                memory = self.arena
        ends = [layout.offset + sum(s * (d - 1) for d, s in zip(shape, layout.strides) if sign * s > 0) for sign in (1, -1)]
        assert 0 <= ends[1] <= ends[0] <= memory.size - dtype.itemsize, "address out of the buffer"
        return as_strided(memory[layout.offset :].view(np.uint8)[: dtype.itemsize].view(dtype), shape, layout.strides)

    def _run(self, action: Run) -> None:
        step = action.step
        values = {v: self.view(at, v.shape, v).copy() for v, at in zip(step.operands, action.operands, strict=True)}
        for v in step.values:
            if isinstance(v.op, (IntConv, IntSumPool)):
                assert action.operands[0].in_arena or v.op.pads == ((0, 0), (0, 0))
                values[v] = self._window(v, action.operands[0])
            else:
                values[v] = compute(v, [i.op.data if isinstance(i.op, Const) else values[i] for i in v.inputs])
        self.view(action.result, step.result.shape, step.result)[...] = values[step.result]

    def _window(self, v: Value, at: Layout) -> np.ndarray:
        """The same operator without pads over an operand that includes its border as it lies in memory."""
        x, *constants = v.inputs
        kernel = constants[0].shape[1:3] if constants else v.op.kernel
        ends = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(v.shape[1:3], v.op.strides, v.op.dilations, kernel)]
        (top, _), (left, _) = v.op.pads
        shape = (x.shape[0], *ends, x.shape[3])
        memory = self.view(at.moved((0, -top, -left, 0)), shape, x)
        operand = apply(Input(x.type.with_shape(*shape)), name="x")
        bare = apply(replace(v.op, pads=((0, 0), (0, 0))), operand, *constants, name=v.name)
        return compute(bare, [memory, *(c.op.data for c in constants)])
