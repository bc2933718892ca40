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
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort

from benchmarks.zoo import NETWORKS, Network
from qcompiler.api import Program, QuantizedModel, build, quantize_model
from qcompiler.backends.onnx import export_qdq
from qcompiler.runtime.bench import compare
from qcompiler.runtime.cpu import cpu_name

TARGETS = ("host", "x86-64", "x86-64-avx2", "x86-64-avx512vnni", "arm64", "arm64-dotprod")
CERTIFIED = ("x86-64-avx2", "x86-64-avx512vnni", "arm64-dotprod")


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


def session(model: bytes | str, threads: int = 1) -> ort.InferenceSession:
    """An onnxruntime session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ort_top1(s: ort.InferenceSession, net: Network, limit: int | None) -> float:
    """Accuracy of a session, in percent."""
    name = s.get_inputs()[0].name
    return 100 * float(np.mean([int(s.run(None, {name: x})[0].argmax()) == y for x, y in net.batches("eval", limit)]))


def top1(program: Program, net: Network, limit: int | None) -> float:
    """Accuracy of a program, in percent."""
    name = program.interface.inputs[0].name
    hits = [int(next(iter(program.run({name: x}).values())).argmax()) == y for x, y in net.batches("eval", limit)]
    return 100 * float(np.mean(hits))


def exactness(program: Program, references: Sequence[dict[str, Any]], inputs: Sequence[dict[str, Any]]) -> str:
    """'20/20' where every output of every input equals the reference's."""
    equal = sum(all(np.array_equal(out[k], ref[k]) for k in ref) for ref, out in ((r, program.run(x)) for r, x in zip(references, inputs)))
    return f"{equal}/{len(inputs)}"


def by_meaning(model: QuantizedModel, target: str) -> Program:
    """The program for `target`, by meaning where it is for this architecture but not for this CPU."""
    from qcompiler.backends.llvm.target import find_target, host_arch

    row = find_target(target)
    return build(model, row.generic() if row.arch == host_arch() and not row.runs_here else row)


def measure(net: Network, limit: int | None, exact: int) -> Row:
    """Everything about one network."""
    start = time.perf_counter()
    name = session(str(net.path)).get_inputs()[0].name
    model = quantize_model(net.path, ({name: x} for x, _ in islice(net.batches("calib"), 512)))
    host = build(model)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    qdq = export_qdq(model.graphs.exchange_graph).SerializeToString()
    inputs = [{name: x} for x, _ in net.batches("eval", exact)]
    references = [host.reference(x) for x in inputs]
    programs = {t: by_meaning(model, t) for t in TARGETS}
    x = inputs[0]
    float_session, qdq_session = session(str(net.path)), session(qdq)
    times = compare({"float": lambda: float_session.run(None, x), "qdq": lambda: qdq_session.run(None, x), "ours": lambda: host.run(x)}, 2.0)
    return Row(
        net.name,
        seconds,
        memory,
        ort_top1(float_session, net, limit),
        top1(host, net, limit),
        net.drop,
        ort_top1(qdq_session, net, limit),
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
        exact = "yes" if all(len(set(e.split("/"))) == 1 for e in r.exact.values()) else str(r.exact)
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
