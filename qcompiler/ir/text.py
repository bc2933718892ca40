"""The numbered text form of a graph: one line per value, deterministic, for people and for golden files.

Such a line is ``%3 = Conv(%0, %1, %2) strides=(2, 2) : f32[1x16x16x8]  "stem/conv"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Value
from .ops import Const, Input, Op
from .pointwise import Map
from .types import TensorType


def to_text(graph: Graph) -> str:
    """All values of `graph` in order, then its outputs; nested bodies of `Map` are indented below their line."""
    numbers = {v: f"%{n}" for n, v in enumerate(graph.order)}
    lines = [line for v in graph.order for line in _lines(v, numbers)]
    outputs = ", ".join(f"{name} = {numbers[v]}" for name, v in zip(graph.output_names, graph.outputs))
    return "\n".join([*lines, f"return {outputs}"]) + "\n"


def _lines(v: Value, numbers: Mapping[Value, str]) -> list[str]:
    operands = f"({', '.join(numbers[i] for i in v.inputs)})" if v.inputs else ""
    head = " ".join([f"{type(v.op).__name__}{operands}", *attributes(v.op)])
    body = to_text(v.op.body).splitlines() if isinstance(v.op, Map) else []
    return [f'{numbers[v]} = {head} : {v.type}  "{v.name}"', *(f"    {line}" for line in body)]


def attributes(op: Op) -> list[str]:
    """The attributes of an operator that differ from their defaults, as ``name=value``."""
    if isinstance(op, Const):
        return [summary(op.data)]
    if isinstance(op, (Input, Map)):
        return [f"label={op.label}"] if isinstance(op, Map) else []
    return [f"{f.name}={_spell(getattr(op, f.name))}" for f in fields(op) if getattr(op, f.name) != f.default]


def summary(data: NDArray[np.generic]) -> str:
    """A constant in a few words: its elements where there are few, else their range and number."""
    if data.size <= 4:
        return f"[{', '.join(_number(x) for x in data.flat)}]"
    return f"[{_number(data.min())} .. {_number(data.max())}]"


def _number(x: np.generic) -> str:
    return f"{float(x):.6g}" if isinstance(x, np.floating) else str(x.item())


def _spell(x: object) -> str:
    match x:
        case Enum():
            return x.name
        case float():
            return f"{x:.6g}"
        case TensorType():
            return str(x)
        case tuple() if len(x) > 16:
            return f"({', '.join(_spell(i) for i in x[:4])}, .. {len(x)} in all)"
        case tuple():
            return f"({', '.join(_spell(i) for i in x)}{',' if len(x) == 1 else ''})"
    return str(x)
