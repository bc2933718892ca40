"""An integer graph compiled in this process, kernel by kernel as the memory plan says, and run on real buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm.codegen import jit
from qcompiler.backends.llvm.dsl import I32, PTR, Kernel
from qcompiler.backends.llvm.kernels.table import plan as plan_action
from qcompiler.backends.llvm.kernels.table import scratch_of
from qcompiler.backends.llvm.launch import Address, Data
from qcompiler.backends.llvm.target import TARGETS, Target
from qcompiler.ir.graph import Graph
from qcompiler.passes.layouts import Space
from qcompiler.passes.partition import partition
from qcompiler.passes.plan_memory import plan_memory

GUARD = 64


def here(name: str) -> Target:
    """The row called `name`, by meaning where this CPU lacks it."""
    target = TARGETS[name]
    return target if target.runs_here else target.generic()


class KernelProgram:
    """`run(feeds)` gives the outputs; the bytes around every buffer are checked."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self.target = target
        self.plan = plan_memory(graph, partition(graph), scratch_of(target))
        self.launches = [launch for action in self.plan.actions for launch in plan_action(action, target)]
        self.module = ir.Module("test")
        self.functions: dict[tuple[object, object], ir.Function] = {}
        self._emit()
        (self.function,) = jit(self.module, target, ["run"])

    def _emit(self) -> None:
        emitted = [self._function(launch) for launch in self.launches]
        names = ["arena", *(f"in{i}" for i in range(len(self.plan.inputs))), *(f"out{i}" for i in range(len(self.plan.outputs)))]
        main = Kernel(self.module, self.target, "run", names, I32, internal=False)
        for launch, function in zip(self.launches, emitted):
            main.b.call(function, [self._argument(main, a) for a in launch.arguments])
        main.ret(0)

    def _function(self, launch) -> ir.Function:
        key = (launch.emit, launch.config)
        if key not in self.functions:
            k = Kernel(self.module, self.target, self.module.get_unique_name(launch.emit.__name__), launch.parameters)
            launch.emit(k, launch.config)
            self.functions[key] = k.ret()
        return self.functions[key]

    def _argument(self, k: Kernel, argument) -> object:
        match argument:
            case Address(buffer, offset):
                number = {Space.arena: 0, Space.input: 1 + buffer.index, Space.output: 1 + len(self.plan.inputs) + buffer.index}[buffer.space]
                return (k.parameters[number] + offset).ir
            case Data(content):
                return k.constant(np.frombuffer(content, np.uint8)).ir
        return ir.Constant(PTR, None)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        sizes = [self.plan.arena_size, *(v.type.nbytes for v in (*self.plan.inputs, *self.plan.outputs))]
        buffers = [Guarded(size, seed) for seed, size in enumerate(sizes)]
        for v, buffer in zip(self.plan.inputs, buffers[1:]):
            buffer.bytes[:] = np.ascontiguousarray(feeds[v.name]).view(np.uint8).ravel()
        before = [b.bytes.copy() for b in buffers]
        assert self.function(*(b.address for b in buffers)) == 0
        for n, buffer in enumerate(buffers):
            assert buffer.intact, f"a kernel writes outside of buffer {n}"
            assert not 1 <= n <= len(self.plan.inputs) or (before[n] == buffer.bytes).all()
        outputs = buffers[1 + len(self.plan.inputs) :]
        return [b.bytes.view(v.type.dtype.numpy).reshape(v.shape) for b, v in zip(outputs, self.plan.outputs)]


class Guarded:
    """`size` random bytes aligned to 64, with known bytes before and after."""

    def __init__(self, size: int, seed: int) -> None:
        self.memory = np.random.default_rng(seed).integers(0, 256, size + 3 * GUARD).astype(np.uint8)
        start = -self.memory.ctypes.data % 64 + GUARD
        self.bytes = self.memory[start : start + size]
        self.before, self.after = self.memory[start - GUARD : start], self.memory[start + size : start + size + 16]
        self.expected = self.before.copy(), self.after.copy()

    @property
    def address(self) -> int:
        return int(self.bytes.ctypes.data)

    @property
    def intact(self) -> bool:
        return all((a == b).all() for a, b in zip(self.expected, (self.before, self.after)))
