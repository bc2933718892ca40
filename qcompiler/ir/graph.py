"""Values, graphs and the rewrite driver. Everything is immutable; a value's identity is its equality.

A graph is its outputs (and the order of its inputs); the values between are reached through `Value.inputs`.
Nothing mutates, so the cached order and uses never go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .types import TensorType

if TYPE_CHECKING:
    from .ops import Op


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """The result of applying `op` to `inputs`. `name` is for people: messages, reports, generated symbols."""

    op: Op
    inputs: tuple[Value, ...]
    type: TensorType
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Static shape."""
        return self.type.shape

    def __repr__(self) -> str:
        return f"<{self.name}: {type(self.op).__name__} {self.type}>"


def apply(op: Op, *inputs: Value, name: str) -> Value:
    """`op` applied to `inputs`, its type inferred. Raises ValueError where the operand types do not fit."""
    return Value(op, inputs, op.infer(*(v.type for v in inputs)), name)


@dataclass(frozen=True, eq=False)
class Graph:
    """`outputs` computed from `inputs`; `output_names` are the names the model's author gave the outputs."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    output_names: tuple[str, ...]

    @cached_property
    def order(self) -> tuple[Value, ...]:
        """All values reachable from the outputs, and all graph inputs, producers before users; deterministic."""
        return tuple(_postorder((*self.inputs, *self.outputs)))

    @cached_property
    def uses(self) -> Mapping[Value, tuple[Value, ...]]:
        """The values that read each value, in order; a value that reads it twice stands there twice."""
        table: dict[Value, list[Value]] = {v: [] for v in self.order}
        for v in self.order:
            for i in v.inputs:
                table[i].append(v)
        return {v: tuple(users) for v, users in table.items()}

    def only_use(self, v: Value) -> Value | None:
        """The single reader of `v`, or None where there are several or `v` is a graph output."""
        users = self.uses[v]
        return users[0] if len(users) == 1 and v not in self.outputs else None


def _postorder(roots: Iterable[Value]) -> Iterator[Value]:
    seen: set[Value] = set()
    for root in roots:
        stack: list[tuple[Value, bool]] = [(root, False)]
        while stack:
            v, expanded = stack.pop()
            if expanded:
                yield v
            elif v not in seen:
                seen.add(v)
                stack.append((v, True))
                stack.extend((i, False) for i in reversed(v.inputs) if i not in seen)


@dataclass
class Declined:
    """Why rules were not applied, for the report: (value name, reason) in order, without repeats."""

    reasons: dict[tuple[str, str], None] = field(default_factory=dict)

    def __call__(self, v: Value, reason: str) -> Value | None:
        """Record that a rule declined `v`. Returns None, so that a rule can `return sweep.declined(v, why)`."""
        self.reasons[(v.name, reason)] = None
        return None


class Sweep:
    """What a rule may ask during one bottom-up sweep: how often a value is used, and where to say why it declined."""

    def __init__(self, graph: Graph, declined: Declined) -> None:
        self.graph, self.declined = graph, declined
        self._before: dict[Value, list[Value]] = {}
        self._after: dict[Value, Value] = {}

    def single_use(self, v: Value) -> bool:
        """Whether `v` has exactly one reader and is no graph output.

        `v` may be a value of the graph under construction; one made by a rule within this very sweep is unknown and
        answers False: the next sweep will know it.
        """
        olds = self._before.get(v, ())
        readers = [u for old in olds for u in self.graph.uses[old] if self._after.get(u) is not v]
        return len(readers) == 1 and not any(old in self.graph.outputs for old in olds)

    def run(self, rules: Sequence[Rule]) -> Graph:
        """The graph after each value, its inputs already rewritten, was offered once to the rules in order."""
        g, new = self.graph, self._after
        for v in g.order:
            rebuilt = _with_inputs(v, tuple(new[i] for i in v.inputs))
            self._before[rebuilt] = [v]
            answer = next((r for rule in rules if (r := rule(rebuilt, self)) is not None), rebuilt)
            if answer is not rebuilt:
                self._before.setdefault(answer, []).append(v)
            new[v] = answer
        if all(new[v] is v for v in g.order):
            return g
        return Graph(tuple(new[v] for v in g.inputs), tuple(new[v] for v in g.outputs), g.output_names)


Rule = Callable[[Value, Sweep], "Value | None"]
"""A rewrite rule: the replacement of a value whose inputs are already rewritten, or None to leave it."""


def _with_inputs(v: Value, inputs: tuple[Value, ...]) -> Value:
    return v if all(a is b for a, b in zip(inputs, v.inputs)) else replace(v, inputs=inputs)


def rewrite(graph: Graph, rules: Sequence[Rule], declined: Declined | None = None, limit: int = 100) -> Graph:
    """Apply `rules` bottom-up, sweep after sweep, until none changes anything; the same graph object if none ever did.

    Raises RuntimeError after `limit` sweeps: two rules undo each other.
    """
    for _ in range(limit):
        swept = Sweep(graph, declined if declined is not None else Declined()).run(rules)
        if swept is graph:
            return graph
        graph = swept
    raise RuntimeError(f"rewriting did not settle after {limit} sweeps; rules: {[getattr(r, '__name__', r) for r in rules]}")


def substitute(graph: Graph, transform: Callable[[Value], Value]) -> Graph:
    """Rebuild `graph` bottom-up once, each value replaced by `transform(value with its new inputs)`."""
    return Sweep(graph, Declined()).run([lambda v, _: transform(v)])
