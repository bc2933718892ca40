"""`qcompile compare`: one network on several targets, in a table, as JSON or CSV, and on one page of HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from qcompiler.errors import UsageError

from .bench import cpu_name
from .comparison import FLOAT, NAMES, Call, Plan, Row, Samples, asked, compiled_rows, peer_row, timed_rows
from .compile import METHOD_HELP, METHODS, ONNX_TARGETS, REPQUANT, Shapes, check_model, check_target, chosen, model_inputs, quantized_model
from .compile import check_place as check_writable
from .data import Dataset, Input, first
from .floats import FloatModel
from .images import Preprocessing
from .options import data_option, image_options, json_option, labels_option, named_shapes, read_data
from .peers import PEERS, Network, Opened, Peer, Task, named_peers, opened
from .requirement import Requirement
from .show import progress, say, show_json, show_table, size, warn

if TYPE_CHECKING:
    from qcompiler.api import Program, QuantizedModel

REQUIRE_HELP = f"exit with 1 unless it holds for every compiled target, as in 'accuracy>=.82 and latency<5ms'; figures: {', '.join(sorted(NAMES))}"
PEERS_HELP = f"other runtimes to compare with, separated by commas: {', '.join(PEERS)}; onnxruntime float always is"
INVENTED = 4
Others = Mapping[str, tuple[Peer, Opened]]
"""Other runtimes by the names of their rows."""


@dataclass(frozen=True)
class Comparison:
    """What was found, of the float network first."""

    model: str
    cpu: str
    samples: int
    threads: int
    rows: tuple[Row, ...]
    layers: tuple[dict[str, Any], ...]
    requirement: str | None = None
    held: Mapping[str, bool | None] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = {"model": self.model, "cpu": self.cpu, "samples": self.samples, "threads": self.threads}
        return {**facts, "rows": [r.as_dict() for r in self.rows], "layers": list(self.layers), "require": self.requirement, "held": self.held}


@click.command("compare")
@click.argument("model", metavar="MODEL.onnx")
@click.option("--targets", default="host", show_default=True, help="what to compile for, separated by commas; onnx-qdq too")
@click.option("--peers", help=PEERS_HELP)
@data_option("--data", "evaluation inputs [default: a few random ones, for speed and size alone]")
@labels_option
@data_option("--calib", "calibration inputs")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="use only the first N samples, and as many to calibrate")
@image_options
@click.option("--shape", "shapes", callback=named_shapes, multiple=True, metavar="NAME=N,N", help="fix the shape of an input")
@click.option("--method", type=click.Choice(METHODS), default=REPQUANT, show_default=True, help=METHOD_HELP)
@click.option("--emulated", type=click.IntRange(1), default=4, show_default=True, help="how many samples run on targets that are not this machine")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="threads of one call, here and in ONNX Runtime")
@click.option("--seconds", type=click.FloatRange(0.01), default=1.0, show_default=True, help="how long to measure each")
@click.option("--device", metavar="ssh://HOST", help="measure targets that fit another machine there; ssh must reach it without a question")
@click.option("--require", "condition", metavar="CONDITION", help=REQUIRE_HELP)
@click.option("--html", metavar="FILE", help="write one page that needs nothing else")
@click.option("--csv", "table", metavar="FILE", help="write the rows as comma-separated values")
@json_option
def command(
    model: str,
    targets: str,
    peers: str | None,
    data: str | None,
    labels: str | None,
    calib: str | None,
    limit: int | None,
    how: Preprocessing,
    shapes: Shapes,
    method: str,
    emulated: int,
    threads: int,
    seconds: float,
    device: str | None,
    condition: str | None,
    html: str | None,
    table: str | None,
    as_json: bool,
) -> int:
    """One network on several targets: accuracy, latency, size, the same bits?"""
    requirement = None if condition is None else Requirement.parse(condition, NAMES)
    names = checked(model, targets, [p for p in (html, table) if p is not None], labels, data, device)
    others = named_peers(peers)
    quantized = quantized_model(model, shapes, calib, limit, how, chosen(method), as_json)
    inputs = model_inputs(model, shapes)
    samples = Samples.of(invented(quantized) if data is None else first(read_data(data, inputs, how, labels), inputs, limit))
    with progress("comparing", None, as_json), TemporaryDirectory() as folder:
        shown = invented(quantized) if calib is None else first(read_data(calib, inputs, how, None), inputs, limit)
        calibration = tuple(b.feeds for b in shown.batches()) if others else ()
        there = opened(others, Task(Path(model), calibration, inputs, threads, Path(folder)))
        rows = compared(model, quantized, names, inputs, samples, Plan(emulated, seconds, threads, device), there)
        layers = layers_of(quantized, names, samples, seconds)
    found = Comparison(model, cpu_name(), len(samples.feeds), threads, tuple(rows), layers, condition, judged(requirement, rows, names))
    written(found, html, table)
    show_json(found.as_dict()) if as_json else show(found)
    if calib is None:
        warn("no calibration data: ranges come from random inputs; for accuracy give a few hundred real inputs with --calib")
    return verdict(found)


def checked(model: str, targets: str, places: Sequence[str], labels: str | None, data: str | None, device: str | None) -> list[str]:
    """The names of the targets; UsageError before any work is done."""
    from qcompiler.backends.remote import Device

    check_model(model)
    names = list(dict.fromkeys(t.strip() for t in targets.split(",") if t.strip()))
    if not names:
        raise UsageError("--targets names no target; `qcompile targets` lists them")
    for name in names:
        check_target(name)
    if device is not None:
        Device.parse(device)
    for place in places:
        check_writable(Path(place))
    if labels is not None and data is None:
        raise UsageError("--labels names an array of --data, which is missing")
    return names


def invented(model: QuantizedModel) -> Dataset:
    """A few random samples."""
    from qcompiler.passes.calibrate import synthetic_batches

    from .data import Batch

    graph = model.graphs.integer_graph
    return Dataset("random numbers", lambda: (Batch(dict(f)) for f in synthetic_batches(graph, INVENTED)), INVENTED)


def compared(
    model: str, quantized: QuantizedModel, names: Sequence[str], inputs: list[Input], samples: Samples, plan: Plan, others: Others
) -> list[Row]:
    """All rows: the float network, the other runtimes, then the targets in the order in which they were named."""
    from qcompiler.api import build

    output = quantized.graphs.integer_graph.output_names[0]
    programs: dict[str, Program] = {name: build(quantized, name) for name in names if name not in ONNX_TARGETS}
    exported = {name: exported_bytes(quantized, name) for name in names if name in ONNX_TARGETS}
    networks: dict[str, Network] = {FLOAT: FloatModel.open(model, inputs, plan.threads)}
    networks |= {name: ready.network for name, (_, ready) in others.items()}
    networks |= {name: FloatModel.open(content, inputs, plan.threads) for name, content in exported.items()}
    answers = {name: asked(runner(network), samples.feeds, output) for name, network in networks.items()}
    real = answers[FLOAT]
    sizes = {FLOAT: Path(model).stat().st_size} | {name: len(content) for name, content in exported.items()}
    sizes |= {name: ready.size for name, (_, ready) in others.items()}
    runtimes = {name: peer.runtime for name, (peer, _) in others.items()}
    rows = [peer_row(name, sizes[name], samples, answers[name], real, runtimes.get(name, "onnxruntime")) for name in networks]
    ours, calls = compiled_rows(quantized, programs, samples, real, plan)
    calls |= {name: peer_call(network, samples) for name, network in networks.items()}
    order = [FLOAT, *others, *names]
    return timed_rows(sorted([*rows, *ours], key=lambda r: order.index(r.target)), calls, programs, plan)


def runner(network: Network) -> Call:
    """How another runtime is asked."""
    return lambda feeds: network.run(dict(feeds))


def peer_call(network: Network, samples: Samples) -> Callable[[], object]:
    """One call of another runtime."""
    feeds = dict(samples.feeds[0])
    return lambda: network.run(feeds)


def exported_bytes(model: QuantizedModel, name: str) -> bytes:
    """The quantized ONNX network of an ONNX target."""
    from qcompiler.backends.onnx import export_target

    content: bytes = export_target(model.graphs, name).SerializeToString()
    return content


def layers_of(model: QuantizedModel, names: Sequence[str], samples: Samples, seconds: float) -> tuple[dict[str, Any], ...]:
    """Signal to noise of each layer, and its time on the first target that runs here."""
    from qcompiler.backends.llvm.target import find_target
    from qcompiler.profile import profile

    rows = [find_target(name) for name in names if name not in ONNX_TARGETS]
    here = next((row for row in rows if row.runs_here and row.os == "linux"), None)
    times = {}
    if here is not None:
        found = profile(model.graphs.integer_graph, here, samples.feeds[0], min(seconds, 0.5), model.steps)
        times = {layer.name: layer.milliseconds for layer in found.layers}
    return tuple({"name": x.name, "macs": x.macs, "sqnr": x.sqnr, "milliseconds": times.get(x.name)} for x in model.report.layers)


def judged(requirement: Requirement | None, rows: Sequence[Row], names: Sequence[str]) -> dict[str, bool | None] | None:
    """Whether the requirement holds for each of the targets `names`."""
    real = next(r for r in rows if r.target == FLOAT)
    return None if requirement is None else {r.target: requirement.holds(r.figures(real)) for r in rows if r.target in names}


def verdict(found: Comparison) -> int:
    """1 where bits differ or the requirement fails; what is not known fails nothing, unless nothing is known."""
    if any(r.same_bits is False for r in found.rows):
        warn("the programs do not give the same bits: please report it")
        return 1
    if found.held is None:
        return 0
    if unknown := [t for t, held in found.held.items() if held is None]:
        warn(f"--require could not be judged for {', '.join(unknown)}: a figure is not known there")
    failed = [t for t, held in found.held.items() if held is False]
    if failed:
        warn(f"--require '{found.requirement}' does not hold for {', '.join(failed)}")
    elif all(held is None for held in found.held.values()):
        raise UsageError("--require asks for figures that are known of no target: name --data and --labels, or a target that runs here")
    return int(bool(failed))


def written(found: Comparison, html: str | None, table: str | None) -> None:
    """The files that were asked for."""
    from .comparison_page import page

    texts = {place: text for place, text in ((html, page(found)), (table, as_csv(found.rows))) if place is not None}
    for place, text in texts.items():
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text(text, encoding="utf-8")


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row below the names of the figures."""
    text = io.StringIO()
    dicts = [r.as_dict() for r in rows]
    writer = csv.DictWriter(text, list(dicts[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(dicts)
    return text.getvalue()


HEADINGS = (
    "target",
    "ran",
    ">top-1 %",
    ">95% interval",
    ">not as float %",
    ">latency ms",
    "kind",
    ">% of peak",
    ">code",
    ">weights",
    ">arena",
    "same bits",
)


def cells(row: Row) -> tuple[str, ...]:
    """The figures of a row, as people read them; a dash where there is none."""

    def shown(value: float | None, form: Callable[[Any], str]) -> str:
        return "-" if value is None else form(value)

    interval = "-" if row.low is None or row.high is None else f"{100 * row.low:.1f} to {100 * row.high:.1f}"
    same = "-" if row.same_bits is None else f"{'yes' if row.same_bits else 'NO'}, {row.samples} samples"
    return (
        row.target,
        row.ran,
        shown(row.value, lambda x: f"{100 * x:.2f}"),
        interval,
        shown(row.disagreement, lambda x: f"{100 * x:.2f}"),
        shown(row.latency_ms, lambda x: f"{x:.4g}"),
        counted(row) if row.instructions is not None else row.latency_kind or "-",
        shown(row.percent_of_peak, lambda x: f"{x:.0f}"),
        shown(row.code_bytes, size),
        shown(row.weight_bytes, size),
        shown(row.arena_bytes, size),
        same,
    )


def counted(row: Row) -> str:
    """What an emulated inference costs; cycles are an estimate, and said to be."""
    cycles = "" if row.cycles is None else f", ~{row.cycles / 1e6:.3g} M cycles of {row.core}"
    return f"counted: {(row.instructions or 0) / 1e6:.3g} M instructions{cycles}"


def show(found: Comparison) -> None:
    """The table for people."""
    title = f"{found.model}, {found.samples} samples, {found.cpu}, {found.threads} thread(s)"
    show_table(title, HEADINGS, [cells(r) for r in found.rows])
    if found.held is not None:
        words = {True: "yes", False: "NO", None: "not known"}
        say(f"{found.requirement}: " + ", ".join(f"{t}: {words[h]}" for t, h in found.held.items()))
