"""Types of a model's inputs: element types, and dimensions that the model leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import onnx

from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.frontend.load import load_model
from qcompiler.frontend.node import Unsupported, numpy_dtype
from qcompiler.ir.types import DType, TensorType

Dim = int | str | None
"""A static dimension, a named one, or one of which nothing is said."""


def input_shapes(model: str | PathLike[str] | onnx.ModelProto) -> dict[str, tuple[Dim, ...] | None]:
    """The declared shape of each input that is no initializer; None where not even the rank is declared."""
    return {i.name: _declared(i) for i in _true_inputs(load_model(model).graph)}


def graph_inputs(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorType]:
    """The static type of each input, in order.

    Open dimensions come from `shapes`, those of the same symbol follow along, an open first one is 1. Raises UsageError for
    open dimensions that are left and for `shapes` that do not fit, UnsupportedModel for inputs that are no tensors.
    """
    elements = {i.name: _element_type(i) for i in _true_inputs(graph)}
    declared = {i.name: _declared(i) for i in _true_inputs(graph)}
    unknown = sorted(set(shapes) - set(declared))
    if unknown:
        raise UsageError(f"--shape names '{unknown[0]}', which is no input of the model; its inputs are {sorted(declared)}")
    symbols: dict[str, int] = {}
    for name, given in shapes.items():
        symbols.update(_symbols(name, declared[name], given))
    resolved = {name: _resolve(name, dims, shapes.get(name), symbols) for name, dims in declared.items()}
    return {name: TensorType(resolved[name], dtype) for name, dtype in elements.items()}


def _true_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    inputs = {i.name: i for i in graph.input if i.name not in stored}
    return list(inputs.values())


def _element_type(info: onnx.ValueInfoProto) -> DType:
    try:
        if not info.type.HasField("tensor_type"):
            raise Unsupported("is no tensor; sequences, maps and optional values cannot be compiled")
        return numpy_dtype(info.type.tensor_type.elem_type)
    except Unsupported as e:
        raise UnsupportedModel([f"input '{info.name}' {e}"]) from None


def _declared(info: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    if not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(_dim(d) for d in info.type.tensor_type.shape.dim)


def _dim(d: onnx.TensorShapeProto.Dimension) -> Dim:
    """Static where it is positive: exporters also write 0 and -1 for an open dimension."""
    return d.dim_value if d.dim_value > 0 else d.dim_param or None


def _symbols(name: str, declared: tuple[Dim, ...] | None, given: Sequence[int]) -> dict[str, int]:
    """What `given` says about the named dimensions; UsageError where it contradicts the declaration."""
    text = f"--shape {name}={','.join(map(str, given))}"
    if any(d < 1 for d in given):
        raise UsageError(f"{text}: dimensions must be positive")
    fits = declared is None or (len(declared) == len(given) and all(d == g or not isinstance(d, int) for d, g in zip(declared, given)))
    if not fits:
        raise UsageError(f"{text} does not fit the model, which declares {_shown(declared)}")
    return {d: int(g) for d, g in zip(declared or (), given) if isinstance(d, str)}


def _resolve(name: str, declared: tuple[Dim, ...] | None, given: Sequence[int] | None, symbols: Mapping[str, int]) -> tuple[int, ...]:
    if given is not None:
        return tuple(int(d) for d in given)
    bound = None if declared is None else [symbols.get(d, d) if isinstance(d, str) else d for d in declared]
    if bound and not isinstance(bound[0], int):
        bound[0] = 1
    known = [d for d in bound or () if isinstance(d, int)]
    if bound is None or len(known) < len(bound):
        raise UsageError(f"input '{name}' has open dimensions {_shown(declared)}; give them: --shape {name}={_example(declared)}")
    return tuple(known)


def _shown(declared: tuple[Dim, ...] | None) -> str:
    return "of unknown rank" if declared is None else f"[{', '.join('?' if d is None else str(d) for d in declared)}]"


def _example(declared: tuple[Dim, ...] | None) -> str:
    return ",".join(str(d) if isinstance(d, int) else "1" if i == 0 else "224" for i, d in enumerate(declared or (None, 3, None, None)))
