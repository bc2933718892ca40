"""`qcompile inspect`: layers, types, scales, what was fused and why not, memory and proofs; or the history of one value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qcompiler.errors import UsageError
from qcompiler.runtime import Manifest

from .artifact import open_graph, open_manifest, report_of
from .compile import certified
from .options import json_option
from .show import say, show_json, show_table, size

if TYPE_CHECKING:
    from qcompiler.ir.graph import Graph, Value


PLAN_FILE = "plan.toml"
"""Of an artifact."""


@click.command("inspect")
@click.argument("artifact", metavar="ARTIFACT")
@click.argument("value", required=False)
@click.option("--plan", metavar="PLAN.toml", help="write the bits of every layer to a file, which --precision reads")
@json_option
def command(artifact: str, value: str | None, plan: str | None, as_json: bool) -> None:
    """Layers, types, scales, what was fused and why not, memory and proofs; with VALUE, all that is known of it."""
    manifest = open_manifest(artifact)
    if plan is not None:
        write_plan(artifact, plan)
    facts = whole(artifact, manifest) if value is None else one(artifact, manifest, value)
    if as_json:
        show_json(facts)
    elif value is None:
        show_whole(facts)
    else:
        show_one(facts)


def write_plan(artifact: str, place: str) -> None:
    """Copy the plan that the artifact holds."""
    source = Path(artifact) / PLAN_FILE
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"'{artifact}' holds no plan, expected the file {PLAN_FILE}: {problem.strerror}; compile the network again") from problem
    try:
        Path(place).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"cannot write the plan '{place}': {problem.strerror}; choose another place with --plan") from problem


def whole(artifact: str, manifest: Manifest) -> dict[str, Any]:
    """Everything the artifact says of itself."""
    interface = manifest.interface
    return {
        "artifact": artifact,
        "tool": manifest.tool,
        "target": manifest.target.name,
        "inputs": [tensor(t) for t in interface.inputs],
        "outputs": [tensor(t) for t in interface.outputs],
        "entries": [f.entry(integer=True) for f in interface.forms],
        "sizes": {"arena": interface.arena_size, "weights": interface.weights_size, "code": manifest.code_size},
        "files": dict(manifest.files),
        "memory": memory_map(open_graph(artifact), manifest.target.name),
        "report": report_of(manifest),
        "certificate": manifest.certificate,
    }


def tensor(t: Any) -> dict[str, Any]:
    """An input or output."""
    return {**asdict(t), "shape": list(t.shape)}


def interval(t: dict[str, Any]) -> str | None:
    """The integers that an input takes, where not all of them."""
    return None if t["low"] is None else f"{t['low']} .. {t['high']}"


def memory_map(graph: Graph, target: str) -> list[dict[str, Any]]:
    """The buffers of the arena, working memory of kernels among them, in order of their first step."""
    from qcompiler.backends.llvm.kernels.table import scratch_of
    from qcompiler.backends.llvm.target import find_target
    from qcompiler.passes.partition import partition
    from qcompiler.passes.plan_memory import plan_memory

    plan = plan_memory(graph, partition(graph), scratch_of(find_target(target)))
    return [asdict(b) for b in sorted(plan.blocks, key=lambda b: (b.first, b.offset))]


def one(artifact: str, manifest: Manifest, name: str) -> dict[str, Any]:
    """What is known of the values called `name`, or `name` and a suffix of the pass that made them."""
    graph, report = open_graph(artifact), report_of(manifest)
    found = [v for v in graph.order if v.name == name or v.name.startswith(f"{name}.")]
    if not found:
        raise UsageError(unknown(graph, name))
    names = {v.name for v in found}
    return {
        "value": name,
        "definitions": [definition(graph, v) for v in found],
        "layer": [row for row in report.get("layers", []) if row["name"] in names],
        "declined": [reason for value, reason in report.get("declined", []) if value in names],
    }


def unknown(graph: Graph, name: str) -> str:
    """The message for a name that no value has."""
    from .app import nearest

    names = [v.name for v in graph.order if v.inputs or v in graph.inputs]
    return f"no value is called '{name}'.{nearest(name, names)} `qcompile inspect` without a value lists the layers."


def definition(graph: Graph, v: Value) -> dict[str, Any]:
    """How a value is made and who reads it."""
    return {
        "name": v.name,
        "operator": type(v.op).__name__,
        "attributes": dict(attributes(v)),
        "type": str(v.type),
        "inputs": [f"{i.name}: {i.type}" for i in v.inputs],
        "read_by": [u.name for u in graph.uses[v]],
    }


def attributes(v: Value) -> Iterator[tuple[str, str]]:
    """The operator's fields that are short enough to show."""
    if is_dataclass(v.op):
        shown = ((f.name, repr(getattr(v.op, f.name))) for f in fields(v.op))
        yield from ((name, text) for name, text in shown if len(text) < 80)


def show_whole(facts: dict[str, Any]) -> None:
    """All tables."""
    sizes = facts["sizes"]
    say(f"{facts['artifact']}: {facts['target']}, {facts['tool']}; " + ", ".join(f"{part} {size(n)}" for part, n in sizes.items()))
    show_ends(facts)
    if len(facts["entries"]) > 1:
        say(f"Compiled for {len(facts['entries'])} shapes: {', '.join(facts['entries'])}; told of the first")
    show_layers(facts["report"].get("layers", []))
    if evened := facts["report"].get("reparameterized"):
        say(f"Reparameterized, channel by channel: {len(evened)} normalizations ({', '.join(evened)})")
    if losses := facts["report"].get("distilled"):
        told = f"{losses[0]:.4f} nats before, {losses[1]:.4f} half-way, on samples held out until then"
        say(f"Weights of few bits were tuned to the answers of the float network: {told}")
    declined = facts["report"].get("declined", [])
    if declined:
        show_table("Not done, and why", ["value", "reason"], declined)
    columns = ["value", ">offset", ">bytes", ">first step", ">last step"]
    show_table("Memory", columns, [(b["name"], b["offset"], b["size"], b["first"], b["last"]) for b in facts["memory"]])
    say(f"Integer-only: {certified(facts['certificate'])}")


def show_ends(facts: dict[str, Any]) -> None:
    """Inputs and outputs."""
    ends = [(way[:-1], t) for way in ("inputs", "outputs") for t in facts[way]]
    rows = [(way, t["name"], f"{t['dtype']}{t['shape']}", t["storage"], t["scale"], t["zero_point"], interval(t)) for way, t in ends]
    show_table("Inputs and outputs", ["", "name", "type", "stored as", ">scale", ">zero point", "integers"], rows)


def show_layers(layers: list[dict[str, Any]]) -> None:
    """One row per kernel."""
    columns = ["layer", "operator", "fused", "shape", "bits", ">scale", ">zero", ">headroom bits", ">SQNR dB", ">weights", ">MACs"]
    rows = [
        (r["name"], r["operator"], " ".join(r["fused"]), "x".join(map(str, r["shape"])), widths(r))
        + (r["scale"], r["zero_point"], r["headroom_bits"], r["sqnr"], size(r["weight_bytes"]), r["macs"])
        for r in layers
    ]
    show_table("Layers", columns, rows)


def widths(row: dict[str, Any]) -> str:
    """Bits of what a layer multiplies, and what its result has besides 8 bits: "w4 a4", "codebook of 16 levels", "16: residual stream"."""
    products = [f"{letter}{row[name]}" for letter, name in (("w", "weight_bits"), ("a", "operand_bits")) if row.get(name) is not None]
    narrow = " (stored in 8 bits)" if (row.get("operand_bits") or 8) < 8 else ""
    notes = [" ".join(products) + narrow] if products else []
    notes += [f"codebook of {row['levels']} levels"] if row.get("levels") else []
    notes += [f"{row['bits']}: {row['wide']}"] if row.get("wide") else []
    return ", ".join(notes)


def show_one(facts: dict[str, Any]) -> None:
    """The history of a value, from its first operator to its last."""
    for d in facts["definitions"]:
        given = ", ".join(f"{k}={v}" for k, v in d["attributes"].items())
        say(f"{d['name']} = {d['operator']}({given}) : {d['type']}")
        for line in d["inputs"]:
            say(f"    of {line}")
        say(f"    read by {', '.join(d['read_by']) or 'nothing: an output'}")
    if facts["layer"]:
        show_layers(facts["layer"])
    for reason in facts["declined"]:
        say(f"not done: {reason}")
