"""Graphs that show what kernels do, by name, each a function of a builder that returns the outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from integer_graphs import Builder
from wide_graphs import WideBuilder

from qcompiler.ir.graph import Graph, Value

Outputs = list[Value]
Build = Callable[[Any], Outputs]
SAME = ((1, 1), (1, 1))


@dataclass(frozen=True)
class Case:
    """A function, and the builder that it is a function of."""

    build: Build
    builder: type[Builder]

    def graph(self) -> tuple[Builder, Graph]:
        """The builder, which also draws feeds, and the graph."""
        b = self.builder(seed=len(self.build.__name__))
        return b, b.graph(*self.build(b))


CASES: dict[str, Case] = {}


def case(build: Build) -> Build:
    """Registers a graph of 8 bits, mostly."""
    return _registered(build, Builder)


def wide(build: Build) -> Build:
    """Registers a graph whose kernels read or write 16 bits."""
    return _registered(build, WideBuilder)


def _registered(build: Build, builder: type[Builder]) -> Build:
    assert build.__name__ not in CASES, f"two cases are called {build.__name__}"
    CASES[build.__name__] = Case(build, builder)
    return build


def stored(b: Builder, *shape: int, zero_point: int = 3) -> Value:
    """A value of 8 bits in the arena: the kernels see the target's own storage form."""
    return b.clamp(b.input(*shape, zero_point=zero_point), -128, 127)


def kept(b: WideBuilder, *shape: int) -> Value:
    """A value of 16 bits in the arena."""
    return b.clamp(b.wide_input(*shape), -32768, 32767)
