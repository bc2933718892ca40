"""Where the time goes: milliseconds of every kernel, from the profiling build, against what this CPU could do.

GOP/s       = 2 * multiply-accumulates / time             peak = this CPU's own, in the dot-product form of the target (`peak.py`)
intensity   = 2 * multiply-accumulates / bytes            bytes = operands, constants and result, each once
roofline    = max(operations / peak, bytes / bandwidth)   the least time there is; the greater one says what limits the layer
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import runtime
from .backends.image import flatten
from .backends.llvm.launch import Launch
from .backends.llvm.peak import PeakMeter, read_gbs
from .backends.llvm.profile import STAMPS, compile_profiled
from .backends.llvm.target import Target
from .errors import UsageError
from .ir.graph import Graph
from .ir.ops import Const
from .passes.partition import Step, partition
from .report import Feeds, describe, macs
from .runtime.bench import WARM_UP, take_turns
from .runtime.cpu import cpu_name

AT_LEAST = 11
"""Calls whose median is told."""


@dataclass(frozen=True)
class LayerTime:
    """One kernel, or the movement of data that belongs to none. `float_milliseconds`: what the same layer takes in another runtime."""

    name: str
    operator: str
    kernel: str
    milliseconds: float
    macs: int
    nbytes: int
    depth: int
    """Products per result, 0 where there are none."""
    roofline_milliseconds: float
    limit: str
    """What the roofline is made of: compute or bytes."""
    percent_of_peak: float
    float_milliseconds: float | None = None

    @property
    def gops(self) -> float:
        """Billions of operations per second."""
        return 2 * self.macs / self.milliseconds / 1e6 if self.milliseconds else 0.0

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return 2 * self.macs / max(self.nbytes, 1)

    @property
    def speedup(self) -> float | None:
        """How many times faster than the float layer; below 1 the promise fails."""
        return None if self.float_milliseconds is None or not self.milliseconds else self.float_milliseconds / self.milliseconds


@dataclass(frozen=True)
class Comparison:
    """Layers that compute what some nodes of the float network do, and how long either takes."""

    layers: tuple[str, ...]
    milliseconds: float
    float_milliseconds: float

    @property
    def kept(self) -> bool:
        """Whether the promise holds: not slower than float."""
        return self.milliseconds <= self.float_milliseconds

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "speedup": self.float_milliseconds / self.milliseconds if self.milliseconds else None, "kept": self.kept}


@dataclass(frozen=True)
class Profile:
    """All launches in order, of one thread; `milliseconds` is the whole program without its ends."""

    cpu: str
    target: str
    peak_gops: float
    read_gbs: float
    milliseconds: float
    layers: tuple[LayerTime, ...]
    comparisons: tuple[Comparison, ...] = ()

    def beside(self, others: Mapping[tuple[str, ...], float]) -> Profile:
        """With the float times of groups of layers, by their names."""
        ours = {x.name: x.milliseconds for x in self.layers}
        layers = tuple(replace(x, float_milliseconds=others.get((x.name,))) for x in self.layers)
        return replace(self, layers=layers, comparisons=tuple(Comparison(g, sum(ours[n] for n in g), t) for g, t in others.items()))

    @property
    def slower_than_float(self) -> tuple[Comparison, ...]:
        """Where the promise fails."""
        return tuple(x for x in self.comparisons if not x.kept)

    @property
    def uncompared(self) -> tuple[LayerTime, ...]:
        """What the float network has no counterpart of."""
        known = {name for x in self.comparisons for name in x.layers}
        return tuple(x for x in self.layers if x.name not in known) if self.comparisons else ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        derived = [{"gops": x.gops, "intensity": x.intensity, "speedup": x.speedup} for x in self.layers]
        layers = [{**asdict(x), **d} for x, d in zip(self.layers, derived)]
        return {**asdict(self), "layers": layers, "comparisons": [x.as_dict() for x in self.comparisons]}


def profile(graph: Graph, target: Target, feeds: Feeds, seconds: float = 1.0, steps: Sequence[Step] | None = None) -> Profile:
    """Times of the kernels of the integer `graph` on this machine; UsageError where the target does not run here."""
    kernels = partition(graph) if steps is None else tuple(steps)
    timed, meter, peaks = Timed.of(graph, target, feeds, kernels), PeakMeter(target), list[float]()
    take_turns([lambda: peaks.append(meter.measure()), timed.call], seconds, AT_LEAST)
    peak, bandwidth, times = float(np.median(peaks)), read_gbs(target), timed.medians()
    found = {s.result.name: s for s in kernels}
    layers = (_layer(name, launches, t, found.get(name), peak, bandwidth) for name, launches, t in _grouped(timed.launches, times))
    return Profile(cpu_name(), target.name, peak, bandwidth, float(times.sum()), tuple(layers))


def times_in_turns(builds: Iterable[tuple[Graph, Target]], feeds: Feeds, seconds: float) -> list[dict[str, float]]:
    """Milliseconds by label of the kernels of integer graphs on targets that run here; programs take turns for `seconds` each, so that they compare.

    The first call of a turn does not count: caches and predictors belong to the previous program.
    """
    made = [Timed.of(graph, target, feeds, partition(graph)) for graph, target in builds]
    take_turns([call for x in made for call in (x.run, x.call)], seconds * len(made))
    return [{name: t for name, _, t in _grouped(x.launches, x.medians())} for x in made]


@dataclass(frozen=True)
class Timed:
    """A profiling build on this machine, and what its calls took so far."""

    program: runtime.Program
    launches: Sequence[Launch]
    feeds: Feeds
    stamps: list[NDArray[np.int64]] = field(default_factory=list)
    """Ticks of the time stamp counter, from each call."""
    clock: list[int] = field(default_factory=list)
    """Nanoseconds, before each call."""

    @classmethod
    def of(cls, graph: Graph, target: Target, feeds: Feeds, steps: Sequence[Step]) -> Timed:
        """Compiled and warm. UsageError where the target does not run here."""
        if not target.runs_here:
            raise UsageError(f"expected a target that this CPU runs, found '{target.name}'; profile with --target host")
        code = compile_profiled(graph, target, steps=steps)
        image = flatten(code.object)
        timed = cls(runtime.Program.of_image(code.interface, image.data, image.entries), code.launches, feeds)
        for _ in range(WARM_UP):
            timed.run()
        return timed

    def run(self) -> NDArray[np.int64]:
        """The stamps of a call that is not kept."""
        return self.program.run(self.feeds)[STAMPS]

    def call(self) -> None:
        """Run once more."""
        self.clock.append(perf_counter_ns())
        self.stamps.append(self.run())

    def medians(self) -> NDArray[np.float64]:
        """Milliseconds of every launch."""
        rows = np.stack(self.stamps)
        ticks = (rows[-1, 0] - rows[0, 0]) / (self.clock[-1] - self.clock[0])
        return np.asarray(np.median(np.diff(rows, axis=1), axis=0) / ticks / 1e6)


def _grouped(launches: Sequence[Launch], times: NDArray[np.float64]) -> Iterable[tuple[str, list[Launch], float]]:
    """(label, its launches, their time), in order of first appearance."""
    groups: dict[str, tuple[list[Launch], list[float]]] = {}
    for launch, t in zip(launches, times, strict=True):
        members, total = groups.setdefault(launch.label, ([], []))
        members.append(launch)
        total.append(float(t))
    return [(name, members, sum(total)) for name, (members, total) in groups.items()]


def _layer(name: str, launches: Sequence[Launch], milliseconds: float, step: Step | None, peak: float, bandwidth: float) -> LayerTime:
    kernel = " ".join(dict.fromkeys(x.emit.__name__.removeprefix("emit_") for x in launches))
    if step is None:
        return LayerTime(name, "movement", kernel, milliseconds, 0, 0, 0, 0.0, "bytes", 0.0)
    operations, nbytes = 2 * macs(step.producer), _bytes(step)
    compute, memory = operations / peak / 1e6, nbytes / bandwidth / 1e6
    limit = "compute" if compute > memory else "bytes"
    depth = operations // 2 // max(step.producer.type.size, 1)
    percent = 100 * compute / milliseconds if milliseconds else 0.0
    return LayerTime(name, describe(step.producer), kernel, milliseconds, operations // 2, nbytes, depth, max(compute, memory), limit, percent)


def _bytes(step: Step) -> int:
    """Operands, constants and result, each once."""
    constants = {i for v in step.values for i in v.inputs if isinstance(i.op, Const)}
    return sum(v.type.nbytes for v in {*step.operands, *constants, step.result})
