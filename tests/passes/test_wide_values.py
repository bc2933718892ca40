"""Which values are stored in 16 bits."""

import numpy as np

from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import Conv, Input, Reshape, Slice, constant
from qcompiler.ir.sequence import Attention, Rotate
from qcompiler.ir.types import float_type
from qcompiler.passes.wide_values import wide_values

N, H, D = 5, 2, 4
ANGLES = np.linspace(-3, 3, N * D, dtype=np.float32).reshape(N, D)


def dense(x: Value, width: int, name: str) -> Value:
    """A projection [N, C] -> [N, width], and its heads."""
    weights = constant(np.ones((width, 1, 1, x.shape[3]), np.float32), f"{name}.w")
    return apply(Conv(), x, weights, name=name)


def cut(x: Value, first: int, count: int, name: str) -> Value:
    shape = x.shape
    rows = apply(Slice((0, 0, 0, first), (*shape[:3], first + count), (1, 1, 1, 1)), x, name=f"{name}.cut")
    return apply(Reshape((1, N, H, D)), rows, name=name)


def turned(x: Value, name: str) -> Value:
    cos, sin = (constant(f(ANGLES), f"{name}.{f.__name__}") for f in (np.cos, np.sin))
    return apply(Rotate((1, 0, 3, 2)), x, cos, sin, name=name)


def names(*outputs: Value) -> set[str]:
    """The values made wide, without the outputs."""
    inputs = tuple(v for v in Graph((), outputs, tuple(v.name for v in outputs)).order if isinstance(v.op, Input))
    return {v.name for v in wide_values(Graph(inputs, outputs, tuple(v.name for v in outputs)))} - {v.name for v in outputs}


def network(values_apart: bool) -> Value:
    x = apply(Input(float_type(1, 1, N, 6)), name="x")
    joint = dense(x, (2 if values_apart else 3) * H * D, "joint")
    q, k = (cut(joint, i * H * D, H * D, n) for i, n in enumerate("qk"))
    v = cut(dense(x, H * D, "apart") if values_apart else joint, 0 if values_apart else 2 * H * D, H * D, "v")
    attended = apply(Attention(scale=0.5), turned(q, "q.turned"), turned(k, "k.turned"), v, name="attended")
    return dense(apply(Reshape((1, 1, N, H * D)), attended, name="joined"), 3, "y")


def test_what_is_rotated_is_wide_from_the_projection_on() -> None:
    assert names(network(values_apart=True)) == {"joint", "q.cut", "q", "k.cut", "k"}


def test_what_attention_reads_too_is_not() -> None:
    assert names(network(values_apart=False)) == set()
