"""The CPU's own peak in the dot-product form in use: a loop of independent dot products that stay in registers.

Every accumulator takes one dot product per round, none waits for memory, and the accumulators are stored only at the end. The
weights pass an empty piece of assembly before each, so that LLVM can neither merge two dot products nor move a part of one out
of the loop. What the loop reaches is the limit that kernels are measured against: percent of peak means percent of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter_ns
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.runtime.arena import allocate

from .codegen import Jitted, jit
from .dot import Chained, Dot, XOperand, densest
from .dsl import I32, Kernel, Val
from .target import Target, host_target

ROUNDS, REPEATS, ACCUMULATORS = 40_000, 100, 16
TRIES = 4


class PeakMeter:
    """Measures again and again, so that a program can take turns with it."""

    def __init__(self, target: Target) -> None:
        dot = densest(target)
        count = accumulators(dot, target)
        self._call, self._memory = _loop(target, count), _touched((count + 1) * target.vector_bytes)
        self._operations = 2 * dot.group * dot.pixels * target.lanes // dot.spread * count * ROUNDS

    def measure(self) -> float:
        """Billions of operations per second (two per multiply-accumulate), now: the best of a few tries; the first meets cold caches."""
        return float(self._operations / min(_seconds(self._call, self._memory) for _ in range(TRIES)) / 1e9)


@cache
def peak_gops(target: Target | None = None) -> float:
    """The best of several measurements."""
    meter = PeakMeter(target or host_target())
    return max(meter.measure() for _ in range(REPEATS))


@cache
def read_gbs(target: Target | None = None, nbytes: int = 16 << 20) -> float:
    """Billions of bytes per second that one core reads from `nbytes` of memory, over and over: the best of several rounds."""
    row = target or host_target()
    module = ir.Module("read")
    k = Kernel(module, row, "read", ("source", "target"), I32, internal=False)
    emit_read(k, nbytes)
    k.ret(0)
    call, memory = jit(module, row, ["read"])[0], _touched(nbytes + 64)
    return float(nbytes / min(_seconds(call, memory) for _ in range(REPEATS)) / 1e9)


def accumulators(dot: Dot, target: Target) -> int:
    """How many dot products are in flight: enough to hide the latency of any, with room for operands and scratch."""
    return int(min(ACCUMULATORS, target.registers - dot.scratch - dot.steps - 1))


@dataclass(frozen=True)
class Chain:
    """Sums of 16 bits where a target has them: how many groups are added up before they are widened, and whether a sign is transferred."""

    links: int = 1
    signed: bool = True


def chain_gops(target: Target, chain: Chain) -> float:
    """The peak of a chain of sums of 16 bits: the best of several measurements. Meant for targets whose form is `Chained`."""
    dot = densest(target)
    if not isinstance(dot, Chained):
        raise UsageError(f"expected a target with sums of 16 bits, found '{target.name}'")
    count = accumulators(dot, target)
    call, memory = _loop(target, count, chain), _touched((count + 1) * target.vector_bytes)
    operations = 2 * dot.group * dot.pixels * target.lanes // dot.spread * count * ROUNDS * chain.links
    return float(operations / min(_seconds(call, memory) for _ in range(REPEATS)) / 1e9)


def _added(k: Kernel, dot: Dot, acc: Any, x: XOperand, ws: Sequence[Any]) -> Any:
    """acc plus the products of x with each of `ws`."""
    return dot.chain(k, acc, [x] * len(ws), ws) if isinstance(dot, Chained) else dot.dot(k, acc, x, ws[0])


def emit_peak(k: Kernel, count: int, chain: Chain = Chain()) -> None:
    """ROUNDS times `count` dot products (chains of them) of the registers at parameters[0]; sums to parameters[1]."""
    dot, size = densest(k.target), k.target.vector_bytes
    source, target = k.parameters
    x, w = dot.broadcast(k, source, chain.signed), k.load(source + 4, 8)
    with k.loop(ROUNDS, [k.load(target, 32, count), w]) as (_, state):
        sums, (w,) = state[0].regs, state[1].regs
        results = list[Any]()
        for a in sums:
            ws = list[Any]()
            for _ in range(chain.links):
                (w,) = k.settled(Val(k, (w,), 8)).regs
                ws.append(w)
            results.append(_added(k, dot, a, x, ws))
        state[:] = [Val(k, tuple(results), 32), Val(k, (w,), 8)]
    for i, a in enumerate(state[0].regs):
        k.store(target + i * size, Val(k, (a,), 32))


def emit_read(k: Kernel, nbytes: int) -> None:
    """Every register of `nbytes` at parameters[0], combined so that none is left out."""
    (source, target), size, at_once = k.parameters, k.target.vector_bytes, 8
    with k.loop(nbytes // (size * at_once), [k.load(source, 8, at_once)]) as (i, state):
        state[0] = state[0] ^ k.load(source + i * (size * at_once), 8, at_once)
    for i, r in enumerate(state[0].regs):
        k.store(target + i * size, Val(k, (r,), 8))


def _loop(target: Target, count: int, chain: Chain = Chain()) -> Jitted:
    module = ir.Module("peak")
    k = Kernel(module, target, "peak", ("source", "target"), I32, internal=False)
    emit_peak(k, count, chain)
    k.ret(0)
    return jit(module, target, ["peak"])[0]


def _touched(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins on a page and is not the system's shared page of zeros."""
    memory = allocate(nbytes)
    memory.fill(1)
    return memory


def _seconds(call: Jitted, memory: Any) -> float:
    start = perf_counter_ns()
    call(memory.ctypes.data, memory.ctypes.data)
    return (perf_counter_ns() - start) / 1e9
