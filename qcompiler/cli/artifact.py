"""Opening what `qcompile` wrote: the manifest, the program, the integer graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.errors import UsageError
from qcompiler.runtime import Manifest, Program, read_manifest
from qcompiler.runtime.artifact import Interface

from .data import Input

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


def report_of(manifest: Manifest) -> dict[str, Any]:
    """The report in the manifest."""
    return manifest.report if isinstance(manifest.report, dict) else {}
