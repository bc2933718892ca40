"""Driver: an integer graph to one relocatable object that holds the code, the weights and the two entry points.

    steps = partition(graph); plan = plan_memory(graph, steps); launches = plan of every action
    <prefix>_run(inputs, outputs, arena)         calls the kernels in order
    <prefix>_run_f32(inputs, outputs, arena)     the same between quantize and dequantize

Kernels are internal functions, shared by launches of equal configuration. Nothing outside is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Quantize
from qcompiler.passes.layouts import Buffer, Space
from qcompiler.passes.partition import Step, partition
from qcompiler.passes.plan_memory import Plan, plan_memory
from qcompiler.runtime.artifact import Interface, Tensor

from . import weights
from .boundary import Staged, emit_float_entry, stage
from .codegen import emit_assembly, emit_object, optimized
from .dsl import I32, PTR, Kernel, Ptr
from .kernels.table import plan as plan_action
from .launch import Address, Argument, Data, Launch
from .target import Target


@dataclass(frozen=True, eq=False)
class ObjectCode:
    """A compiled program: the object file and what a caller must know."""

    object: bytes
    interface: Interface
    plan: Plan
    launches: tuple[Launch, ...]
    symbols: tuple[str, ...]
    """Kernel function of each launch."""
    target: Target
    _module: Any = field(repr=False)

    @cached_property
    def assembly(self) -> str:
        """The assembler text of the same code, weights left out."""
        return emit_assembly(self._module, self.target)

    @cached_property
    def llvm(self) -> str:
        """The optimized LLVM module."""
        return str(self._module)


def compile_object(graph: Graph, target: Target, prefix: str = "model", steps: Sequence[Step] | None = None) -> ObjectCode:
    """Compile the integer `graph` for `target`; C symbols begin with `prefix`. Raises UnsupportedModel where a kernel is missing."""
    return Linker(target, prefix).link(graph, partition(graph) if steps is None else steps)


def _input_names(inputs: Iterable[Value]) -> list[str]:
    return [v.inputs[0].name if isinstance(v.op, Quantize) else v.name for v in inputs]


def _tensors(values: Sequence[Value], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(_tensor(v, n) for v, n in zip(values, names, strict=True))


def _tensor(v: Value, name: str) -> Tensor:
    storage = str(np.dtype(v.type.dtype.numpy))
    if v.type.quant is None:
        return Tensor(name, v.shape, storage, storage)
    return Tensor(name, v.shape, "float32", storage, v.type.quant.scale[0], v.type.quant.zero_point[0])


class Linker:
    """One LLVM module under construction."""

    def __init__(self, target: Target, prefix: str) -> None:
        self.target, self.prefix = target, prefix
        self.module = ir.Module(prefix)
        self.constants = weights.Constants()
        self.symbol = weights.declare(self.module, f"{prefix}_constants")
        self.kernels = dict[tuple[Any, Any], Any]()

    def link(self, graph: Graph, steps: Sequence[Step]) -> ObjectCode:
        """Plan memory and launches, and compile."""
        plan = plan_memory(graph, steps)
        launches = tuple(launch for action in plan.actions for launch in plan_action(action, self.target))
        return self.build(plan, _tensors(plan.inputs, _input_names(plan.inputs)), self._outputs(plan, graph, launches), launches)

    def _outputs(self, plan: Plan, graph: Graph, launches: Sequence[Launch]) -> tuple[Tensor, ...]:
        return _tensors(plan.outputs, graph.output_names)

    def build(self, plan: Plan, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], launches: tuple[Launch, ...]) -> ObjectCode:
        """Emit both entries and compile."""
        run, symbols = self._integer_entry(launches, len(inputs), len(outputs))
        staged_inputs, end = stage(inputs, plan.arena_size)
        staged_outputs, arena_size = stage(outputs, end)
        self._float_entry(run, staged_inputs, staged_outputs)
        weights.define(self.symbol, self.constants)
        module = optimized(self.module, self.target, self.target.machine())
        obj = weights.patched(emit_object(module, self.target), self.constants)
        interface = Interface(self.prefix, max(arena_size, 64), len(self.constants.content), inputs, outputs)
        return ObjectCode(obj, interface, plan, launches, symbols, self.target, module)

    def _integer_entry(self, launches: Sequence[Launch], inputs: int, outputs: int) -> tuple[Any, tuple[str, ...]]:
        functions = [self._kernel(launch) for launch in launches]
        k = Kernel(self.module, self.target, f"{self.prefix}_run", ("inputs", "outputs", "arena"), I32, internal=False)
        given, taken, arena = k.parameters
        bases = {Buffer(Space.arena): arena}
        bases |= {Buffer(Space.input, i): _pointer(k, given, i) for i in range(inputs)}
        bases |= {Buffer(Space.output, i): _pointer(k, taken, i) for i in range(outputs)}
        for launch, function in zip(launches, functions):
            self._call(k, launch, function, bases)
        return k.ret(0), tuple(f.name for f in functions)

    def _call(self, k: Kernel, launch: Launch, function: Any, bases: dict[Buffer, Ptr]) -> None:
        k.b.call(function, [self._argument(k, a, bases) for a in launch.arguments])

    def _kernel(self, launch: Launch) -> Any:
        """The function of this configuration, emitted when it is first met."""
        key = (launch.emit, launch.config)
        if key not in self.kernels:
            digest = sha256(repr(launch.config).encode()).hexdigest()[:8]
            name = self.module.get_unique_name(f"{self.prefix}_{launch.emit.__name__.removeprefix('emit_')}_{digest}")
            k = Kernel(self.module, self.target, name, launch.parameters)
            launch.emit(k, launch.config)
            self.kernels[key] = k.ret()
        return self.kernels[key]

    def _argument(self, k: Kernel, a: Argument, bases: dict[Buffer, Ptr]) -> Any:
        match a:
            case Address(buffer, offset):
                return (bases[buffer] + offset).ir
            case Data(content):
                return (Ptr(k, self.symbol) + self.constants.place(content)).ir
        return ir.Constant(PTR, None)

    def _float_entry(self, run: Any, inputs: Sequence[Staged], outputs: Sequence[Staged]) -> None:
        k = Kernel(self.module, self.target, f"{self.prefix}_run_f32", ("inputs", "outputs", "arena"), I32, internal=False)
        emit_float_entry(k, run, inputs, outputs)
        k.ret(0)


def _pointer(k: Kernel, table: Ptr, index: int) -> Ptr:
    return Ptr(k, k.b.load((table + 8 * index).ir, typ=PTR))
