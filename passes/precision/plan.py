"""Explicit plans: for each layer the bits of its weights and of the activations that it reads, as a TOML file.

    default = "w8a8"                layers that are not named

    [layers]
    "features/3/conv" = "w4a8"

Layers are what multiplies: convolutions (dense layers among them), products of activations and attention; the last two have no weights.
A value that several layers read has the most bits that any of them asks for. Convolutions and dense layers may ask for 16.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv, Dequantize, MatMul
from qcompiler.ir.sequence import Attention
from qcompiler.passes.weight_grid import information

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = (*range(4, 9), 16)
LISTED = 8
"""Names of a message, at most."""


@dataclass(frozen=True, order=True)
class Precision:
    """Bits of a layer's weights, and of the activations that it multiplies."""

    weights: int = 8
    activations: int = 8

    def __str__(self) -> str:
        return f"w{self.weights}a{self.activations}"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """From w4a8 and the like. UsageError for anything else, and for widths without arithmetic."""
        found = re.fullmatch(r"w(\d+)a(\d+)", text)
        bits = (int(found[1]), int(found[2])) if found else (0, 0)
        if bits[0] not in WEIGHT_BITS or bits[1] not in ACTIVATION_BITS:
            raise UsageError(
                f"expected a precision such as w8a8, w7a8, w6a6, w4a8 or w4a4, found {text!r}; "
                "name wNaM with N from 2 to 8 bits of weights and M from 4 to 8, or 16, of activations"
            )
        return cls(*bits)


@dataclass(frozen=True)
class Plan:
    """The precision of layers by name; `default` is that of all others."""

    layers: Mapping[str, Precision] = field(default_factory=dict)
    default: Precision = Precision()

    def of(self, v: Value) -> Precision:
        """The precision of layer `v`."""
        return self.layers.get(v.name, self.default)

    def check(self, graph: Graph) -> None:
        """UsageError where a name is that of no layer of the canonical `graph`."""
        known = [v.name for v in layers_of(graph)]
        if unknown := [name for name in self.layers if name not in set(known)]:
            raise UsageError(_unknown(unknown, known))


def _unknown(unknown: list[str], known: list[str]) -> str:
    close = get_close_matches(unknown[0], known, 1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    listed = ", ".join(f"'{k}'" for k in known[:LISTED]) + (f" ... ({len(known)} in all)" if len(known) > LISTED else "")
    return f"the precision plan names '{unknown[0]}'{more}, but the network has no such layer.{hint} Its layers are {listed}."


def layers_of(graph: Graph) -> list[Value]:
    """What a plan may name, in execution order."""
    return [v for v in graph.order if isinstance(v.op, (Conv, MatMul, Attention))]


def plan_of(qdq: Graph) -> Plan:
    """The bits of every layer of a Q/DQ graph, written out; of what is stored in more than 8, products of activations read 8."""
    return Plan({v.name: _precision_of(v) for v in layers_of(qdq)})


def _precision_of(v: Value) -> Precision:
    if not isinstance(v.op, Conv):
        return Precision(8, min(_bits(v.inputs[0]), 8))
    read = _bits(v.inputs[0])
    return Precision(min(_weight_bits(v), 8), 16 if read > 8 else read)


def _weight_bits(v: Value) -> int:
    """Of the convolution `v`; multiples of few integers are those."""
    bits, w = _bits(v.inputs[1]), v.inputs[1].inputs[0] if v.inputs[1].inputs else v.inputs[1]
    return information(w.op.data, bits, v.op.groups) if isinstance(v.op, Conv) and isinstance(w.op, Const) else bits


def _bits(v: Value) -> int:
    """Of what is quantized somewhere behind `v`, through movement."""
    while not isinstance(v.op, Dequantize) and v.inputs:
        v = v.inputs[0]
    quant = v.inputs[0].type.quant if v.inputs else None
    return quant.bits if quant is not None else 8


def read_plan(path: str | Path) -> Plan:
    """The plan in a TOML file. UsageError where it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"cannot read the precision plan '{path}': {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise UsageError(f"the precision plan '{path}' is no text in UTF-8") from problem
    try:
        return parse_plan(text)
    except UsageError as problem:
        raise UsageError(f"precision plan '{path}': {problem}") from problem


def parse_plan(text: str) -> Plan:
    """The plan that a TOML text says."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UsageError(f"expected TOML, found {problem}") from problem
    if strange := sorted(table.keys() - {"default", "layers"}):
        raise UsageError(f"expected the keys default and layers, found {strange[0]!r}; names that hold dots need quotes, below [layers]")
    rows = table.get("layers", {})
    if not isinstance(rows, dict):
        raise UsageError(f"expected a table [layers], found {rows!r}")
    return Plan({name: _precision(name, p) for name, p in rows.items()}, _precision("default", table.get("default", "w8a8")))


def _precision(name: str, given: object) -> Precision:
    if not isinstance(given, str):
        raise UsageError(f'{name}: expected a precision such as "w4a8", found {given!r}; names that hold dots need quotes')
    try:
        return Precision.parse(given)
    except UsageError as problem:
        raise UsageError(f"{name}: {problem}") from problem


def plan_text(plan: Plan, heading: str = "") -> str:
    """The TOML of a plan; `heading` becomes a comment."""
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    rows = "".join(f"{_quoted(name)} = {_quoted(str(p))}\n" for name, p in plan.layers.items())
    return f"{comment}default = {_quoted(str(plan.default))}\n\n[layers]\n{rows}"


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among its own, but for DEL, which needs one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
