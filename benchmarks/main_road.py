"""Accuracy, exactness, proofs, size and latency of the zoo's convolutional networks: `python -m benchmarks.main_road [names]`.

Latencies are medians of runs interleaved with onnxruntime's in one process, one thread each. Prints a Markdown table and, with
--json FILE, writes all figures. Exactness runs `--exact N` inputs on every target: natively where this CPU can, arm64 under
unicorn, other instruction sets by the meaning of their instructions.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks.measure import CERTIFIED, TARGETS, all_equal, by_meaning, exactness, of_program, of_session, session
from benchmarks.zoo import NETWORKS, Network, classification
from qcompiler.api import build, quantize_model
from qcompiler.backends.onnx import export_target
from qcompiler.runtime.bench import compare
from qcompiler.runtime.cpu import cpu_name


@dataclass
class Row:
    """What was measured of one network."""

    name: str
    compile_seconds: float
    peak_memory_mb: float
    float_top1: float
    int_top1: float
    allowed_drop: float
    qdq_top1: float
    exact: dict[str, str]
    certified: dict[str, bool]
    code_kb: dict[str, float]
    float_ms: float
    qdq_ms: float
    ours_ms: float


def measure(net: Network, limit: int | None, exact: int) -> Row:
    """Everything about one network."""
    data = classification(net).load()
    start = time.perf_counter()
    model = quantize_model(net.path, data.calibration[:512])
    host = build(model)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    inputs = data.evaluation[:exact]
    references = [host.reference(x) for x in inputs]
    programs = {t: by_meaning(model, t) for t in TARGETS}
    floats, qdq = session(str(net.path)), session(export_target(model.graphs, "onnx-qdq").SerializeToString())
    runners = {"float": of_session(floats), "qdq": of_session(qdq), "ours": of_program(host)}
    times = compare({name: partial(run, inputs[0]) for name, run in runners.items()}, 2.0)
    top1 = {name: data.judge([run(x) for x in data.first(limit)]) for name, run in runners.items()}
    return Row(
        net.name,
        seconds,
        memory,
        top1["float"],
        top1["ours"],
        net.drop,
        top1["qdq"],
        {t: exactness(p, references, inputs) for t, p in programs.items()},
        {t: programs[t].certificate.ok for t in CERTIFIED},
        {t: round(p.image.code_size / 1024, 1) for t, p in programs.items()},
        times["float"].median,
        times["qdq"].median,
        times["ours"].median,
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| network | top-1 float | ours | drop (bar) | QDQ in onnxruntime | exact on all targets | certified | code KB "
        "| ORT float ms | ORT int8 ms | ours ms | against float | compile s |",
        "|" + "---|" * 13,
    ]
    for r in rows:
        exact = "yes" if all_equal(r.exact) else str(r.exact)
        certified = "yes" if all(r.certified.values()) else str(r.certified)
        lines.append(
            f"| {r.name} | {r.float_top1:.2f} | {r.int_top1:.2f} | {r.float_top1 - r.int_top1:+.2f} ({r.allowed_drop}) | {r.qdq_top1:.2f} "
            f"| {exact} | {certified} | {r.code_kb['host']:.0f} | {r.float_ms:.3f} | {r.qdq_ms:.3f} | {r.ours_ms:.3f} "
            f"| {r.float_ms / r.ours_ms:.2f}x | {r.compile_seconds:.1f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--limit", type=int, help="Evaluate on the first so many samples only.")
@click.option("--exact", default=20, help="Inputs to compare on every target.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write all figures here.")
def main(names: tuple[str, ...], limit: int | None, exact: int, output: Path | None) -> None:
    """Measure the networks (all by default)."""
    rows = []
    for name in names or NETWORKS:
        rows.append(measure(NETWORKS[name], limit, exact))
        click.echo(json.dumps(asdict(rows[-1])), err=True)
    click.echo(f"CPU: {cpu_name()}\n\n{markdown(rows)}")
    if output:
        output.write_text(json.dumps({"cpu": cpu_name(), "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
