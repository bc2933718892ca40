"""Four bits against eight, one dense layer at a time: `python -m benchmarks.few_bits --target x86-64-avx2 [names]`.

Each network is one product of [pixels, K] and [K, N], weights of Student's t, compiled twice; calls take turns, of which the median counts.
Activations are 8 bits, integers go in and come out. Four bits have multipliers by group where the layer has several pixels (`weight_grid`).

With names of networks, it is their layers with K of `DEEP` and more and several pixels, untuned, that are measured where they are, by the profiling
build: in sum, and the least and the greatest ratio by pixels. Both widths take turns there, too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.zoo import TASKS
from qcompiler.api import Program, build, quantize_model
from qcompiler.backends.llvm.target import Target, find_target
from qcompiler.ir.graph import Graph
from qcompiler.ir.ops import Conv
from qcompiler.latency import layer_latencies
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.plan import Plan, Precision
from qcompiler.passes.precision.simulate import weighted_layers
from qcompiler.runtime.bench import compare
from qcompiler.runtime.cpu import cpu_name

LAYERS = [
    *((pixels, k, k) for k in (256, 512, 1024) for pixels in (49, 196, 784)),
    (196, 2304, 256),
    (1, 1024, 4096),
    (1, 4096, 1024),
]
"""Pixels, K, N."""
BITS = (8, 4)
CALIBRATION, SECONDS = 8, 1.0
NETWORK_CALIBRATION, DEEP = 32, 256


def dense(pixels: int, k: int, n: int, random: np.random.Generator) -> onnx.ModelProto:
    """One product as a network."""
    w = (random.standard_t(6, (k, n)) / np.sqrt(k)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [pixels, size]) for name, size in (("x", k), ("y", n)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "dense", [x], [y], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def programs(pixels: int, k: int, n: int, target: str) -> list[Program]:
    """One of each width."""
    random = np.random.default_rng(0)
    model = dense(pixels, k, n, random)
    data = [{"x": random.standard_normal((pixels, k)).astype(np.float32)} for _ in range(CALIBRATION)]
    options = (Options(plan=Plan(default=Precision(bits, 8)), distill=False) for bits in BITS)
    return [build(quantize_model(model, data, options=o), target) for o in options]


def milliseconds(made: list[Program]) -> list[float]:
    """Medians of calls in turns."""
    feeds = [{t.name: np.ones(t.shape, np.int8) for t in p.interface.inputs} for p in made]
    calls = {str(bits): partial(p.run_integer, x) for bits, p, x in zip(BITS, made, feeds, strict=True)}
    return [found.median for found in compare(calls, SECONDS / len(calls)).values()]


def deep_layers(graph: Graph) -> dict[str, int]:
    """Pixels of the dense layers of a float network that have several, and K of at least `DEEP`, by name."""
    dense = (v for v in weighted_layers(graph) if isinstance(v.op, Conv) and v.op.groups == 1)
    pixels = {v.name: math.prod(v.shape[:-1]) for v in dense if math.prod(v.inputs[1].shape[1:]) >= DEEP}
    return {name: n for name, n in pixels.items() if n > 1}


def network(name: str, target: Target) -> str:
    """A row of a network."""
    task = TASKS[name]
    samples = task.load().calibration[:NETWORK_CALIBRATION]
    made = {b: quantize_model(task.path, samples, options=Options(plan=Plan(default=Precision(b, 8)), distill=False)) for b in BITS}
    times = layer_latencies({b: q.graphs for b, q in made.items()}, target, made[8].samples[0]).layers
    pixels = deep_layers(made[8].graphs.float_graph)
    return network_row(name, {layer: times[layer] for layer in pixels}, pixels)


def network_row(name: str, times: Mapping[str, tuple[float, ...]], pixels: Mapping[str, int]) -> str:
    """Of milliseconds in either width."""
    eight, four = (sum(column) for column in zip(*times.values(), strict=True))
    ratios = defaultdict[int, list[float]](list)
    for layer, (a, b) in times.items():
        ratios[pixels[layer]].append(a / b)
    by_pixels = ", ".join(f"{n}: {min(found):.2f} to {max(found):.2f}" for n, found in sorted(ratios.items(), reverse=True))
    return f"| {name} | {len(times)} | {eight:.2f} | {four:.2f} | {eight / four:.2f} | {by_pixels} |"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--target", default="host", show_default=True, help="A target that runs here.")
def main(names: tuple[str, ...], target: str) -> None:
    """Print a table of milliseconds on one thread, of the layers of networks or of single ones."""
    click.echo(f"{cpu_name()}, code for {target}\n")
    for row in networks(names, target) if names else single(target):
        click.echo(row)


def networks(names: Iterable[str], target: str) -> Iterator[str]:
    """The table of networks."""
    yield "| network | layers | w8a8, ms | w4a8, ms | ratio | single layers by pixels |\n|---|---|---|---|---|---|"
    yield from (network(name, find_target(target)) for name in names)


def single(target: str) -> Iterator[str]:
    """The table of `LAYERS`."""
    yield "| pixels, K, N | w8a8, ms | w4a8, ms | ratio | bytes of weights |\n|---|---|---|---|---|"
    for layer in LAYERS:
        made = programs(*layer, target)
        eight, four = milliseconds(made)
        part = made[1].code.interface.weights_size / made[0].code.interface.weights_size
        yield f"| {', '.join(map(str, layer))} | {eight:.3f} | {four:.3f} | {eight / four:.2f} | {part:.2f} |"


if __name__ == "__main__":
    main()
