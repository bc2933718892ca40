"""Driver: an integer graph to one relocatable object that holds the code, the weights and the entry points.

    steps = partition(graph); plan = plan_memory(graph, steps); launches = plan of every action
    <prefix>_run(inputs, outputs, arena)         calls the kernels in order
    <prefix>_run_f32(inputs, outputs, arena)     the same between quantize and dequantize
    <prefix>_run_parallel, _run_f32_parallel     the same, divided among the caller's threads (`parallel`, `pool`)

Several forms of one network (sequence lengths) have entries of their own, <prefix>_64_run and so on; constants and kernels they share.
Where inputs are integers with an interval, every entry begins with a check of them (`check`) and may return its status.
Kernels are internal functions, shared by launches of equal configuration. Nothing outside is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import CountSteps, Quantize
from qcompiler.passes.index_ranges import input_interval
from qcompiler.passes.layouts import Buffer, Space
from qcompiler.passes.partition import Step, partition
from qcompiler.passes.plan_memory import Plan, plan_memory
from qcompiler.runtime.artifact import Interface, Tensor, joined

from . import weights
from .boundary import Staged, converted, emit_dequantize, emit_quantize, stage, staged_tables
from .cache import NO_CACHE, Cache, key_of
from .check import emit_check, emit_guard
from .codegen import emit_assembly, emit_object, module_text, optimized_text
from .cost import conversion, nanoseconds
from .dsl import I32, PTR, Kernel, Ptr, function_name
from .kernels.table import plan as plan_action
from .kernels.table import scratch_of
from .launch import Address, Argument, Data, Launch
from .parallel import ALL, CONTEXT, PARALLEL, Emit, Stage, Work, context_of, emit_stages, stages
from .pool import emit_pool
from .split import MOST_PIECES, pieces
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
    _text: str = field(repr=False)
    """The module before LLVM."""
    pieces: tuple[int, ...] = ()
    """Into how many pieces threads divide each launch; 1: the calling thread runs it."""

    @cached_property
    def _module(self) -> Any:
        return optimized_text(self._text, self.target.machine())

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


def compile_lengths(graphs: Mapping[str, Graph], target: Target, prefix: str = "model", cache: Cache = NO_CACHE) -> ObjectCode:
    """Compile one network in several forms, by the prefixes of their C symbols, into one object; what forms share begins with `prefix`.

    All is told of the first form but the interface, which has them all."""
    linker = Linker(target, prefix, cache)
    for own, graph in graphs.items():
        linker.add(graph, partition(graph), own)
    return linker.finish()


def _input_names(inputs: Iterable[Value]) -> list[str]:
    return [_source(v).name for v in inputs]


def _source(v: Value) -> Value:
    """The graph input behind a `Quantize`."""
    return _source(v.inputs[0]) if isinstance(v.op, (Quantize, CountSteps)) else v


def _tensors(values: Sequence[Value], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(_tensor(v, n) for v, n in zip(values, names, strict=True))


def _tensor(v: Value, name: str) -> Tensor:
    storage = str(np.dtype(v.type.dtype.numpy))
    if v.type.quant is None:
        return Tensor(name, v.shape, storage, storage)
    scale, zero = v.type.quant.scale[0], v.type.quant.zero_point[0]
    if isinstance(v.op, Quantize) and isinstance(counted := v.inputs[0].op, CountSteps):
        return Tensor(name, v.shape, "float32", storage, counted.step, tuple(s + zero for s in counted.shift), axis=counted.axis)
    return Tensor(name, v.shape, "float32", storage, scale, zero)


def _inputs(plan: Plan, graph: Graph) -> tuple[Tensor, ...]:
    """The inputs, with the intervals that the program holds them to."""
    bounds = [input_interval(graph, v) or (None, None) for v in plan.inputs]
    return tuple(replace(t, low=b[0], high=b[1]) for t, b in zip(_tensors(plan.inputs, _input_names(plan.inputs)), bounds))


@dataclass(frozen=True)
class Emitted:
    """A kernel's function, and how many rounds its longest split loop has."""

    function: Any
    units: int


@dataclass(frozen=True, eq=False)
class Form:
    """The network for one set of shapes: its interface, and what `ObjectCode` tells of it."""

    interface: Interface
    plan: Plan
    launches: tuple[Launch, ...]
    symbols: tuple[str, ...]
    pieces: tuple[int, ...]


class Linker:
    """One LLVM module under construction. `family` begins the names of what all forms share, `prefix` those of the form being added."""

    def __init__(self, target: Target, prefix: str, cache: Cache = NO_CACHE) -> None:
        self.target, self.family, self.prefix, self.cache = target, prefix, prefix, cache
        self.forms = list[Form]()
        self.module = ir.Module(prefix)
        self.constants = weights.Constants()
        self.symbol = weights.declare(self.module, f"{prefix}_constants")
        self.kernels = dict[tuple[Any, Any, bool], Emitted]()
        self._times: tuple[float, ...] = ()
        self._beside: tuple[bool, ...] = ()
        self._check: Any | None = None

    def link(self, graph: Graph, steps: Sequence[Step]) -> ObjectCode:
        """Plan memory and launches, and compile."""
        self.add(graph, steps, self.family)
        return self.finish()

    def add(self, graph: Graph, steps: Sequence[Step], prefix: str) -> None:
        """Plan memory and launches of one form, and emit its entries."""
        self.prefix = prefix
        plan = plan_memory(graph, steps, scratch_of(self.target))
        timed = [(action, nanoseconds(action, self.target), beside) for action, beside in zip(plan.actions, plan.beside, strict=True)]
        planned = [(launch, time, beside) for action, time, beside in timed for launch in plan_action(action, self.target)]
        launches = tuple(launch for launch, _, _ in planned)
        self._times, self._beside = tuple(time for _, time, _ in planned), tuple(beside for _, _, beside in planned)
        self.forms.append(self.build(plan, _inputs(plan, graph), self._outputs(plan, graph, launches), launches))

    def _outputs(self, plan: Plan, graph: Graph, launches: Sequence[Launch]) -> tuple[Tensor, ...]:
        return _tensors(plan.outputs, graph.output_names)

    def build(self, plan: Plan, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], launches: tuple[Launch, ...]) -> Form:
        """Emit all entries."""
        reaches = [launch.reach for launch in launches]
        divided = [beside or r is not None or pieces(MOST_PIECES, t) > 1 for r, (_, t, beside) in zip(reaches, self._planned(launches))]
        kernels = [self._kernel(launch, n) for launch, n in zip(launches, divided)]
        alone = [1 if beside else pieces(e.units, time) for e, (_, time, beside) in zip(kernels, self._planned(launches))]
        staged_inputs, end = stage(inputs, plan.arena_size)
        staged_outputs, arena_size = stage(outputs, end)
        conversions = self._conversions(staged_inputs, staged_outputs)
        self._check = emit_check(self.module, self.target, self.prefix, inputs)
        run = self._integer_entry(launches, [e.function for e in kernels], len(inputs), len(outputs))
        self._float_entry(run, conversions, staged_inputs, staged_outputs)
        calls = [self._calls(launch, e, len(inputs), len(outputs)) for launch, e in zip(launches, kernels)]
        order = tuple(stages([Work(*how) for how in zip(calls, alone, self._beside, reaches)]))
        divisions = tuple(1 if w.beside else s.pieces for s in order for w in s.works)
        run_parallel = self._parallel_entry(order)
        self._parallel_float_entry(run_parallel, conversions, staged_inputs, staged_outputs)
        shared = any(n > 1 for n in (*divisions, *(c.pieces for c in conversions)))
        interface = Interface(self.prefix, max(arena_size, 64), 0, inputs, outputs, parallel=True, divided=shared)
        return Form(interface, plan, launches, tuple(e.function.name for e in kernels), divisions)

    def finish(self) -> ObjectCode:
        """Compile what was added."""
        emit_pool(self.module, self.target, self.family)
        weights.define(self.symbol, self.constants)
        text = module_text(self.module, self.target)
        blank = self.cache.get(key_of(text, self.target), lambda: emit_object(optimized_text(text, self.target.machine()), self.target))
        obj = weights.patched(blank, self.constants)
        interface = joined(self.family, [f.interface for f in self.forms], len(self.constants.content))
        first = self.forms[0]
        return ObjectCode(obj, interface, first.plan, first.launches, first.symbols, self.target, text, first.pieces)

    def _integer_entry(self, launches: Sequence[Launch], functions: Sequence[Any], inputs: int, outputs: int) -> Any:
        k = Kernel(self.module, self.target, f"{self.prefix}_run", CONTEXT, I32, internal=False)
        emit_guard(k, self._check, k.parameters[0])
        bases = _bases(k, k.parameters, inputs, outputs)
        for launch, function in zip(launches, functions):
            self._call(k, launch, function, bases)
        return k.ret(0)

    def _call(self, k: Kernel, launch: Launch, function: Any, bases: dict[Buffer, Ptr]) -> None:
        """All of a launch, as the plain entry runs it."""
        self._call_part(k, launch, function, bases, ALL)

    def _call_part(self, k: Kernel, launch: Launch, function: Any, bases: dict[Buffer, Ptr], part: tuple[Any, Any]) -> None:
        divided = len(function.args) > len(launch.arguments)
        k.b.call(function, [*(self._argument(k, a, bases) for a in launch.arguments), *(part if divided else ())])

    def _kernel(self, launch: Launch, divided: bool) -> Emitted:
        """The function of this configuration, emitted when it is first met."""
        key = (launch.emit, launch.config, divided)
        if key not in self.kernels:
            name = self.module.get_unique_name(function_name(self.family, launch.emit, launch.config))
            k = (Kernel.divided if divided else Kernel)(self.module, self.target, name, launch.parameters)
            launch.emit(k, launch.config)
            self.kernels[key] = Emitted(k.ret(), k.span.units if k.span else 1)
        return self.kernels[key]

    def _planned(self, launches: Sequence[Launch]) -> Iterable[tuple[Launch, float, bool]]:
        return zip(launches, self._times, self._beside, strict=True)

    def _calls(self, launch: Launch, kernel: Emitted, inputs: int, outputs: int) -> Emit:
        def emit(k: Kernel, context: Sequence[Ptr], part: tuple[Any, Any]) -> None:
            self._call_part(k, launch, kernel.function, _bases(k, context, inputs, outputs), part)

        return emit

    def _parallel_entry(self, order: Sequence[Stage]) -> Any:
        k = Kernel(self.module, self.target, f"{self.prefix}_run_parallel", PARALLEL, I32, internal=False)
        *given, caller, pool = k.parameters
        context = context_of(k, *given)
        emit_guard(k, self._check, given[0])
        emit_stages(k, self.prefix, order, context, (caller, pool))
        return k.ret(0)

    def _argument(self, k: Kernel, a: Argument, bases: dict[Buffer, Ptr]) -> Any:
        match a:
            case Address(buffer, offset):
                return (bases[buffer] + offset).ir
            case Data(content):
                return (Ptr(k, self.symbol) + self.constants.place(content)).ir
        return ir.Constant(PTR, None)

    def _conversions(self, inputs: Sequence[Staged], outputs: Sequence[Staged]) -> tuple[Work, Work]:
        """Quantization of the inputs and dequantization of the outputs."""
        found = list[Work]()
        for position, (name, emit, staged) in enumerate((("quantize", emit_quantize, inputs), ("dequantize", emit_dequantize, outputs))):
            k = Kernel.divided(self.module, self.target, f"{self.prefix}_{name}", ("tensors", "arena"))
            emit(k, staged)
            function, units = k.ret(), k.span.units if k.span else 1
            found.append(Work(_conversion(function, position), pieces(units, conversion(converted(staged), self.target))))
        return found[0], found[1]

    def _float_entry(self, run: Any, conversions: tuple[Work, Work], inputs: Sequence[Staged], outputs: Sequence[Staged]) -> None:
        k = Kernel(self.module, self.target, f"{self.prefix}_run_f32", CONTEXT, I32, internal=False)
        given, taken, arena = k.parameters
        tables = staged_tables(k, given, taken, arena, inputs, outputs)
        emit_guard(k, self._check, given)
        conversions[0].emit(k, k.parameters, ALL)
        k.b.call(run, [*(t.ir for t in tables), arena.ir])
        conversions[1].emit(k, k.parameters, ALL)
        k.ret(0)

    def _parallel_float_entry(self, run: Any, conversions: tuple[Work, Work], inputs: Sequence[Staged], outputs: Sequence[Staged]) -> None:
        k = Kernel(self.module, self.target, f"{self.prefix}_run_f32_parallel", PARALLEL, I32, internal=False)
        given, taken, arena, caller, pool = k.parameters
        tables = staged_tables(k, given, taken, arena, inputs, outputs)
        context = context_of(k, given, taken, arena)
        emit_guard(k, self._check, given)
        emit_stages(k, f"{self.prefix}_quantize", stages(conversions[:1]), context, (caller, pool))
        k.b.call(run, [*(t.ir for t in tables), arena.ir, caller.ir, pool.ir])
        emit_stages(k, f"{self.prefix}_dequantize", stages(conversions[1:]), context, (caller, pool))
        k.ret(0)


def _conversion(function: Any, position: int) -> Emit:
    """A call of a function of (inputs or outputs, arena)."""

    def emit(k: Kernel, context: Sequence[Ptr], part: tuple[Any, Any]) -> None:
        k.b.call(function, [context[position].ir, context[2].ir, *part])

    return emit


def _bases(k: Kernel, context: Sequence[Ptr], inputs: int, outputs: int) -> dict[Buffer, Ptr]:
    """Where the arena, the inputs and the outputs are."""
    given, taken, arena = context
    bases = {Buffer(Space.arena): arena}
    bases |= {Buffer(Space.input, i): _pointer(k, given, i) for i in range(inputs)}
    return bases | {Buffer(Space.output, i): _pointer(k, taken, i) for i in range(outputs)}


def _pointer(k: Kernel, table: Ptr, index: int) -> Ptr:
    return Ptr(k, k.b.load((table + 8 * index).ir, typ=PTR))
