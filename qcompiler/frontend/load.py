"""Reading ONNX files: parsing, external data confined to the model's folder, local functions inlined."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.numpy_helper
from numpy.typing import NDArray

from qcompiler.errors import ModelError, UnsupportedModel, UsageError

OLDEST_OPSET = 7
"""Before it, broadcasting was an attribute."""


def load_model(model: str | PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """The parsed model, with external data read in and local functions inlined.

    Raises UsageError for an unreadable file, ModelError for a damaged one.
    """
    if isinstance(model, onnx.ModelProto):
        return _prepared(model, None)
    content = _read_bytes(Path(model))
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as e:  # the DecodeError of protobuf, on which only onnx depends
        raise ModelError(f"'{model}' is no ONNX model, or is damaged: {_first_line(e)}; export it again") from None
    return _prepared(proto, Path(model).resolve().parent)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read model '{path}': {e.strerror or e}") from None


def _prepared(proto: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    for name in _names(proto.graph):
        if isinstance(name, bytes) or any(c < " " for c in name):  # protobuf hands out as bytes what is no UTF-8
            raise ModelError(f"the name {name!r} is no printable text: the model is damaged; export it again")
    _read_external(proto, folder)
    return _inlined(proto)


def _names(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    """Every name that a message may quote."""
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name
    for value in (*graph.input, *graph.output):
        yield from (d.dim_param for d in value.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output, *(a.name for a in node.attribute))


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as e:  # the inliner is C++ and raises bare RuntimeError and more
        raise ModelError(f"cannot inline the model's local functions: {_first_line(e)}") from None


def opset_of(proto: onnx.ModelProto) -> int:
    """The opset of the default domain; raises for one that this onnx package does not know or that is too old."""
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        raise ModelError(f"expected one opset of the domain ai.onnx, found {versions}; export the model again")
    if not OLDEST_OPSET <= versions[0] <= newest:
        remedy = "convert it with onnx.version_converter" if versions[0] < OLDEST_OPSET else "upgrade the onnx package"
        raise UnsupportedModel([f"opset {versions[0]} is not supported, expected {OLDEST_OPSET} to {newest}; {remedy}"])
    return int(versions[0])


def tensor_array(tensor: onnx.TensorProto, name: str) -> NDArray[np.generic]:
    """The tensor's elements; raises ModelError where dimensions and data do not agree."""
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as e:  # to_array raises whatever numpy, struct or protobuf do
        raise ModelError(f"tensor '{name}' of shape {list(tensor.dims)} is damaged: {_first_line(e)}; export the model again") from None


# --- external data ---


def _read_external(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Put the bytes of externally stored tensors into `proto`, reading only below `folder`."""
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            if folder is None:
                raise ModelError(f"tensor '{tensor.name}' is stored in a file of its own; pass the model as a path, or load its data first")
            tensor.raw_data = _external_bytes(tensor, folder)
            tensor.data_location = onnx.TensorProto.DEFAULT


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _external_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    entries = {e.key: e.value for e in tensor.external_data}
    path = _inside(folder, entries.get("location", ""), tensor.name)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = size - offset if length < 0 else length
            if not 0 <= offset <= offset + length <= size:
                raise ModelError(f"tensor '{tensor.name}': bytes {offset} to {offset + length} are outside of '{path.name}' ({size} bytes)")
            file.seek(offset)
            return file.read(length)
    except (OSError, ValueError) as e:
        raise ModelError(f"tensor '{tensor.name}': cannot read its data from '{path}': {e}") from None


def _inside(folder: Path, location: str, name: str) -> Path:
    """The data file `location`, refused where it does not lie below the model's folder."""
    if "\0" in location:
        raise ModelError(f"tensor '{name}': its data file has no valid name: {location!r}")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder):
        raise ModelError(f"tensor '{name}': its data file '{location}' is outside of the model's folder '{folder}'; refused")
    if not path.is_file():
        raise ModelError(f"tensor '{name}': its data file '{path}' does not exist; put it beside the model")
    return path


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]
