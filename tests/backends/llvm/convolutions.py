"""Random convolution steps, run through a kernel and through the reference backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from qcompiler.backends.llvm.codegen import jit
from qcompiler.backends.llvm.dsl import Kernel
from qcompiler.backends.llvm.kernels.select import plan_convolution
from qcompiler.backends.llvm.kernels.table import scratch_of
from qcompiler.backends.llvm.launch import Address, Data, Launch
from qcompiler.backends.llvm.target import Target
from qcompiler.backends.reference import operators
from qcompiler.ir.graph import Value, apply
from qcompiler.ir.integer import Clamp, IntConv, IntSum, Lookup, Requantize
from qcompiler.ir.ops import Input, constant
from qcompiler.ir.types import Quantization, quantized
from qcompiler.numerics.requantize import multiplier
from qcompiler.passes.layouts import ARENA, Layout, dense_strides, itemsize
from qcompiler.passes.partition import Step
from qcompiler.passes.placement import needed_halo
from qcompiler.passes.plan_memory import Run

Array = NDArray[np.int8] | NDArray[np.int16]
SLACK = 64
GUARD = 0x5A


@dataclass(frozen=True)
class Case:
    """One convolution and what follows it."""

    x: tuple[int, int, int, int]
    channels: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    after: tuple[str, ...] = ()
    gap: int = 0
    """Elements between pixels of all operands, as if they were part of a concatenation."""
    reach: int = 127
    """The greatest weight."""
    bits: int = 8
    """Of what is convolved."""

    @property
    def quant(self) -> Quantization:
        """That of what is convolved."""
        return Quantization.per_tensor(0.05, -7) if self.bits == 8 else Quantization.per_tensor(0.0002, 0, self.bits)


def quantized_input(shape: tuple[int, ...], zero: int, name: str) -> Value:
    kind = quantized(shape, Quantization.per_tensor(0.05, zero))
    return Value(Input(kind), (), kind, name)


def requantized(acc: Value, real: NDArray[np.float64], zero: int, lo: int = -128, hi: int = 127) -> Value:
    pairs = [multiplier(float(r)) for r in real]
    shift, q = (constant(np.array([getattr(p, f) for p in pairs], np.int32), f) for f in ("shift", "q"))
    return apply(Requantize(quantized(acc.shape, Quantization.per_tensor(0.1, zero)), lo, hi), acc, shift, q, name="y")


def build(case: Case, rng: np.random.Generator) -> Step:
    x = Value(Input(quantized(case.x, case.quant)), (), quantized(case.x, case.quant), "x")
    w = rng.integers(-case.reach, case.reach + 1, (case.channels, *case.kernel, case.x[3] // case.groups)).astype(np.int8)
    bias = rng.integers(-5000, 5000, case.channels).astype(np.int32)
    op = IntConv(case.strides, case.pads, case.dilations, case.groups)
    acc = apply(op, x, constant(w, "w"), constant(bias, "b"), name="acc")
    spread = 60.0 / (74 * 74 * np.sqrt(w[0].size)) * 2.0 ** (8 - case.bits)
    real = spread * rng.uniform(0.3, 2.0, case.channels)
    if "left" in case.after:
        real[0] = 3.0
    chain = [requantized(acc, real, 5, -100 if "bounds" in case.after else -128, 90 if "bounds" in case.after else 127)]
    for word in case.after:
        chain.extend(_stage(word, chain[-1], rng))
    return Step(acc, tuple(chain))


def _stage(word: str, y: Value, rng: np.random.Generator) -> list[Value]:
    if word == "clamp":
        return [apply(Clamp(-50, 40), y, name="clamped")]
    if word in ("lookup", "channel-lookup"):
        size = 256 if word == "lookup" else (y.shape[3], 256)
        table = constant(rng.integers(-128, 128, size).astype(np.int8), "table")
        return [apply(Lookup(y.type), y, table, name="looked")]
    if word in ("add", "add-swapped"):
        other = quantized_input(y.shape, 11, "other")
        operands, multipliers = ((y, other), (9000, 5003)) if word == "add" else ((other, y), (-5003, 16384))
        total = apply(IntSum(multipliers), *operands, name="sum")
        return [total, requantized(total, np.array([0.7 / 9000]), -9)]
    return []


def reference(step: Step, feeds: dict[str, Array]) -> Array:
    known: dict[Value, NDArray[np.generic]] = {}

    def value(v: Value) -> NDArray[np.generic]:
        if v not in known:
            known[v] = feeds[v.name] if isinstance(v.op, Input) else operators.compute(v, [value(i) for i in v.inputs])
        return known[v]

    return value(step.result)  # type: ignore[return-value]


class Memory:
    """An arena with one value after the other, each with its halo, its slack and a guard."""

    def __init__(self, target: Target) -> None:
        self.target, self.size, self.working = target, 64, slice(0)

    def place(self, v: Value, halo: tuple[int, int, int, int], gap: int) -> Layout:
        n, h, w, c = v.shape
        top, bottom, left, right = halo
        grown, size = (n, top + h + bottom, left + w + right, c + gap), itemsize(v.type)
        strides = dense_strides(grown, size)
        layout = Layout(ARENA, self.size, strides).moved((0, top, left, 0))
        self.size += -(-int(np.prod(grown)) * size // 2) * 2 + SLACK + 64
        return layout

    def scratch(self, size: int) -> Layout | None:
        """Working memory, which a kernel may leave as it likes."""
        if not size:
            return None
        self.working = slice(self.size, self.size + size)
        self.size += size + 64
        return Layout(ARENA, self.working.start, (1,))

    def fresh(self) -> NDArray[np.uint8]:
        raw = np.full(self.size + 64, GUARD, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + self.size]

    def view(
        self, memory: NDArray[np.uint8], layout: Layout, shape: Sequence[int], halo: tuple[int, int, int, int] = (0, 0, 0, 0)
    ) -> NDArray[np.uint8] | NDArray[np.int16]:
        top, bottom, left, right = halo
        n, h, w, c = shape
        start = layout.moved((0, -top, -left, 0)).offset
        found = memory[start:] if layout.strides[3] == 1 else memory[start:].view(np.int16)
        return np.lib.stride_tricks.as_strided(found, (n, h + top + bottom, w + left + right, c), layout.strides)


def stored(target: Target, q: NDArray[np.int8] | NDArray[np.int16]) -> NDArray[np.uint8] | NDArray[np.int16]:
    if q.dtype == np.int16:
        return q
    return (q.astype(np.int16) + target.storage_offset).astype(np.uint8)


@dataclass
class Prepared:
    """A compiled step with its memory filled."""

    launches: list[Launch]
    run: Run
    memory: Memory
    arena: NDArray[np.uint8]
    feeds: dict[str, Array]
    calls: list[tuple[object, list[int]]]
    keep: list[object]

    def execute(self) -> None:
        for function, pointers in self.calls:
            function(*pointers)  # type: ignore[operator]


def prepare(case: Case, target: Target, seed: int = 0) -> tuple[Step, Prepared]:
    rng = np.random.default_rng(seed)
    step = build(case, rng)
    x, *others = step.operands
    memory = Memory(target)
    h = needed_halo(step.producer.op, x.shape, step.producer.inputs[1].shape[1:3])  # type: ignore[arg-type]
    halo = (h.top, h.bottom, h.left, h.right)
    layouts = [memory.place(x, halo, case.gap), *(memory.place(o, (1, 0, 2, 1), case.gap) for o in others)]
    result = memory.place(step.result, (0, 1, 1, 1), case.gap)
    run = Run(step, tuple(layouts), result, memory.scratch(scratch_of(target)(step)))
    launches = list(plan_convolution(run, target))
    feeds = {v.name: drawn(v, rng) for v in step.operands}
    arena = memory.fresh()
    memory.view(arena, layouts[0], x.shape, halo)[:] = stored(target, np.array(case.quant.zero_point[0], x.type.dtype.numpy))
    for v, layout in zip(step.operands, layouts):
        memory.view(arena, layout, v.shape)[:] = stored(target, feeds[v.name])
    keep: list[object] = []
    calls = [(_function(launch, target), [_address(a, arena, keep) for a in launch.arguments]) for launch in launches]
    return step, Prepared(launches, run, memory, arena, feeds, calls, keep)


def drawn(v: Value, rng: np.random.Generator) -> Array:
    """Anything that the type of `v` holds, its ends among it."""
    quant = v.type.quant
    assert quant is not None
    data = rng.integers(quant.qmin, quant.qmax + 1, v.shape)
    if quant.bits > 8:
        data = np.where(rng.random(v.shape) < 0.3, rng.choice([quant.qmin, quant.qmax], v.shape), data)
    return data.astype(v.type.dtype.numpy)


def _function(launch: Launch, target: Target) -> object:
    module = ir.Module()
    k = Kernel(module, target, "kernel", launch.parameters, internal=False)
    launch.emit(k, launch.config)
    k.ret()
    return jit(module, target, ["kernel"])[0]


def _address(a: object, arena: NDArray[np.uint8], keep: list[object]) -> int:
    match a:
        case Address(_, offset):
            return arena.ctypes.data + offset
        case Data(content):
            raw = np.zeros(len(content) + 64, np.uint8)
            start = -raw.ctypes.data % 64
            raw[start : start + len(content)] = np.frombuffer(content, np.uint8)
            keep.append(raw)
            return raw.ctypes.data + start
    return 0


def check(case: Case, target: Target, seed: int = 0) -> None:
    """The kernel's result equals the reference, and no byte outside of it changed."""
    step, p = prepare(case, target, seed)
    before = p.arena.copy()
    p.execute()
    found = p.memory.view(p.arena, p.run.result, step.result.shape)
    expected = stored(target, reference(step, p.feeds))
    np.testing.assert_array_equal(found, expected)
    p.memory.view(before, p.run.result, step.result.shape)[:] = expected
    before[p.memory.working] = p.arena[p.memory.working]
    np.testing.assert_array_equal(p.arena, before)
