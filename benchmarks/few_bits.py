"""Four bits against eight, one dense layer at a time: `python -m benchmarks.few_bits --target x86-64-avx2`.

Each network is one product of [pixels, K] and [K, N], weights of Student's t, compiled twice; calls take turns, of which the median counts.
Activations are 8 bits, integers go in and come out. Four bits have multipliers by group where the layer has several pixels (`weight_grid`).
"""

from __future__ import annotations

from time import perf_counter

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompiler.api import Program, build, quantize_model
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.plan import Plan, Precision
from qcompiler.runtime.cpu import cpu_name

LAYERS = [
    *((pixels, k, k) for k in (256, 512, 1024) for pixels in (49, 196, 784)),
    (196, 2304, 256),
    (1, 1024, 4096),
    (1, 4096, 1024),
]
"""Pixels, K, N."""
BITS = (8, 4)
CALIBRATION, SECONDS, LEAST = 8, 1.0, 30


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
    times, end = [list[float]() for _ in made], perf_counter() + SECONDS
    while perf_counter() < end or len(times[0]) < LEAST:
        for p, x, found in zip(made, feeds, times):
            start = perf_counter()
            p.run_integer(x)
            found.append(perf_counter() - start)
    return [1e3 * float(np.median(found)) for found in times]


@click.command()
@click.option("--target", default="host", show_default=True, help="A target that runs here.")
def main(target: str) -> None:
    """Print a table of milliseconds on one thread."""
    click.echo(f"{cpu_name()}, code for {target}\n\n| pixels, K, N | w8a8, ms | w4a8, ms | ratio | bytes of weights |\n|---|---|---|---|---|")
    for layer in LAYERS:
        made = programs(*layer, target)
        eight, four = milliseconds(made)
        part = made[1].code.interface.weights_size / made[0].code.interface.weights_size
        click.echo(f"| {', '.join(map(str, layer))} | {eight:.3f} | {four:.3f} | {eight / four:.2f} | {part:.2f} |")


if __name__ == "__main__":
    main()
