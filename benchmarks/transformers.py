"""Accuracy, exactness, proofs and latency of the zoo's transformers: `python -m benchmarks.transformers [names] --precision w8a8`.

For each network and precision: the metric of the float network in onnxruntime and of the compiled program on the evaluation data, the
loss beside its bar, run() == reference() on every target (natively where this CPU can, arm64 under unicorn, other instruction sets by the
meaning of their instructions), the certificates, and the median latency of one thread interleaved with onnxruntime's float. With
`--peers-python` every runtime gets a process of its own as in `benchmarks.compare`, and the fastest of onnxruntime and OpenVINO, float
and int8, counts whose own loss is within 1 point (1 %). The convolutional networks of the zoo may be named too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path

import click

from benchmarks.measure import CERTIFIED, TARGETS, all_equal, by_meaning, exactness, of_program, of_session, options_for, session
from benchmarks.rivals import Rivals, prepared, timed
from benchmarks.zoo import SEQUENCE_NETWORKS, TASKS, Data, Task
from qcompiler.api import Program, QuantizedModel, build, quantize_model
from qcompiler.errors import QCompilerError
from qcompiler.runtime.bench import compare
from qcompiler.runtime.cpu import cpu_name


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    limit: int | None = None
    samples: int = 128
    exact: int = 4
    emulated: int = 1
    """Samples of the comparison on targets that are emulated."""
    targets: tuple[str, ...] = TARGETS
    peers: str | None = None


@dataclass(frozen=True)
class Row:
    """One network at one precision. Without `error`, everything was measured."""

    name: str
    precision: str
    metric: str
    unit: str
    floats: float
    ours: float = float("nan")
    loss: float = float("nan")
    allowed: float | None = None
    exact: dict[str, str] = field(default_factory=dict)
    certified: dict[str, bool] = field(default_factory=dict)
    compile_seconds: float = float("nan")
    code_kb: float = float("nan")
    image_kb: float = float("nan")
    float_ms: float = float("nan")
    ours_ms: float = float("nan")
    rivals: Rivals | None = None
    error: str = ""

    @property
    def kept(self) -> bool:
        """Whether the loss is within its bar."""
        return not self.error and (self.allowed is None or self.loss <= self.allowed)


def measure(task: Task, data: Data, floats: float, precision: str, plan: Plan) -> Row:
    """Everything about one network at one precision; a network that does not compile is a row that says why."""
    row = partial(Row, task.name, precision, task.metric.name, task.metric.unit, floats, allowed=task.allowed.get(precision))
    start = time.perf_counter()
    try:
        model = quantize_model(task.path, data.calibration[: plan.samples], options=options_for(precision))
        host = build(model)
    except (QCompilerError, ValueError, NotImplementedError) as e:
        return row(error=f"{type(e).__name__}: {e}")
    seconds = time.perf_counter() - start
    ours = judged(data, host, plan.limit)
    exact, certified = checked(model, host, data, plan)
    times = latencies(task, data, host)
    return row(
        ours=ours,
        loss=task.metric.loss(floats, ours),
        exact=exact,
        certified=certified,
        compile_seconds=seconds,
        code_kb=host.image.code_size / 1024,
        image_kb=len(host.image.data) / 1024,
        float_ms=times["float"],
        ours_ms=times["ours"],
        rivals=timed(task.name, prepared(task, data, host, plan.samples, plan.limit, plan.peers)) if plan.peers else None,
    )


def judged(data: Data, program: Program, limit: int | None) -> float:
    """The metric of a program."""
    run = of_program(program)
    return data.judge([run(x) for x in data.first(limit)])


def judged_in_floats(task: Task, data: Data, limit: int | None) -> float:
    """The metric of the float network."""
    run = of_session(session(str(task.path), threads=0))
    return data.judge([run(x) for x in data.first(limit)])


def checked(model: QuantizedModel, host: Program, data: Data, plan: Plan) -> tuple[dict[str, str], dict[str, bool]]:
    """Per target, the count of exact samples and, where certificates are asked for, whether it is certified. One program at a time."""
    inputs = data.evaluation[: plan.exact]
    references = [host.reference(x) for x in inputs]
    exact, certified = dict[str, str](), dict[str, bool]()
    for target in plan.targets:
        program = by_meaning(model, target)
        count = plan.exact if program.target.runs_here else plan.emulated
        exact[target] = exactness(program, references[:count], inputs[:count])
        if target in CERTIFIED:
            certified[target] = program.certificate.ok
    return exact, certified


def latencies(task: Task, data: Data, host: Program) -> dict[str, float]:
    """Milliseconds of one call, in turn, one thread each."""
    runners = {"float": of_session(session(str(task.path))), "ours": of_program(host)}
    times = compare({name: partial(run, data.evaluation[0]) for name, run in runners.items()}, 2.0)
    return {name: t.median for name, t in times.items()}


# --- what is reported ------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [
        "| network | precision | metric | float | ours | loss (bar) | exact on all targets | certified | ORT float ms | ours ms | against float "
        "| fastest accurate peer | against it | code, image KB | compile s |",
        "|" + "---|" * 15,
    ]
    return "\n".join(lines + [line(r) for r in rows])


def line(r: Row) -> str:
    """One row of it."""
    head = f"| {r.name} | {r.precision} | {r.metric} | {r.floats:.4g} "
    if r.error:
        return f"{head}| {r.error.splitlines()[0]} |" + " |" * 10
    bar = "none" if r.allowed is None else f"{r.allowed:g}{'' if r.kept else ', missed'}"
    peer = f"{r.rivals.fastest} {r.rivals.milliseconds[r.rivals.fastest]:.2f} ms | {r.rivals.gain:.2f}x" if r.rivals else "- | -"
    return (
        f"{head}| {r.ours:.4g} | {r.loss:+.3g} {r.unit} ({bar}) | {all_or(r.exact, all_equal(r.exact))} "
        f"| {all_or(r.certified, all(r.certified.values()))} | {r.float_ms:.2f} | {r.ours_ms:.2f} | {r.float_ms / r.ours_ms:.2f}x "
        f"| {peer} | {r.code_kb:.0f}, {r.image_kb:.0f} | {r.compile_seconds:.0f} |"
    )


def all_or(found: Mapping[str, object], good: bool) -> str:
    """'yes', or what was found."""
    return "yes" if good else str(dict(found))


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(TASKS)))
@click.option("--precision", "precisions", multiple=True, help="May be repeated; default: those that have a bar.")
@click.option("--limit", type=int, help="Evaluate on the first so many samples (pairs of sentences) only.")
@click.option("--samples", default=128, show_default=True, help="Calibration inputs.")
@click.option("--exact", default=4, show_default=True, help="Samples to compare on every target.")
@click.option("--emulated", default=1, show_default=True, help="Samples to compare on targets that are emulated.")
@click.option("--target", "targets", multiple=True, default=TARGETS, help="Targets of the comparison; may be repeated.")
@click.option("--peers-python", help="Interpreter that has openvino and nncf: compare with the fastest accurate peer.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write all figures here.")
def main(
    names: tuple[str, ...],
    precisions: tuple[str, ...],
    limit: int | None,
    samples: int,
    exact: int,
    emulated: int,
    targets: tuple[str, ...],
    peers_python: str | None,
    output: Path | None,
) -> None:
    """Measure the networks (the transformers by default)."""
    plan, rows = Plan(limit, samples, exact, emulated, targets, peers_python), list[Row]()
    for task in (TASKS[name] for name in names or SEQUENCE_NETWORKS):
        data = task.load()
        floats = judged_in_floats(task, data, limit)
        for precision in precisions or task.allowed:
            rows.append(measure(task, data, floats, precision, plan))
            click.echo(json.dumps(asdict(rows[-1])), err=True)
            if output:
                output.write_text(json.dumps({"cpu": cpu_name(), "date": str(date.today()), "rows": [asdict(r) for r in rows]}, indent=1))
    click.echo(f"{cpu_name()}, {date.today()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
