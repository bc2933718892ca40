"""ONNX model to float graph: walks the nodes, hands each to its importer, and reports everything unsupported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from os import PathLike
from typing import Any

import onnx

from qcompiler.errors import ModelError, QCompilerError, UnsupportedModel
from qcompiler.frontend.check import check_values
from qcompiler.frontend.fold import limited
from qcompiler.frontend.inputs import graph_inputs
from qcompiler.frontend.load import load_model, opset_of, tensor_array
from qcompiler.frontend.node import Importer, Node, Unsupported, numpy_dtype
from qcompiler.frontend.table import IMPORTERS, READS_QUANTIZED
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import Input, Integers, constant
from qcompiler.ir.types import TensorType

KEEPS_AXES = ("DequantizeLinear", "Clip", "Transpose", "Identity", "Dropout", "Shape", "Size")
_DAMAGE = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError)
"""What shape inference, folding and numpy raise for a node whose operands or attributes make no sense."""


def import_model(model: str | PathLike[str] | onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """The float graph (channels-last around spatial operators) of an ONNX model.

    `shapes` gives dimensions of inputs that the model leaves open; an open batch (first) dimension is 1.
    Raises UsageError for an unreadable file or open dimensions, ModelError for a malformed model, and UnsupportedModel,
    which names all that is not supported at once.
    """
    proto = load_model(model)
    run = _Import(opset_of(proto))
    _add_sources(run, proto.graph, shapes or {})
    for node in _reachable(proto.graph, run.values):
        _import_node(run, node)
    run.raise_problems()
    graph = _finished(run, proto.graph)
    check_values(graph)
    return graph


@dataclass
class _Import:
    """The values imported so far, by tensor name (None: depends on something unsupported), and what is unsupported."""

    opset: int
    values: dict[str, Value | None] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def raise_problems(self) -> None:
        """UnsupportedModel if anything was found that is not supported."""
        missing = [f"operator {op} is not supported (at {_listed(names)})" for op, names in self.missing.items()]
        if missing or self.problems:
            raise UnsupportedModel([*missing, *self.problems])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{n}'" for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


# --- inputs, initializers, outputs ---


def _add_sources(run: _Import, graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Enter graph inputs and initializers; sparse ones are reported."""
    for tensor in graph.initializer:
        try:
            numpy_dtype(tensor.data_type)
            run.values[tensor.name] = constant(tensor_array(tensor, tensor.name), tensor.name)
        except Unsupported as e:
            _report(run, f"initializer '{tensor.name}' {e}", [tensor.name])
    for sparse in graph.sparse_initializer:
        _report(run, f"initializer '{sparse.values.name}' is sparse; store it densely", [sparse.values.name])
    for name, kind in graph_inputs(graph, shapes).items():
        run.values[name] = _input(name, kind)


def _input(name: str, kind: TensorType) -> Value:
    try:
        return limited(apply(Input(kind), name=name))
    except ValueError as e:
        raise ModelError(f"input '{name}' {e}; give smaller dimensions: --shape") from None


def _report(run: _Import, problem: str, names: Iterable[str]) -> None:
    run.problems.append(problem)
    run.values.update(dict.fromkeys(names))


def _finished(run: _Import, graph: onnx.GraphProto) -> Graph:
    inputs = [v for v in run.values.values() if v is not None and isinstance(v.op, Input)]
    names = tuple(o.name for o in graph.output)
    if not names:
        raise ModelError("the model has no outputs; export it again")
    return Graph(tuple(inputs), tuple(_output(run, o) for o in graph.output), names)


def _output(run: _Import, info: onnx.ValueInfoProto) -> Value:
    """The value of an output: of one that is quantized the integers, in the type that the model declares."""
    v, declared = _known(run.values, info.name, "the graph's outputs"), info.type.tensor_type.elem_type
    if v.type.quant is None:
        return v
    try:
        return apply(Integers(numpy_dtype(declared) if declared else v.type.dtype), v, name=info.name)
    except ValueError as e:
        raise ModelError(f"output '{info.name}' is declared {onnx.TensorProto.DataType.Name(declared)}, but {e}; export the model again") from None


def _known(values: Mapping[str, Value | None], name: str, reader: str) -> Value:
    v = values.get(name)
    if v is None:
        raise ModelError(f"tensor '{name}', read by {reader}, is produced by no node, input or initializer; export the model again")
    return v


# --- the order of nodes ---


def _reachable(graph: onnx.GraphProto, sources: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs depend on, producers first. Raises ModelError for cycles and for tensors produced twice."""
    producer = _producers(graph, set(sources))
    pending, found = [o.name for o in graph.output], dict[int, set[int]]()
    while pending:
        index = producer.get(pending.pop())
        if index is not None and index not in found:
            found[index] = {producer[name] for name in graph.node[index].input if name in producer}
            pending.extend(graph.node[index].input)
    try:
        return [graph.node[i] for i in TopologicalSorter(dict(sorted(found.items()))).static_order()]
    except CycleError as e:
        raise ModelError(f"the nodes at {_listed([_label(graph.node[i]) for i in e.args[1]])} form a cycle; export the model again") from None


def _producers(graph: onnx.GraphProto, sources: set[str]) -> dict[str, int]:
    producer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in producer or name in sources:
                raise ModelError(f"tensor '{name}' is produced more than once; export the model again")
            producer[name] = index
    return producer


def _label(node: onnx.NodeProto) -> str:
    return node.name or next(filter(None, node.output), "?")


# --- one node ---


def _import_node(run: _Import, proto: onnx.NodeProto) -> None:
    """Enter the results of one node; what is unsupported is noted, and its results are then unknown."""
    op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
    importer = IMPORTERS.get(op)
    if importer is None:
        run.missing.setdefault(op, []).append(_label(proto))
        run.values.update(dict.fromkeys(proto.output))
        return
    if any(run.values.get(name, run) is None for name in proto.input):
        run.values.update(dict.fromkeys(proto.output))
        return
    try:
        run.values.update(zip(proto.output, _results(run, importer, proto)))
    except Unsupported as e:
        _report(run, f"{op} '{_label(proto)}' {e}", proto.output)
    except QCompilerError:
        raise
    except _DAMAGE as e:
        raise ModelError(f"{op} '{_label(proto)}': {e or e.__class__.__name__}; check the model with onnx.checker") from e


def _results(run: _Import, importer: Importer, proto: onnx.NodeProto) -> list[Value]:
    """The values of the node's outputs, under their ONNX names."""
    schema = _schema(proto, run.opset)
    if schema is not None:
        _check_operands(proto, schema)
    operands = [_known(run.values, name, f"{proto.op_type} '{_label(proto)}'") if name else None for name in proto.input]
    node = Node(proto.op_type, _label(proto), run.opset, _attributes(proto, schema), tuple(proto.output))
    _check_quantized(proto.op_type, operands)
    answer = importer(node, *operands)
    results = [answer] if isinstance(answer, Value) else list(answer)
    if any(proto.output[len(results) :]):
        raise Unsupported(f"has a used output '{proto.output[len(results)]}' that is not supported")
    return [v if v in operands else replace(v, name=name) for v, name in zip(results, proto.output)]


def _check_quantized(op: str, operands: Sequence[Value | None]) -> None:
    """Unsupported where the node computes on what a QuantizeLinear made, or moves it across an axis that has scales."""
    for quant in (v.type.quant for v in operands if v is not None and v.type.quant is not None):
        if op not in READS_QUANTIZED:
            raise Unsupported("computes on quantized integers; put a DequantizeLinear before it")
        if quant.axis is not None and op not in KEEPS_AXES:
            raise Unsupported("moves integers with scales per axis; put a DequantizeLinear before it")


def _check_operands(proto: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """ValueError for operands against the schema: too few, too many, or a needed one left out."""
    if not schema.min_input <= len(proto.input) <= schema.max_input:
        raise ValueError(f"expected {schema.min_input} to {schema.max_input} operands, found {len(proto.input)}")
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for index, name in enumerate(proto.input):
        operand = schema.inputs[min(index, len(schema.inputs) - 1)]
        if not name and operand.option != optional:
            raise ValueError(f"operand {operand.name} is missing")
    if not proto.output or not proto.output[0]:
        raise ValueError("the first output has no name")


def _attributes(proto: onnx.NodeProto, schema: onnx.defs.OpSchema | None) -> dict[str, Any]:
    """Given attributes and the schema's defaults. ValueError for one that is missing or of another type."""
    if schema is None:
        return {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    known = schema.attributes
    given = {a.name: a for a in proto.attribute if a.name in known}
    for name, a in given.items():
        found, expected = onnx.AttributeProto.AttributeType.Name(a.type), str(known[name].type).rpartition(".")[2]
        if found != expected:
            raise ValueError(f"attribute {name} has type {found}, expected {expected}")
    absent = [name for name, a in known.items() if a.required and name not in given]
    if absent:
        raise ValueError(f"attribute {absent[0]} is missing")
    defaults = {n: onnx.helper.get_attribute_value(a.default_value) for n, a in known.items() if a.default_value.name}
    return {**defaults, **{n: onnx.helper.get_attribute_value(a) for n, a in given.items()}}


def _schema(proto: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """The schema of an operator of the default domain; None for one that onnx does not define."""
    if proto.domain not in ("", "ai.onnx") or not onnx.defs.has(proto.op_type, ""):
        return None
    try:
        return onnx.defs.get_schema(proto.op_type, opset, "")
    except onnx.defs.SchemaError:
        raise ValueError(f"the operator does not exist in opset {opset}") from None
