"""Small float graphs by hand, and the one property that every float pass has: it computes the same."""

from collections import Counter

import numpy as np

from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, Input, Op, Transpose, constant
from qcompiler.ir.pointwise import Add, Mul
from qcompiler.ir.types import float_type

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


class Build:
    """Makes values with names in order and constants from a fixed seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.count = 0

    def input(self, *shape: int, name: str = "x") -> Value:
        return apply(Input(float_type(*shape)), name=name)

    def const(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Value:
        return constant(self.rng.uniform(low, high, shape).astype(np.float32), self._name("c"))

    def number(self, x: float, *shape: int) -> Value:
        return constant(np.full(shape, x, np.float32), self._name("n"))

    def op(self, op: Op, *operands: Value) -> Value:
        return apply(op, *operands, name=self._name(type(op).__name__.lower()))

    def conv(self, x: Value, out: int, kernel: int = 1, bias: bool = True, **attributes: object) -> Value:
        op = Conv(**attributes)  # type: ignore[arg-type]
        w = self.const(out, kernel, kernel, x.shape[3] // op.groups)
        return self.op(op, x, w, *([self.const(out)] if bias else []))

    def first(self, x: Value) -> Value:
        """Channels-last to channels-first."""
        return self.op(Transpose(TO_FIRST), x)

    def last(self, x: Value) -> Value:
        """Channels-first to channels-last."""
        return self.op(Transpose(TO_LAST), x)

    def normalized(self, x: Value, low: float = -2.0) -> Value:
        """Batch normalization as the frontend writes it."""
        c = x.shape[-1]
        return self.op(Add(), self.op(Mul(), x, self.const(c, low=low, high=2.0)), self.const(c))

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"


def graph_of(*outputs: Value) -> Graph:
    """The graph of these outputs with all inputs that they reach."""
    inputs = tuple(v for v in Graph((), outputs, ()).order if isinstance(v.op, Input))
    return Graph(inputs, outputs, tuple(f"y{n}" for n in range(len(outputs))))


def feeds_for(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {v.name: rng.normal(0, 2, v.shape).astype(v.type.dtype.numpy) for v in graph.inputs}


def assert_same(before: Graph, after: Graph, tolerance: float = 1e-5) -> None:
    """Both graphs have outputs of the same types and, on random inputs, of the same values."""
    assert [v.name for v in before.inputs] == [v.name for v in after.inputs]
    assert [v.type for v in before.outputs] == [v.type for v in after.outputs]
    feeds = feeds_for(before)
    old, new = evaluate(before, feeds), evaluate(after, feeds)
    for a, b in zip(before.outputs, after.outputs):
        scale = max(float(np.abs(old[a]).max()), 1e-3)
        np.testing.assert_allclose(new[b], old[a], rtol=0, atol=tolerance * scale)


def census(graph: Graph) -> Counter[str]:
    """How many values of each operator there are, inputs and constants aside."""
    names = Counter(type(v.op).__name__ for v in graph.order)
    return Counter({name: n for name, n in names.items() if name not in ("Input", "Const")})
