"""`qcompile bench`: latency of the compiled program beside ONNX Runtime, float and int8, taking turns in one run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
import numpy as np

from qcompiler.errors import UsageError
from qcompiler.runtime import load
from qcompiler.runtime.bench import Latency, compare

from .artifact import form_of, inputs_of, open_manifest
from .data import Input
from .floats import FloatModel
from .layers import measured, show_layers
from .options import json_option, named_shapes
from .show import progress, say, show_json, show_table

Shapes = dict[str, list[tuple[int, ...]]]
SHAPE_HELP = "which of the shapes to measure where the network was compiled for several [default: the largest]"
OURS, FLOAT, INT8 = "compiled", "onnxruntime float", "onnxruntime int8"


@click.command("bench")
@click.argument("artifact", metavar="ARTIFACT")
@click.argument("model", metavar="[MODEL.onnx]", required=False)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="threads of one call, here and in ONNX Runtime")
@click.option("--device", metavar="ssh://HOST", help="measure on another machine, which ssh reaches without a question")
@click.option("--seconds", type=click.FloatRange(0.01), default=2.0, show_default=True, help="how long to measure each")
@click.option("--layers", is_flag=True, help="where the time goes, by layer: GOP/s, percent of this CPU's peak, times of the float layers")
@click.option("--shape", "shapes", callback=named_shapes, multiple=True, metavar="NAME=N,N", help=SHAPE_HELP)
@json_option
def command(artifact: str, model: str | None, threads: int, seconds: float, layers: bool, shapes: Shapes, device: str | None, as_json: bool) -> None:
    """Latency, beside ONNX Runtime's on the float network and on its int8 form."""
    manifest = open_manifest(artifact)
    inputs = inputs_of(form_of(manifest.interface, shapes))
    feeds = {i.name: invented(i) for i in inputs}
    if device is not None:
        if model is not None or layers or threads != 1:
            raise UsageError("--device measures the program alone, by one thread: leave out MODEL.onnx, --layers and --threads")
        facts = remote(artifact, device, feeds, seconds)
        show_json(facts) if as_json else show(facts)
        return
    if layers:
        found = measured(artifact, manifest, feeds, model, seconds, as_json)
        show_json(found.as_dict()) if as_json else show_layers(f"{artifact} ({manifest.target.name})", found)
        return
    program = load(artifact, threads)
    calls = {OURS: lambda: program.run(feeds)} | {name: peer(m, feeds) for name, m in peers(model, inputs, threads, as_json).items()}
    with progress("measuring", None, as_json):
        times = compare(calls, seconds)
    facts = described(artifact, manifest.target.name, threads, times)
    if as_json:
        show_json(facts)
    else:
        show(facts)


def remote(artifact: str, device: str, feeds: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The measurement on another machine, by its clock."""
    from qcompiler.backends.remote import Device, open_remote

    program, executor = open_remote(artifact, Device.parse(device))
    try:
        latency = executor.latency(lambda: program.run(feeds), seconds)
    finally:
        executor.close()
    rows = {OURS: {**asdict(latency), "ratio": 1.0}}
    target = open_manifest(artifact).target.name
    return {"artifact": artifact, "target": target, "cpu": f"{executor.cpu} ({device})", "kind": "remote", "threads": 1, "milliseconds": rows}


def peers(model: str | None, inputs: list[Input], threads: int, quiet: bool) -> dict[str, FloatModel]:
    """ONNX Runtime on the float network, and on the same network quantized as ours is."""
    if model is None:
        return {}
    floats = FloatModel.open(model, inputs, threads)
    return {FLOAT: floats, INT8: FloatModel.open(quantized(model, inputs, quiet), inputs, threads)}


def quantized(model: str, inputs: list[Input], quiet: bool) -> bytes:
    """The Q/DQ form of the network, with unsigned activations, which ONNX Runtime runs fastest.

    Latency does not depend on the ranges, so random inputs calibrate it.
    """
    from qcompiler.api import SYNTHETIC_SAMPLES, quantize_model
    from qcompiler.backends.onnx import export_qdq
    from qcompiler.ir.types import DType

    with progress("quantizing for onnxruntime", SYNTHETIC_SAMPLES, quiet) as advance:
        graphs = quantize_model(model, shapes={i.name: i.shape for i in inputs}, progress=advance).graphs
    content: bytes = export_qdq(graphs.exchange_graph, DType.u8).SerializeToString()
    return content


def peer(model: FloatModel, feeds: dict[str, Any]) -> Any:
    """A call of the other runtime on the same inputs."""
    return lambda: model.session.run(None, feeds)


def invented(wanted: Input) -> Any:
    """Random numbers of the input's shape and type; of integers, valid ones: rows of a table, and masks that hide nothing."""
    generator = np.random.default_rng(0)
    if np.dtype(wanted.dtype).kind == "f":
        return generator.standard_normal(wanted.shape).astype(wanted.dtype)
    if wanted.high is None or wanted.high <= 1:
        return np.full(wanted.shape, 1 if wanted.high is None else wanted.high, wanted.dtype)
    return generator.integers(0, wanted.high, wanted.shape, endpoint=True).astype(wanted.dtype)


def described(artifact: str, target: str, threads: int, times: dict[str, Latency]) -> dict[str, Any]:
    """The measurement and where it was made; ratios are times of the others over ours."""
    ours = times[OURS].median
    rows = {name: {**asdict(t), "ratio": t.median / ours} for name, t in times.items()}
    return {"artifact": artifact, "target": target, "cpu": cpu_name(), "kind": "measured", "threads": threads, "milliseconds": rows}


def cpu_name() -> str:
    """What this machine calls its processor."""
    import platform
    from pathlib import Path

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def show(facts: dict[str, Any]) -> None:
    """The measurement for people."""
    columns = ["", ">median ms", ">10 %", ">90 %", ">calls", ">times ours"]
    rows = [(name, t["median"], t["low"], t["high"], t["calls"], f"{t['ratio']:.2f}") for name, t in facts["milliseconds"].items()]
    show_table(f"{facts['artifact']} ({facts['target']}) on {facts['cpu']}, {facts['threads']} thread(s)", columns, rows)
    if len(rows) == 1 and facts["kind"] == "measured":
        say(f"Name the float network to compare with ONNX Runtime: qcompile bench {facts['artifact']} MODEL.onnx")
