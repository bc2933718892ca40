"""Graphs to bytes and back: a JSON description of the values beside their constant arrays, in one .npz archive.

Every field of an operator is a number, string, enum, tuple, array, type or graph, so one pair of functions serves all operators.
Reading never executes anything: operator classes are looked up by name among those defined in `ir`.
"""

from __future__ import annotations

import io
import json
from dataclasses import fields
from enum import Enum
from hashlib import sha256
from typing import Any

import numpy as np

from qcompiler.errors import ModelError

from . import integer, ops, pointwise, sequence
from .graph import Graph, Value
from .types import DType, Quantization, TensorType

FORMAT = 1


class _Arrays(dict[str, "np.ndarray[Any, Any]"]):
    """The arrays of the archive by key; equal ones are kept once."""

    def __init__(self) -> None:
        self._keys: dict[bytes, str] = {}

    def key(self, item: np.ndarray[Any, Any]) -> str:
        """Where `item` is kept."""
        content = sha256(f"{item.dtype.str}{item.shape}".encode() + np.ascontiguousarray(item).tobytes()).digest()
        if content not in self._keys:
            self._keys[content] = f"a{len(self)}"
            self[self._keys[content]] = item
        return self._keys[content]


def graph_to_bytes(graph: Graph, *others: Graph) -> bytes:
    """The graph, or a network in several forms, as the bytes of an .npz archive."""
    arrays = _Arrays()
    further = {"others": [_encode_graph(g, arrays) for g in others]} if others else {}
    text = json.dumps({"format": FORMAT, "graph": _encode_graph(graph, arrays), **further})
    buffer = io.BytesIO()
    np.savez(buffer, description=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def graph_from_bytes(data: bytes) -> Graph:
    """The graph, the first of several, that `graph_to_bytes` wrote. ModelError where the bytes are not such an archive."""
    return graphs_from_bytes(data)[0]


def graphs_from_bytes(data: bytes) -> tuple[Graph, ...]:
    """All of them."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            description = json.loads(archive["description"].tobytes())
            if description["format"] != FORMAT:
                raise ModelError(f"the graph has format {description['format']}, expected {FORMAT}: compile the model again")
            arrays = dict(archive)
            return tuple(_decode_graph(text, arrays) for text in (description["graph"], *description.get("others", ())))
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise ModelError(f"damaged graph file ({error}): compile the model again") from error


def _encode_graph(graph: Graph, arrays: _Arrays) -> dict[str, Any]:
    index = {v: i for i, v in enumerate(graph.order)}
    return {
        "values": [
            {"op": _encode(v.op, arrays), "inputs": [index[i] for i in v.inputs], "type": _encode(v.type, arrays), "name": v.name}
            for v in graph.order
        ],
        "inputs": [index[v] for v in graph.inputs],
        "outputs": [index[v] for v in graph.outputs],
        "output_names": list(graph.output_names),
    }


def _encode(item: Any, arrays: _Arrays) -> Any:
    match item:
        case Graph():
            return {"graph": _encode_graph(item, arrays)}
        case Enum():
            return {"enum": type(item).__name__, "name": item.name}
        case np.ndarray():
            return {"array": arrays.key(item)}
        case tuple():
            return {"tuple": [_encode(i, arrays) for i in item]}
        case float() if not np.isfinite(item):
            return {"float": repr(item)}
        case None | bool() | int() | float() | str():
            return item
        case np.generic():
            return item.item()
        case _ if type(item).__name__ in _CLASSES:
            return {"class": type(item).__name__, "fields": {f.name: _encode(getattr(item, f.name), arrays) for f in fields(item)}}
    raise TypeError(f"cannot store a {type(item).__name__} in a graph file")


def _decode_graph(text: Any, arrays: Any) -> Graph:
    values: list[Value] = []
    for entry in text["values"]:
        values.append(Value(_decode(entry["op"], arrays), tuple(values[i] for i in entry["inputs"]), _decode(entry["type"], arrays), entry["name"]))
    return Graph(tuple(values[i] for i in text["inputs"]), tuple(values[i] for i in text["outputs"]), tuple(text["output_names"]))


def _decode(item: Any, arrays: Any) -> Any:
    match item:
        case {"graph": text}:
            return _decode_graph(text, arrays)
        case {"enum": kind, "name": name}:
            return _CLASSES[kind][name]
        case {"array": key}:
            return arrays[key]
        case {"tuple": items}:
            return tuple(_decode(i, arrays) for i in items)
        case {"float": text}:
            return float(text)
        case {"class": name, "fields": attributes}:
            return _CLASSES[name](**{k: _decode(v, arrays) for k, v in attributes.items()})
    return item


_CLASSES: dict[str, Any] = {
    name: item
    for module in (ops, pointwise, sequence, integer)
    for name, item in vars(module).items()
    if isinstance(item, type) and issubclass(item, (ops.Op, Enum)) and item.__module__ == module.__name__
} | {c.__name__: c for c in (TensorType, Quantization, DType)}
