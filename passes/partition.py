"""Partition an integer graph into steps: which operators run together as one kernel, and in which order.

    step = producer, then a chain of operators applied to each of its results while they are still in registers

An accumulator (int32) never reaches memory, so each `Requantize` opens a step together with the producer of its
accumulator. The chain grows over single-use operators: `Clamp`, `Lookup`, and behind a convolution one residual addition:
`IntSum(y, other)` with its own `Requantize`, or `IntAdd(y, other)` of 16 bits. Chains are single-use, so the only edge that leaves a step leaves its
result: contracting steps cannot make a cycle. Fusion changes no bit; it only saves trips to memory.

The order is whichever has the smaller peak of live bytes: the graph's own, or the greedy one that always runs the ready
step which frees most (Liberis & Lane, "Neural networks on microcontrollers: saving memory at inference via operator
reordering", 2019, search the same space exhaustively).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.integer import Clamp, IntAdd, IntConv, IntSum, Lookup, Requantize
from qcompiler.ir.ops import Concat, Const, CountSteps, Dequantize, Expand, Gather, Input, Quantize, Reshape, Slice, Tile, Transpose
from qcompiler.ir.types import DType

INDEX_MOVEMENT = (Concat, Expand, Gather, Reshape, Slice, Tile, Transpose)
"""What makes int32 values that are no accumulators but indices, moved about."""


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel: `producer` is the operator whose loop nest it is, `epilogue` is applied in order to each of its results."""

    producer: Value
    epilogue: tuple[Value, ...] = ()

    @property
    def result(self) -> Value:
        """The value that the step stores."""
        return self.epilogue[-1] if self.epilogue else self.producer

    @property
    def values(self) -> tuple[Value, ...]:
        """All values computed by the step, in order."""
        return (self.producer, *self.epilogue)

    @property
    def residual(self) -> Value | None:
        """The other operand of a residual addition, in the accumulator or in the epilogue, if there is one."""
        if isinstance(self.producer.op, IntConv) and len(self.producer.inputs) > 3:
            return self.producer.inputs[3]
        return next((i for v in self.epilogue if isinstance(v.op, (IntSum, IntAdd)) for i in v.inputs if i not in self.values), None)

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        """Values that the step reads from memory: the producer's operands, then the residual; constants are not among them."""
        read = tuple(v for v in self.producer.inputs if not isinstance(v.op, Const))
        return read if self.residual is None or self.residual in read[1:] else (*read, self.residual)


def program_inputs(graph: Graph) -> tuple[Value, ...]:
    """What the integer program is handed: the `Quantize` of each float input, or the input itself where it is integer."""
    return tuple(v for i in graph.inputs for v in _entries(graph, i))


def _entries(graph: Graph, v: Value) -> tuple[Value, ...]:
    if not v.type.dtype.is_float:
        return (v,)
    counted = [u for u in graph.uses[v] if isinstance(u.op, CountSteps)]
    return tuple(dict.fromkeys(u for x in (v, *counted) for u in graph.uses[x] if isinstance(u.op, Quantize)))


def program_outputs(graph: Graph) -> tuple[Value, ...]:
    """What the integer program hands back: the operand of each output's `Dequantize`, or the output itself."""
    return tuple(v.inputs[0] if isinstance(v.op, Dequantize) else v for v in graph.outputs)


def partition(graph: Graph, declined: Declined | None = None) -> tuple[Step, ...]:
    """The steps of an integer `graph` in execution order; reasons why operators did not fuse go to `declined`."""
    declined = declined if declined is not None else Declined()
    fused = set[Value]()
    steps = list[Step]()
    for v in reversed(_computed(graph)):  # from the back: a chain is found at its end, and claims what it holds
        if v in fused or _is_accumulator(v, graph):
            continue
        step = _step_ending_in(v, graph, declined)
        fused.update(step.values)
        steps.append(step)
        _why_not_pointwise(step, graph, declined)
    return min_memory_order(steps[::-1], program_outputs(graph))


def _why_not_pointwise(step: Step, graph: Graph, declined: Declined) -> None:
    """Why a depthwise convolution and the pointwise one after it are two kernels."""
    if not _is_depthwise(step.producer):
        return
    readers = [u for u in graph.uses[step.result] if not isinstance(u.op, Dequantize)]
    if len(readers) != 1 or graph.only_use(step.result) is None:
        why = f"{step.result.name} has several users or is an output"
    elif not isinstance(readers[0].op, IntConv) or readers[0].inputs[1].shape[1:3] != (1, 1):
        why = f"its reader {readers[0].name} is no pointwise convolution"
    else:
        why = f"a kernel has one convolution; {step.result.type.nbytes} bytes lie between it and {readers[0].name}"
    declined(step.producer, f"depthwise convolution is not fused with the one after it: {why}")


def _is_depthwise(v: Value) -> bool:
    return isinstance(v.op, IntConv) and v.op.groups == v.inputs[1].shape[0] > 1


def _computed(graph: Graph) -> tuple[Value, ...]:
    boundary = (Const, Input, CountSteps, Quantize, Dequantize)
    return tuple(v for v in graph.order if not isinstance(v.op, boundary))


def _is_accumulator(v: Value, graph: Graph) -> bool:
    readers = (*graph.uses[v], *(o for o in graph.outputs if o is v))
    if v.type.dtype is not DType.i32 or isinstance(v.op, INDEX_MOVEMENT):
        return False
    if not all(isinstance(u.op, Requantize) and u is not v for u in readers):
        raise UnsupportedModel([f"{v!r} is an accumulator, but its reader is not a Requantize; integer programs store int8"])
    return True


def _step_ending_in(result: Value, graph: Graph, declined: Declined) -> Step:
    chain = [result]
    while (before := _continues(chain[-1], graph, declined)) is not None:
        chain.append(before)
    producer, *epilogue = reversed(chain)
    return Step(producer, tuple(epilogue))


def _continues(v: Value, graph: Graph, declined: Declined) -> Value | None:
    """The value whose step `v` joins as the next operator of its epilogue; None where `v` is a producer."""
    match v.op:
        case Requantize():
            return _accumulator(v.inputs[0], graph, declined)
        case Clamp() | Lookup():
            return v.inputs[0] if _accepts(v.inputs[0], v, graph, declined) else None
        case IntSum() if len(v.inputs) == 2 and graph.only_use(v) is not None:
            return _residual_host(v, graph, declined)
        case IntSum() if len(v.inputs) > 2:
            declined(v, f"addition is a kernel of its own: it has {len(v.inputs)} operands")
        case IntAdd():
            return _residual_host(v, graph, declined)
    return None


def _accumulator(acc: Value, graph: Graph, declined: Declined) -> Value:
    if graph.only_use(acc) is None:
        declined(acc, "the accumulator has several users: it is computed once for each")
    return acc


def _accepts(host: Value, v: Value, graph: Graph, declined: Declined) -> bool:
    """Whether pointwise `v` may run in the epilogue of the step that computes `host`."""
    kind = type(v.op).__name__
    if not isinstance(host.op, (Requantize, Clamp, Lookup)) or _is_channel_lookup(host):
        if not isinstance(host.op, (Input, Quantize)):
            declined(v, f"{kind} is not fused: {type(host.op).__name__} {host.name} has no epilogue")
        return False
    if _is_channel_lookup(v):
        declined(v, "Lookup is not fused: it has a table per channel")
        return False
    if graph.only_use(host) is None:
        declined(v, f"{kind} is not fused: {host.name} has several users or is an output")
        return False
    return _host_of(host) is not None


def _is_channel_lookup(v: Value) -> bool:
    return isinstance(v.op, Lookup) and v.inputs[1].type.rank > 1


def _host_of(v: Value) -> Value | None:
    """The int32 producer at the start of the chain that ends in `v`, through pointwise operators; None if there is none."""
    while isinstance(v.op, (Clamp, Lookup)) and not _is_channel_lookup(v):
        v = v.inputs[0]
    return v.inputs[0] if isinstance(v.op, Requantize) else None


def _residual_host(v: Value, graph: Graph, declined: Declined) -> Value | None:
    """The operand of addition `v` whose convolution takes the addition into its epilogue: the one computed last."""
    pairs = [(x, other) for x, other in (v.inputs, v.inputs[::-1]) if _is_convolved(x)]
    if not pairs:
        declined(v, "addition is a kernel of its own: no operand comes straight from a convolution that has room for it")
    problems = {x: _why_not_add(x, other, v, graph) for x, other in pairs}
    hosts = [x for x, problem in problems.items() if problem is None]
    if not hosts:
        for x, problem in problems.items():
            declined(v, f"addition is not fused into the convolution before {x.name}: {problem}")
    return max(hosts, key=graph.order.index, default=None)


def _is_convolved(x: Value) -> bool:
    producer = _host_of(x)
    return producer is not None and isinstance(producer.op, IntConv) and len(producer.inputs) == 3


def _why_not_add(x: Value, other: Value, v: Value, graph: Graph) -> str | None:
    if not all(graph.only_use(u) for u in _chain(x)):
        return f"{x.name} has several users or is an output"
    if isinstance(other.op, Const):
        return f"{other.name} is a constant"
    if isinstance(v.op, IntSum) and max(map(abs, v.op.multipliers)) >= 1 << 15:
        return f"multipliers {v.op.multipliers} have more than 16 bits"
    if other.shape != v.shape or x.shape != v.shape:
        return f"operands broadcast ({x.type} and {other.type})"
    return None


def _chain(x: Value) -> Iterator[Value]:
    while isinstance(x.op, (Clamp, Lookup)):
        yield x
        x = x.inputs[0]
    yield x


def min_memory_order(steps: Sequence[Step], kept: Sequence[Value]) -> tuple[Step, ...]:
    """`steps` (producers before users) in the order with the smaller peak: as given, or greedy. `kept` live to the end."""
    return min((tuple(steps), _greedy(steps, kept)), key=lambda order: peak_bytes(order, kept))


def peak_bytes(steps: Sequence[Step], kept: Sequence[Value]) -> int:
    """Greatest sum of the bytes of results that are live at once, were each in a buffer of its own."""
    last = {v: n for n, step in enumerate(steps) for v in step.operands} | dict.fromkeys(kept, len(steps))
    live = peak = 0
    for n, step in enumerate(steps):
        live += step.result.type.nbytes
        peak = max(peak, live)
        live -= sum(v.type.nbytes for v in {*step.operands, step.result} if last.get(v, n) == n and not isinstance(v.op, (Input, Quantize)))
    return peak


def _greedy(steps: Sequence[Step], kept: Sequence[Value]) -> tuple[Step, ...]:
    made_by = {s.result: s for s in steps}
    readers = Counter(v for s in steps for v in set(s.operands) if v in made_by) + Counter(kept)
    todo, done, order = list(steps), set[Value](), list[Step]()
    while todo:
        ready = (s for s in todo if all(v in done or v not in made_by for v in s.operands))
        best = min(ready, key=lambda s: _growth(s, readers))
        todo.remove(best)
        done.add(best.result)
        readers.subtract(v for v in set(best.operands) if v in made_by)
        order.append(best)
    return tuple(order)


def _growth(step: Step, readers: Mapping[Value, int]) -> int:
    """Bytes that become live minus bytes that die when `step` runs next."""
    return step.result.type.nbytes - sum(v.type.nbytes for v in set(step.operands) if readers.get(v) == 1)
