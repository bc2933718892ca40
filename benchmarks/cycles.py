"""How far the estimate of cycles is from the truth: `python -m benchmarks.cycles`, on Linux with llvm-mca.

Single convolutions are compiled for `x86-64` (SSE4.1), which both unicorn and this CPU execute: cycles(estimated) / (seconds(measured) * clock).
The clock is measured next to each: by a chain of dependent multiplications and additions, 3 + 1 cycles on every x86 core of the last decade.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import median
from time import perf_counter_ns

import click
import numpy as np
import onnx
from llvmlite import ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qcompiler.api import Program, build, quantize_model
from qcompiler.backends.cycles import CORES, estimate
from qcompiler.backends.emulate import UnicornExecutor
from qcompiler.backends.llvm.codegen import Jitted, jit
from qcompiler.backends.llvm.target import TARGETS, host_target
from qcompiler.cli.bench import cpu_name
from qcompiler.runtime import Program as Loaded

TARGET = "x86-64"
ROUNDS, STEPS, TRIES = 60, 1_000_000, 9


@dataclass(frozen=True)
class Layer:
    """A square convolution without padding: channels in and out, taps along a side, pixels along a side of the result."""

    channels: int
    filters: int
    taps: int
    side: int

    def __str__(self) -> str:
        return f"{self.taps}x{self.taps}, {self.channels} -> {self.filters}, {self.side}x{self.side} pixels"


LAYERS = (
    Layer(64, 64, 1, 28),
    Layer(256, 64, 1, 28),
    Layer(256, 256, 1, 14),
    Layer(512, 128, 1, 14),
    Layer(1024, 256, 1, 7),
    Layer(32, 32, 3, 28),
    Layer(64, 64, 3, 14),
    Layer(128, 128, 3, 14),
    Layer(256, 256, 3, 7),
)


@dataclass(frozen=True)
class Finding:
    """Of one layer."""

    layer: str
    cycles: float
    microseconds: float
    gigahertz: float

    @property
    def ratio(self) -> float:
        """Estimated cycles over those that passed."""
        return self.cycles / (self.microseconds * self.gigahertz * 1e3)


def network(layer: Layer) -> onnx.ModelProto:
    """The layer alone."""
    side = layer.side + layer.taps - 1
    weights = np.random.default_rng(0).standard_normal((layer.filters, layer.channels, layer.taps, layer.taps)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, layer.channels, side, side]), ("y", [1, layer.filters, layer.side, layer.side]))
    ]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def program(layer: Layer) -> Program:
    """The layer, compiled with synthetic inputs."""
    return build(quantize_model(network(layer)), TARGET)


def found(layer: Layer) -> Finding:
    """Estimate and measurement."""
    ours = program(layer)
    tensor = ours.interface.inputs[0]
    feeds = {tensor.name: np.random.default_rng(1).integers(-128, 127, tensor.shape, np.int8, endpoint=True)}
    executor = UnicornExecutor.of_image(ours.image.data, ours.image.entries, ours.image.arch)
    with executor.tracing() as blocks:
        Loaded(ours.interface, executor).run_integer(feeds)
    cycles = estimate(ours.image, blocks, TARGETS[TARGET].features).cycles
    times, clocks = list[float](), list[float]()
    for _ in range(TRIES):
        clocks.append(clock())
        times.append(min(_microseconds(ours, feeds) for _ in range(ROUNDS)))
    return Finding(str(layer), cycles, median(times), median(clocks))


def _microseconds(ours: Program, feeds: dict[str, NDArray[np.int8]]) -> float:
    start = perf_counter_ns()
    ours.run_integer(feeds)
    return (perf_counter_ns() - start) / 1e3


@cache
def _chain() -> Jitted:
    """x = 5 x + 1, STEPS times, each after the other."""
    module, i64, pointer = ir.Module("chain"), ir.IntType(64), ir.PointerType()
    function = ir.Function(module, ir.FunctionType(ir.IntType(32), [pointer]), "chain")
    begin, loop, end = (function.append_basic_block(n) for n in ("begin", "loop", "end"))
    b = ir.IRBuilder(begin)
    factor = b.load(function.args[0], typ=i64)
    b.branch(loop)
    b.position_at_end(loop)
    i, x = b.phi(i64), b.phi(i64)
    more, grown = b.add(i, i64(1)), b.add(b.mul(x, factor), i64(1))
    for phi, first, later in ((i, i64(0), more), (x, factor, grown)):
        phi.add_incoming(first, begin)
        phi.add_incoming(later, loop)
    b.cbranch(b.icmp_unsigned("<", more, i64(STEPS)), loop, end)
    b.position_at_end(end)
    b.store(grown, function.args[0])
    b.ret(ir.IntType(32)(0))
    return jit(module, host_target(), ["chain"])[0]


def clock() -> float:
    """GHz of this core, now."""
    memory = np.array([5], np.int64)
    start = perf_counter_ns()
    _chain()(memory.ctypes.data)
    return 4 * STEPS / (perf_counter_ns() - start)


@click.command()
def main() -> None:
    """Print the table."""
    findings = [found(layer) for layer in LAYERS]
    click.echo(f"{cpu_name()}, model {CORES['x86_64']}, {TARGET}")
    for f in findings:
        click.echo(f"{f.layer:40} {f.cycles:12.0f} cycles {f.microseconds:9.1f} us at {f.gigahertz:.2f} GHz: estimate / measured {f.ratio:.2f}")
    click.echo(f"median {median(f.ratio for f in findings):.2f}")


if __name__ == "__main__":
    main()
