"""From the IR to ONNX: a float or Q/DQ graph as a channels-first `ModelProto` that any runtime reads.

Used to calibrate through onnxruntime, and by `backends/onnx` to write quantized models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, ValueInfoProto, helper

from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Input

from . import sequence as _sequence  # noqa: F401 - registers its operators with `emit`
from .operators import emit
from .writer import OLDEST_OPSET, OPSET, Perm, Writer, identity, layout_free, onnx_dtype


@dataclass(frozen=True)
class Exported:
    """An ONNX model, and under which name and in which axis order it holds values of the IR graph.

    `names` covers the values that were written; axis i of the ONNX tensor ``names[v]`` is axis ``perms[v][i]`` of `v`.
    """

    model: ModelProto
    names: Mapping[Value, str]
    perms: Mapping[Value, Perm]


@dataclass(frozen=True)
class Fused:
    """Several operators written as one: what it reads instead of its own inputs, and how it is written."""

    operands: tuple[Value, ...]
    emit: Callable[[Value, Writer], None]


Fuse = Callable[[Value], "Fused | None"]


def export(graph: Graph, extra_outputs: Sequence[Value] = (), fuse: Fuse = lambda v: None, opset: int | None = None) -> Exported:
    """`graph` as ONNX of `opset`, by default `OPSET` or the first that has its types. Its outputs come first and in the IR's axis order, then
    one output per distinct tensor of `extra_outputs`, in whatever order of axes it exists. `fuse` may claim values (QLinearConv for
    Quantize(Conv) ...)."""
    fused = {v: f for v in graph.order if (f := fuse(v)) is not None}
    if opset is not None and not OLDEST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise UsageError(f"expected an opset from {OLDEST_OPSET} to {onnx.defs.onnx_opset_version()}, found {opset}")
    w = Writer([*(v.name for v in graph.inputs), *graph.output_names], opset)
    for v in graph.inputs:
        w.place(v, v.name, identity(v))
    for v in _live(graph, extra_outputs, fused):
        if v in fused:
            fused[v].emit(v, w)
        elif not isinstance(v.op, Input) and not layout_free(v):
            emit(v.op, v, w)
    results = [w.read(v, identity(v)) for v in graph.outputs]
    extras = {v: _observable(v, w) for v in extra_outputs}
    renamed = _name_outputs(w, results, graph)
    return _assemble(graph, w, extras, renamed)


def _live(graph: Graph, extra: Sequence[Value], fused: Mapping[Value, Fused]) -> list[Value]:
    """Values to write, producers first: what the outputs need when fused operators read their own operands."""
    needed = {*graph.outputs, *extra}
    for v in reversed(graph.order):
        if v in needed:
            needed.update(fused[v].operands if v in fused else v.inputs)
    return [v for v in graph.order if v in needed]


def _observable(v: Value, w: Writer) -> str:
    """A tensor that can be a model output: graph inputs and constants go through Identity."""
    name = w.read(v)
    return name if any(name in n.output for n in w.nodes) else w.node("Identity", [name], f"{v.name}_observed")


def _name_outputs(w: Writer, results: Sequence[str], graph: Graph) -> dict[str, str]:
    """Give each result the author's name: rename what a node makes, add an Identity for inputs, constants and repeats."""
    renamed: dict[str, str] = {}
    produced = {o for n in w.nodes for o in n.output}
    for result, name in zip(results, graph.output_names):
        if result in produced and result not in renamed:
            renamed[result] = name
        elif result != name:
            w.nodes.append(helper.make_node("Identity", [result], [name], name=name))
    for node in w.nodes:
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed.get(o, o) for o in node.output]
    return renamed


def _assemble(graph: Graph, w: Writer, extras: Mapping[Value, str], renamed: Mapping[str, str]) -> Exported:
    names, perms = dict[Value, str](), dict[Value, Perm]()
    for v in {**dict.fromkeys(graph.order), **dict.fromkeys(extras)}:
        for perm, name in list(w.layouts(v).items())[:1]:
            names[v], perms[v] = renamed.get(extras.get(v, name), extras.get(v, name)), perm
    outputs = {n: _info(v, n, identity(v)) for v, n in zip(graph.outputs, graph.output_names)}
    outputs |= {names[v]: _info(v, names[v], perms[v]) for v in extras if names[v] not in outputs}
    inputs = [_info(v, v.name, identity(v)) for v in graph.inputs]
    proto = helper.make_graph(w.nodes, "qcompiler", inputs, list(outputs.values()), w.initializers)
    if w.opset < OPSET:
        _check_known(w)
    return Exported(_model(proto, w.domains, w.opset), names, perms)


def _check_known(w: Writer) -> None:
    """UnsupportedModel where an older opset lacks operators, or has them without an attribute."""
    problems = []
    for node in (n for n in w.nodes if not n.domain):
        try:
            known = onnx.defs.get_schema(node.op_type, w.opset, "").attributes
            problems += [f"{node.op_type} '{node.name}' has no attribute {a.name} in opset {w.opset}" for a in node.attribute if a.name not in known]
        except onnx.defs.SchemaError:
            problems.append(f"{node.op_type} '{node.name}' does not exist in opset {w.opset}; export to a newer one")
    if problems:
        raise UnsupportedModel(problems)


def _model(proto: onnx.GraphProto, domains: Iterable[str], opset: int) -> ModelProto:
    opsets = [helper.make_opsetid(d, 1 if d else opset) for d in sorted({"", *domains})]
    version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    return helper.make_model(proto, opset_imports=opsets, ir_version=version, producer_name="qcompiler")


def _info(v: Value, name: str, perm: Perm) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx_dtype(v.type.dtype), [v.shape[p] for p in perm])
