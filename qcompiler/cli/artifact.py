"""Opening what `qcompile` wrote: the manifest, the program, the integer graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.errors import UsageError
from qcompiler.runtime import Manifest, Program, read_manifest
from qcompiler.runtime.artifact import Interface
from qcompiler.runtime.program import fits

from .data import Input, read_archive

if TYPE_CHECKING:
    from qcompiler.ir.graph import Graph

GRAPH = "model.graph"


def open_manifest(folder: str) -> Manifest:
    """The manifest of the artifact; UsageError where the folder is something else."""
    if folder.endswith(".onnx"):
        raise UsageError(f"expected the folder of an artifact, found the network '{folder}'; compile it first: qcompile {folder}")
    return read_manifest(folder)


def open_program(folder: str) -> Program:
    """The program, run natively where this machine can, else emulated."""
    from qcompiler.backends.emulate import load

    return load(folder)


def open_graph(folder: str) -> Graph:
    """The integer graph that the artifact was compiled from, of several forms the first."""
    return open_graphs(folder)[0]


def open_graphs(folder: str) -> tuple[Graph, ...]:
    """Those of all forms."""
    from qcompiler.ir.serialize import graphs_from_bytes

    try:
        return graphs_from_bytes((Path(folder) / GRAPH).read_bytes())
    except OSError as problem:
        raise UsageError(f"'{folder}' has no readable {GRAPH} ({problem.strerror}); compile the model again") from problem


def inputs_of(interface: Interface) -> list[Input]:
    """What the program takes."""
    return [Input(t.name, t.shape, t.dtype, t.high) for t in interface.inputs]


def inputs_for(interface: Interface, data: str | None) -> list[Input]:
    """What that form of the program takes which fits the archive `data`; the first where none does, or `data` is no archive."""
    if len(interface.forms) == 1 or data is None or not Path(data).is_file():
        return inputs_of(interface)
    found = {name: a.shape for name, a in read_archive(Path(data), [t.name for t in interface.inputs]).items()}
    fitting = (f for f in interface.forms if all(fits(t.shape, found.get(t.name, (0,))) for t in f.inputs))
    return inputs_of(next(fitting, interface))


def form_of(interface: Interface, shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> Interface:
    """The form that has the `shapes`, the first where none are named. UsageError where there is no such form."""
    for form in interface.forms:
        if all([t.shape] == shapes.get(t.name, [t.shape]) for t in form.inputs) and set(shapes) <= {t.name for t in form.inputs}:
            return form
    compiled = "; ".join(", ".join(map(str, inputs_of(f))) for f in interface.forms)
    raise UsageError(f"the program was not compiled for these shapes, but for {compiled}; name one of them with --shape, or compile again")


def report_of(manifest: Manifest) -> dict[str, Any]:
    """The report in the manifest."""
    return manifest.report if isinstance(manifest.report, dict) else {}
