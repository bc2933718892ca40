"""The nine `data/light` graphs of the onnx package, with random weights: `python -m benchmarks.light [names]`.

Prints a Markdown table: is run() == reference() on every target, the certificates, seconds, peak memory and sizes. Each network
is measured in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

from qcompiler.api import build, quantize_model
from qcompiler.runtime.cpu import cpu_name

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
from light import NAMES, light

TARGETS = ("host", "arm64", "arm64-dotprod")
HEADER = "| network | exact | certified | quantize s | compile s | image MB | code KB | run ms (host) | peak MB |\n|" + "---|" * 9


def peak() -> int:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def measure(name: str) -> str:
    """One row."""
    start = time.perf_counter()
    model = quantize_model(light(name))
    seconds, memory = time.perf_counter() - start, peak()
    rng = np.random.default_rng(1)
    feeds = {v.name: rng.standard_normal(v.shape, np.float32) for v in model.graphs.float_graph.inputs}
    exact, certified, compiled, codes, expected, run = [], [], [], [], None, 0.0
    for target in TARGETS:
        start = time.perf_counter()
        program = build(model, target)
        image = program.image
        compiled.append(f"{time.perf_counter() - start:.1f}")
        expected = expected if expected is not None else program.reference(feeds)
        made = program.run(feeds)
        if target == "host":
            start = time.perf_counter()
            program.run(feeds)
            run = 1000 * (time.perf_counter() - start)
        exact.append("yes" if all(np.array_equal(made[k], expected[k]) for k in expected) else "NO")
        certified.append("yes" if program.certificate.ok else "NO")
        codes.append(str(image.code_size >> 10))
    weights = len(image.data) / 2**20
    joined = [" ".join(c) for c in (exact, certified, compiled, codes)]
    cells = (name, *joined[:2], f"{seconds:.0f}", joined[2], f"{weights:.0f}", joined[3], f"{run:.0f}", f"{memory} / {peak()}")
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--here", is_flag=True, help="In this process, without the head of the table.")
def main(names: tuple[str, ...], here: bool) -> None:
    """Measure the networks (all by default)."""
    if here:
        click.echo("\n".join(map(measure, names)))
        return
    click.echo(f"CPU: {cpu_name()}; targets {', '.join(TARGETS)}; peak memory after quantization / at the end\n\n{HEADER}")
    for name in names or NAMES:
        subprocess.run([sys.executable, "-m", "benchmarks.light", "--here", name], check=True)


if __name__ == "__main__":
    main()
