"""`qcompile MODEL.onnx`: calibrate, quantize, generate code, write the artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.errors import UsageError

from .data import Dataset, Input
from .ends import AS_IT_IS, Ends, ends_options
from .exported import exported_model, findings_told, profile_of
from .images import Preprocessing
from .options import data_option, image_options, json_option, named_shapes, read_data
from .precision import W8A8, Budget, Wanted, budget_options, cache_folder, choice_of, told_choice, wanted_precision, write_choice
from .show import phases, progress, say, show_json, show_table, size, warn

if TYPE_CHECKING:
    from qcompiler.api import Program, QuantizedModel
    from qcompiler.backends.llvm.target import Target
    from qcompiler.passes.pipeline import Options

ONNX_TARGETS = {"onnx-qdq": "QuantizeLinear and DequantizeLinear around float operators", "onnx-qoperator": "QLinearConv and its kin"}
SCALES = {"any": False, "power-of-two": True}
SCALES_HELP = "power-of-two: every scale is one, so that requantization is a shift; DSPs want it, accuracy may fall by a point"
Shapes = dict[str, list[tuple[int, ...]]]

REPQUANT = "repquant"
DUAL = "repquant-dual"
PLAIN_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "mse": "Mse", "entropy": "Entropy"}
METHODS = [REPQUANT, DUAL, *PLAIN_METHODS]
METHOD_HELP = (
    "how ranges are chosen: repquant evens the channels of transformers first and takes the least squared error; "
    "repquant-dual clips each channel of normalizations, too, below 8 bits; the others are plain"
)
PRECISION_HELP = (
    "bits of weights (2 to 8) and of the activations they multiply (4 to 8, or 16): w8a8, w7a8, w6a6, w4a8, w4a4, w8a16 ...; "
    "w7a8 is about 1.4 times as fast on x86 CPUs without VNNI, little or no faster elsewhere; a file of bits layer by layer; auto chooses them"
)
SHAPE_HELP = "fix the shape of an input; may be repeated, also for one input: each of its shapes gets an entry of its own"
TUNE_HELP = "measure which tiles are fastest in each dense layer, and keep them in this table; results stay the same bits"
SYSTEMS = ["linux", "android", "macos", "windows"]

SYNTHETIC = (
    "no calibration data: ranges come from random inputs, so the answers are only good for trying out speed and size; "
    "for accuracy give a few hundred real inputs with --calib"
)


@click.command("compile")
@click.argument("model", metavar="MODEL.onnx")
@click.option("--target", "-t", default="host", show_default=True, help="what to compile for; `qcompile targets` lists them")
@click.option("--os", "system", type=click.Choice(SYSTEMS), help="operating system of the object code [default: that of the target]")
@data_option("--calib", "calibration inputs")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="use only the first N calibration samples")
@image_options
@ends_options
@click.option("--shape", "shapes", callback=named_shapes, multiple=True, metavar="NAME=N,N", help=SHAPE_HELP)
@click.option("--method", type=click.Choice(METHODS), default=REPQUANT, show_default=True, help=METHOD_HELP)
@click.option("--scales", type=click.Choice(list(SCALES)), default="any", show_default=True, help=SCALES_HELP)
@click.option("--precision", metavar="wNaM|PLAN.toml|auto", default="w8a8", show_default=True, help=PRECISION_HELP)
@budget_options
@click.option("--tune", metavar="FILE.json", help=TUNE_HELP)
@click.option("--name", default="model", show_default=True, help="prefix of the C functions")
@click.option("--no-cache", is_flag=True, help="compile all code anew, and keep none of it in the user's cache folder")
@click.option("-o", "--out", "output", help="folder of the artifact, or the .onnx file of an ONNX target [default: build/MODEL-TARGET]")
@json_option
def command(
    model: str,
    target: str,
    system: str | None,
    calib: str | None,
    limit: int | None,
    how: Preprocessing,
    ends: Ends,
    shapes: Shapes,
    method: str,
    scales: str,
    precision: str,
    budget: Budget,
    tune: str | None,
    name: str,
    no_cache: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Compile a network. This is the command that is meant where none is named."""
    place = destination(model, target, output)
    profile = profile_of(target, scales, precision)
    if profile is None:
        check_target(target)
    check_single(target, shapes)
    check_tunable(target, tune)
    wanted = wanted_precision(precision, budget, target)
    options = chosen(method, scales)
    if profile is not None:
        network, open_shapes, data = sources(model, shapes, calib, limit, how, ends)
        exported = exported_model(network, profile, data, open_shapes, options, as_json)
        written_whole(place, exported.content)
        summary = {"artifact": str(place), "target": target, **exported.facts, "synthetic": calib is None}
    else:
        quantized = quantized_model(model, shapes, calib, limit, how, options, as_json, ends, wanted)
        summary = (
            write_onnx(quantized, target, place)
            if is_onnx(target)
            else write_program(quantized, target, system, name, place, as_json, not no_cache, tune)
        )
        summary["files"] = write_choice(quantized, budget)
        warn_of_rounding(quantized)
    if calib is None:
        warn(SYNTHETIC)
    if as_json:
        show_json(summary)
    else:
        show_summary(model, summary)


def destination(model: str, target: str, output: str | None) -> Path:
    """Where the result goes. UsageError where the model is no file, or the name does not fit the target."""
    check_model(model)
    to_onnx = is_onnx(target)
    place = Path(output or f"build/{Path(model).stem}-{target.replace('@', '-').replace(':', '-')}{'.onnx' if to_onnx else ''}")
    if to_onnx and place.suffix != ".onnx":
        raise UsageError(f"expected a file ending in .onnx for the target {target}, found '{place}'; name one with -o")
    if not to_onnx and place.suffix == ".onnx":
        raise UsageError(f"'{place}' is the name of a network, but {target} gives a folder; name one with -o, or use --target onnx-qdq")
    check_place(place)
    return place


def is_onnx(target: str) -> bool:
    """Whether a target is an ONNX graph, perhaps one for a profile."""
    return target.partition(":")[0] in ONNX_TARGETS


def check_place(place: Path) -> None:
    """UsageError where nothing can be written, before any work is done."""
    above = next(p for p in place.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write '{place}': '{above}' is no folder that you may write to; choose another place with -o")


def check_model(model: str) -> None:
    """UsageError with a suggestion where there is no such file."""
    from .app import COMMANDS, nearest

    if Path(model).is_dir():
        raise UsageError(f"'{model}' is a folder; expected an ONNX file, or a command before it: qcompile inspect {model}")
    if not Path(model).is_file():
        raise UsageError(f"'{model}' is neither a file nor a command ({', '.join(COMMANDS)}).{nearest(model, list(COMMANDS))}")


def check_target(target: str) -> None:
    """UsageError for an unknown target, before any work is done."""
    from qcompiler.backends.llvm.target import find_target

    if target not in ONNX_TARGETS:
        try:
            find_target(target)
        except UsageError as problem:
            raise UsageError(f"{problem}; or one of {', '.join(ONNX_TARGETS)}") from problem


def check_single(target: str, shapes: Shapes) -> None:
    """UsageError where several shapes are to become one ONNX graph."""
    for name, several in shapes.items():
        if is_onnx(target) and len(several) > 1:
            raise UsageError(f"the target {target} takes one shape of each input, found {len(several)} of '{name}'; write one file for each")


def check_tunable(target: str, tune: str | None) -> None:
    """UsageError where there is no code to tune, or the table cannot be used, before any work is done."""
    from qcompiler.backends.llvm.target import find_target
    from qcompiler.tuning import Table

    if tune is None:
        return
    if is_onnx(target):
        raise UsageError(f"--tune chooses tiles of machine code, and {target} has none; leave it out")
    if Path(tune).exists():
        Table.read(Path(tune), find_target(target))
    else:
        check_place(Path(tune))


def model_inputs(model: str, shapes: Shapes) -> list[Input]:
    """What the network takes, its free dimensions fixed; of several shapes the largest."""
    from qcompiler.frontend.inputs import graph_inputs
    from qcompiler.frontend.lengths import ordered_forms
    from qcompiler.frontend.load import load_model

    types = graph_inputs(load_model(model).graph, ordered_forms(model, shapes)[0])
    return [Input(name, t.shape, t.dtype.value) for name, t in types.items()]


def quantized_model(
    model: str,
    shapes: Shapes,
    calib: str | None,
    limit: int | None,
    how: Preprocessing,
    options: Options,
    quiet: bool,
    ends: Ends = AS_IT_IS,
    wanted: Wanted = W8A8,
) -> QuantizedModel:
    """The network after calibration and quantization, with a progress bar."""
    from qcompiler.api import SYNTHETIC_SAMPLES, quantize_model

    network, open_shapes, data = sources(model, shapes, calib, limit, how, ends, wanted.labels)
    total = SYNTHETIC_SAMPLES if data is None else data.count
    with phases("calibrating", total, quiet) as tell:
        return quantize_model(
            network,
            data,
            shapes=open_shapes,
            options=options,
            precision=wanted.precision,
            goal=wanted.goal,
            latencies=wanted.latencies,
            labels=wanted.labels,
            saved=cache_folder(),
            progress=lambda done: tell("calibrating", done, total or 0),
            phases=tell,
        )


def warn_of_rounding(model: QuantizedModel) -> None:
    """Say why weights of few bits were not tuned to the network's answers, where torch would have done that."""
    from qcompiler.passes.pipeline import NOT_DISTILLED
    from qcompiler.passes.torch_network import MISSING

    if any(reason == f"{NOT_DISTILLED}: {MISSING}" for _, reason in model.graphs.declined.reasons):
        warn(f"{NOT_DISTILLED}, which loses less: {MISSING}")


def sources(
    model: str, shapes: Shapes, calib: str | None, limit: int | None, how: Preprocessing, ends: Ends, labels: str | None = None
) -> tuple[Any, Any, Dataset | None]:
    """The network between its ends, the shapes that are left open, and calibration data as it takes them, with `labels` beside its inputs."""
    network, open_shapes = ends.applied(model, how, shapes)
    found = calibration(model, shapes, calib, limit, ends.reading(how), labels)
    if found is None:
        return network, open_shapes, None
    data = ends.data(model, how, found)
    return network, open_shapes, data if labels is None else data.labelled(labels)


def calibration(model: str, shapes: Shapes, calib: str | None, limit: int | None, how: Preprocessing, labels: str | None = None) -> Dataset | None:
    """The calibration data that the user named, if any."""
    from .data import first

    if calib is None:
        return None
    inputs = model_inputs(model, shapes)
    data = read_data(calib, inputs, how, labels)
    return data if limit is None else first(data, inputs, limit)


def chosen(method: str, scales: str = "any") -> Options:
    """The quantizer's options."""
    from qcompiler.passes.calibrate import choose
    from qcompiler.passes.pipeline import Options
    from qcompiler.passes.scheme import Scheme

    scheme = Scheme(power_of_two=SCALES[scales])
    if method in (REPQUANT, DUAL):
        return Options(scheme=scheme, clip_channels=method == DUAL)
    return Options(method=getattr(choose, PLAIN_METHODS[method])(), reparameterize=False, scheme=scheme)


def write_program(
    model: QuantizedModel, target: str, system: str | None, name: str, place: Path, quiet: bool, cache: bool = True, tune: str | None = None
) -> dict[str, Any]:
    """Generate code and write the artifact; what is worth telling about it."""
    from qcompiler.api import build

    row = target_row(model, target, system, None if tune is None else Path(tune), quiet)
    with progress("generating code", None, quiet):
        program = build(model, row, name=name, cache=cache)
        program.save(place)
    return described(program, place)


def target_row(model: QuantizedModel, target: str, system: str | None, tune: Path | None, quiet: bool) -> Target:
    """The target, on `system` where one was named, with the tiles of the table `tune`; what the table lacks is measured and added."""
    from qcompiler.backends.llvm.target import find_target

    named = find_target(target)
    row = named if tune is None else tuned(model, named, tune, quiet)
    return row if system is None else row.for_os(system)


def tuned(model: QuantizedModel, target: Target, path: Path, quiet: bool) -> Target:
    """`target` with the tiles of the table at `path`, completed where this machine runs it."""
    from qcompiler.tuning import Table, tune

    known = Table.read(path, target) if path.exists() else Table(target.name)
    if not target.runs_here:
        warn(f"{target.name} does not run here: layers that '{path}' does not have get the tiles that the model of a core prefers")
    with progress("choosing tiles", None, quiet):
        found = tune(model.graphs.integer_graph, target, model.samples[0], known)
    if found != known:
        found.save(path)
    return found.applied(target)


def described(program: Program, place: Path) -> dict[str, Any]:
    """The facts of an artifact."""
    report, certificate = program.report, None if program.elf is None else program.certificate.as_dict()
    return {
        "artifact": str(place),
        "target": program.target.name,
        "os": program.target.os,
        "runs_here": program.target.runs_here and program.elf is not None,
        "layers": len(report.layers),
        "macs": report.macs,
        "weights_size": program.interface.weights_size,
        "arena_size": program.interface.arena_size,
        "entries": [f.entry(integer=True) for f in program.interface.forms],
        "synthetic": program.model.synthetic,
        "choice": choice_of(program.model),
        "lowest_sqnr": min(((layer.sqnr, layer.name) for layer in report.layers if layer.sqnr is not None), default=None),
        "certificate": certificate,
    }


def write_onnx(model: QuantizedModel, target: str, place: Path) -> dict[str, Any]:
    """Write the quantized ONNX model in one piece or not at all."""
    from qcompiler.backends.onnx import export_target

    content = export_target(model.graphs, target).SerializeToString()
    written_whole(place, content)
    return {"artifact": str(place), "target": target, "size": len(content), "synthetic": model.synthetic}


def written_whole(place: Path, content: bytes) -> None:
    """Write beside `place` and rename, so that an earlier file stays until the new one is complete."""
    if place.is_dir():
        raise UsageError(f"'{place}' is a folder; expected the name of a file ending in .onnx; choose another with -o")
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.part")
    try:
        draft.write_bytes(content)
        draft.replace(place)
    except OSError as problem:
        raise UsageError(f"cannot write '{place}': {problem.strerror}; choose another place with -o, or make room") from problem
    finally:
        draft.unlink(missing_ok=True)


def certified(certificate: dict[str, Any] | None) -> str:
    """The certificate in a few words."""
    if certificate is None:
        return "no certificate for this object format"
    if not certificate["ok"]:
        return f"NOT PROVEN, {len(certificate['findings'])} findings; see qcompile verify"
    return f"proven by disassembly of {certificate['instructions']:,} instructions"


def show_summary(model: str, facts: dict[str, Any]) -> None:
    """The facts for people, and the next step."""
    place = facts["artifact"]
    if "size" in facts:
        say(f"{place}: {facts['target']}, {size(facts['size'])}. {findings_told(place, facts)}")
        return
    lowest = facts["lowest_sqnr"]
    rows = [
        ("target", f"{facts['target']}, {facts['os']}"),
        ("layers", f"{facts['layers']}, {facts['macs'] / 1e6:.3g} million multiply-accumulates"),
        ("weights, arena", f"{size(facts['weights_size'])}, {size(facts['arena_size'])}"),
        *([("entries", ", ".join(facts["entries"]))] if len(facts["entries"]) > 1 else []),
        ("lowest signal to noise", "not measured" if lowest is None else f"{lowest[0]:.1f} dB at {lowest[1]}"),
        *([("precision", told_choice(facts["choice"]))] if facts["choice"] else []),
        ("integer-only", certified(facts["certificate"])),
    ]
    show_table(place, ["", ""], rows)
    bench = f"  |  qcompile bench {place} {model}" if facts["runs_here"] else ""
    say(f"Next: qcompile verify {place}  |  qcompile inspect {place}{bench}")
