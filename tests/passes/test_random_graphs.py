"""simplify on random channels-first graphs, written as the frontend writes them: it settles, and the function stays."""

from collections.abc import Callable

import numpy as np
import pytest
from float_graphs import Build, assert_same, graph_of

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Concat, ConvTranspose, Input, MatMul, MaxPool, Pad, Reduce, Reduction, Reshape, Slice, Softmax, Transpose
from qcompiler.ir.pointwise import Add, Clip, Mul, Sigmoid, Sub
from qcompiler.ir.verify import Stage, verify
from qcompiler.passes.simplify import simplify

PADDED = ((1, 1), (1, 1))
Grow = Callable[[Build, Value], Value]


def shuffled(b: Build, x: Value) -> Value:
    n, c, h, w = x.shape
    split = b.op(Reshape((n, 2, c // 2, h, w)), x)
    return b.op(Reshape(x.shape), b.op(Transpose((0, 2, 1, 3, 4)), split))


def normalized(b: Build, x: Value) -> Value:
    c = x.shape[1]
    return b.op(Add(), b.op(Mul(), x, b.const(c, 1, 1, low=-2.0, high=2.0)), b.const(c, 1, 1))


def upsampled(b: Build, x: Value) -> Value:
    return b.first(b.op(ConvTranspose((2, 2)), b.last(x), b.const(x.shape[1], 2, 2, x.shape[1])))


STEPS: list[Grow] = [
    lambda b, x: b.first(b.conv(b.last(x), 4, 3, pads=PADDED)),
    lambda b, x: b.first(b.conv(b.last(x), x.shape[1], 3, pads=PADDED, groups=x.shape[1])),
    lambda b, x: b.first(b.op(MaxPool((2, 2)), b.last(x))),
    lambda b, x: b.op(Clip(0.0), x),
    lambda b, x: b.op(Clip(0.0, 6.0), b.op(Add(), x, b.number(3.0))),
    lambda b, x: b.op(Mul(), x, b.op(Sigmoid(), x)),
    lambda b, x: b.op(Mul(), x, b.op(Sigmoid(), b.op(Reduce(Reduction.mean, (2, 3)), x))),
    lambda b, x: b.op(Sub(), x, b.op(Reduce(Reduction.mean, (1,)), x)),
    lambda b, x: b.op(Slice((0,) * 4, (x.shape[0], x.shape[1] // 2, *x.shape[2:]), (1,) * 4), x),
    lambda b, x: b.op(Concat(1), x, x),
    lambda b, x: b.op(Pad(((0, 0), (0, 0), (1, 0), (0, 1))), x),
    lambda b, x: b.op(Softmax(int(b.rng.integers(0, 4))), x),
    lambda b, x: b.op(Transpose((0, 1, 3, 2)), x),
    normalized,
    shuffled,
    upsampled,
]


def fits(x: Value) -> bool:
    return x.shape[1] in (2, 4, 8, 16) and min(x.shape[2:]) >= 2 and x.type.size < 8000


def random_graph(seed: int) -> Graph | None:
    b = Build()
    b.rng = np.random.default_rng(seed)
    values = [b.input(1 + seed % 2, 4, 6, 6)]
    for _ in range(b.rng.integers(3, 14)):
        x = values[b.rng.integers(max(0, len(values) - 3), len(values))]
        y = STEPS[b.rng.integers(len(STEPS))](b, x)
        alike = [v for v in values if v.shape == y.shape]
        if alike and b.rng.random() < 0.3:
            y = b.op(Add(), y, alike[b.rng.integers(len(alike))])
        values.extend([y] if fits(y) else [])
    x = values[-1]
    flat = b.op(Reshape((x.shape[0], x.type.size // x.shape[0])), x)
    outputs = [x if seed % 3 else b.op(Add(), b.op(MatMul(), flat, b.const(flat.shape[1], 3)), b.const(3))]
    outputs += [values[len(values) // 2]] if seed % 5 == 0 else []
    return None if any(isinstance(v.op, Input) for v in outputs) else graph_of(*outputs)


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_the_function_stays(first):
    for seed in range(first, first + 20):
        if (graph := random_graph(seed)) is not None:
            assert_same(graph, verify(simplify(graph), Stage.float), 2e-4)
