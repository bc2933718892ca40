"""Latency of every layer in every width, on a target: measured where it runs here, counted in an emulated CPU, or modelled.

    measured     medians of the profiling build (`profile.py`), all widths in turns
    counted      instructions between two time stamps of the profiling build under unicorn, divided by RATE
    modelled     `cost.nanoseconds` of each action of the memory plan

The network is measured once per width, all layers in that width. What a layer takes thus includes all that runs in its kernel; kernels without
weights, whose time hardly depends on the choice, are the table's `other` (their mean over the widths).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .backends.emulate import UnicornExecutor, emulates
from .backends.image import flatten
from .backends.llvm.cost import nanoseconds
from .backends.llvm.kernels.table import scratch_of
from .backends.llvm.profile import STAMPS, compile_profiled
from .backends.llvm.target import Target
from .errors import UsageError
from .ir.graph import Graph, Value
from .ir.integer import IntConv
from .passes.partition import partition
from .passes.pipeline import Quantized
from .passes.plan_memory import Run, plan_memory
from .passes.precision.costs import Latencies, weight_bytes
from .passes.precision.simulate import weighted_layers
from .profile import times_in_turns
from .report import Feeds
from .runtime.cpu import cpu_name

RATE = 2.5
"""Instructions per nanosecond: a core of 2.5 GHz that ends one per cycle, such as a Cortex-A76 in dense loops."""
SECONDS = 0.5
"""Of calls, for each width."""
Times = Mapping[str, float]
"""Milliseconds by the names of steps' results."""


def layer_latencies(made: Mapping[int, Quantized], target: Target, feeds: Feeds) -> Latencies:
    """The table of a network that is given with its weights in every width; `feeds` are one sample."""
    times = times_of([q.integer_graph for q in made.values()], target, feeds)
    tables = [_by_layer(q, t) for q, t in zip(made.values(), times, strict=True)]
    graph = next(iter(made.values()))
    arena = max(plan_memory(q.integer_graph, partition(q.integer_graph), scratch_of(target)).arena_size for q in made.values())
    layers = {v.name: tuple(t[v.name] for t, _ in tables) for v in weighted_layers(graph.float_graph)}
    nbytes = {v.name: tuple(weight_bytes(v, b) for b in made) for v in weighted_layers(graph.float_graph)}
    other = float(np.mean([rest for _, rest in tables]))
    return Latencies(target.name, cpu_name() if target.runs_here else None, tuple(made), layers, other, how(target), nbytes, arena)


def how(target: Target) -> str:
    """In words, how times on `target` are found."""
    if target.runs_here:
        return "measured"
    return f"counted instructions, {RATE} per nanosecond" if _counts(target) else "modelled"


def times_of(graphs: Sequence[Graph], target: Target, feeds: Feeds) -> Sequence[Times]:
    """Milliseconds of each kernel of integer graphs; movement that belongs to none is under its own label."""
    if target.runs_here:
        return times_in_turns([(g, target) for g in graphs], feeds, SECONDS)
    return [counted(g, target) if _counts(target) else modelled(g, target) for g in graphs]


def _counts(target: Target) -> bool:
    return target.arch == "aarch64" and target.os == "linux" and emulates(target.arch, target.features)


def counted(graph: Graph, target: Target) -> Times:
    """Instructions of every kernel in an emulated CPU, as milliseconds. Which are executed does not depend on the data."""
    code = compile_profiled(graph, target)
    image, interface = flatten(code.object), code.interface
    executor = UnicornExecutor.of_image(image.data, image.entries, image.arch)
    inputs = [np.zeros(t.shape, t.storage) for t in interface.inputs]
    outputs = [np.zeros(t.shape, t.storage) for t in interface.outputs]
    stamps = len(inputs) + [t.name for t in interface.outputs].index(STAMPS)
    with executor.counting(stamps) as marks:
        executor.call(interface.entry(integer=True), inputs, outputs, np.zeros(interface.arena_size, np.uint8))
    return _summed((x.label, n / RATE / 1e6) for x, n in zip(code.launches, np.diff(marks), strict=True))


def modelled(graph: Graph, target: Target) -> Times:
    """Milliseconds by the model that also divides work among threads."""
    plan = plan_memory(graph, partition(graph), scratch_of(target))
    return _summed((a.step.result.name if isinstance(a, Run) else "movement", nanoseconds(a, target) / 1e6) for a in plan.actions)


def _summed(rows: Iterable[tuple[str, float]]) -> Times:
    total = defaultdict[str, float](float)
    for name, milliseconds in rows:
        total[name] += float(milliseconds)
    return total


def _by_layer(q: Quantized, times: Times) -> tuple[dict[str, float], float]:
    """(milliseconds of each layer that has weights, of all else)."""
    steps = {conv: s for s in partition(q.integer_graph) for conv in s.values if isinstance(conv.op, IntConv)}
    found = {name: times.get(steps[conv].result.name, 0.0) for name, conv in _convolutions(q).items()}
    return found, sum(times.values()) - sum(found.values())


def _convolutions(q: Quantized) -> dict[str, Value]:
    """The integer convolution of every layer, told by the name of the weights; layers that share weights come in the same order in both graphs."""
    integer, seen = defaultdict[str, list[Value]](list), Counter[str]()
    for v in (v for v in q.integer_graph.order if isinstance(v.op, IntConv)):
        integer[v.inputs[1].name].append(v)
    found = dict[str, Value]()
    for v in weighted_layers(q.float_graph):
        name = v.inputs[1].name
        if seen[name] >= len(integer[name]):
            raise UsageError(
                f"latencies of layer '{v.name}' cannot be told: no kernel computes with its weights '{name}' alone; give a latency table"
            )
        found[v.name] = integer[name][seen[name]]
        seen[name] += 1
    return found
