"""What toolchains and runtimes accept, one TOML file each, from their public documentation (`sources` in each file).

A profile gives the quantizer its `Scheme` before any scale is chosen, and `backends.onnx.lint` the rules by which it judges a Q/DQ model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from qcompiler.errors import UsageError
from qcompiler.ir.types import DType
from qcompiler.passes.scheme import Scheme

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Types = tuple[DType, ...]
Bounds = tuple[int, int]


@dataclass(frozen=True)
class Activations:
    """Integer types of activations, the preferred one first; those of them that are `symmetric` have the zero point 0, or 2^(bits-1) where
    they are unsigned. `per_channel`: depthwise convolutions may read one scale per channel."""

    types: Types
    symmetric: Types = ()
    per_channel: bool = False
    power_of_two: bool = False


@dataclass(frozen=True)
class Weights:
    """Integer types of weights, which are symmetric where not said otherwise; `narrow`: the least integer is not used."""

    types: Types
    symmetric: bool = True
    per_channel: bool = True
    power_of_two: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Bias:
    """Integer types of biases; `product`: their scale is that of the input times that of the weights. `float`: they may also be float."""

    types: Types
    product: bool = True
    float: bool = False


@dataclass(frozen=True)
class Rule:
    """What one operator asks beyond the rest of the profile; None: nothing."""

    types: Types | None = None
    weights: Types | None = None
    symmetric: bool | None = None
    per_channel: bool | None = None
    same: bool = False
    """Operands and result have one scale and zero point."""
    carries: bool = False
    """It needs no pair of its own: its result has the quantization of what it moves."""
    output: tuple[float, int] | None = None
    """The scale and zero point (as int8) that the result must have."""
    kernel: Bounds | None = None
    """Least and greatest size of a kernel, of either axis."""
    area: int | None = None
    """Greatest height times width of a kernel."""
    stride: Bounds | None = None


@dataclass(frozen=True)
class TargetProfile:
    """A toolchain. `opset` is the newest that it reads, `layout` that of images in the ONNX graph."""

    name: str
    title: str
    sources: tuple[str, ...]
    opset: int
    activations: Activations
    weights: Weights
    bias: Bias
    operators: Mapping[str, Rule]
    layout: str = "nchw"
    static_shapes: bool = True
    quantized_outputs: bool = True
    """Whether what an operator leaves must be quantized for it to run on integers."""
    notes: str = ""

    def rule(self, operator: str) -> Rule | None:
        """The rule of an ONNX operator; None where it has no quantized form."""
        return self.operators.get(operator)

    def is_symmetric(self, operator: str, dtype: DType) -> bool:
        """Whether activations of type `dtype` at `operator` must be."""
        rule = self.rule(operator)
        return dtype in self.activations.symmetric if rule is None or rule.symmetric is None else rule.symmetric

    def stored(self, type: str | None = None) -> DType:
        """The type of activations that is written: `type`, or the preferred one. UsageError where it is not among them."""
        known = self.activations.types
        chosen = known[0] if type is None else next((t for t in known if t.value == type), None)
        if chosen is None:
            raise UsageError(f"profile '{self.name}' has activations of type {', '.join(t.value for t in known)}, found '{type}'")
        return chosen

    def scheme(self, stored: DType) -> Scheme:
        """What the quantizer must keep to, for activations of type `stored`. What one operator needs symmetric is symmetric throughout."""
        rules = self.operators.items()
        middle = stored in self.activations.symmetric or any(r.symmetric for r in self.operators.values())
        return Scheme(
            symmetric=middle,
            power_of_two=self.activations.power_of_two or self.weights.power_of_two,
            per_channel=self.weights.per_channel,
            bits=8 * stored.numpy.itemsize,
            streams=False,
            same=frozenset(name for name, r in rules if r.same),
            fixed=tuple((name, *r.output) for name, r in rules if r.output is not None and stored.numpy.itemsize == 1),
        )


def names() -> tuple[str, ...]:
    """All profiles."""
    return tuple(sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml")))


@cache
def profile_named(name: str) -> TargetProfile:
    """The profile of that name. UsageError where there is none."""
    if name not in names():
        raise UsageError(f"no profile is called '{name}'; expected one of {', '.join(names())}")
    return parse_profile(name, files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def parse_profile(name: str, text: str) -> TargetProfile:
    """The profile that a TOML text says. UsageError where it does not say one."""
    try:
        table = tomllib.loads(text)
        operators = {op: _row(Rule, row) for op, row in table.pop("operators").items()}
        parts = {"activations": _row(Activations, table.pop("activations")), "weights": _row(Weights, table.pop("weights"))}
        parts["bias"] = _row(Bias, table.pop("bias"))
        return _row(TargetProfile, {"name": name, **table, **parts, "operators": operators})
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as problem:
        raise UsageError(f"profile '{name}': {type(problem).__name__}: {problem}") from problem


def _row(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """A dataclass from a table: lists become tuples, names of types types."""
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(row.keys() - known.keys()):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    return kind(**{k: _read(str(known[k].type), v) for k, v in row.items()})


def _read(kind: str, value: Any) -> Any:
    if kind.startswith("Types"):
        return tuple(DType.of(np.dtype(t)) for t in value)
    return tuple(value) if isinstance(value, list) else value
