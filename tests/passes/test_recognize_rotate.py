"""Rotary embeddings in the spellings of exporters become one operator."""

import numpy as np
import pytest
from float_graphs import assert_same, census
from onnx_graphs import Spelled

from qcompiler.ir.sequence import Rotate
from qcompiler.passes.simplify import simplify

N, H, D = 6, 3, 8
ANGLES = np.arange(N)[:, None] / 10 ** (np.arange(D // 2) / 4)
COS, SIN = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
WIDE = np.concatenate([COS, COS], 1), np.concatenate([SIN, SIN], 1)


def cut(o, x, start, stop, step=1, axis=3):
    return o.op("Slice", x, *(np.array([i]) for i in (start, stop, axis, step)))


def rotate_half(o, x, width=D):
    turned = o.op("Concat", o.op("Neg", cut(o, x, width // 2, width)), cut(o, x, 0, width // 2), axis=-1)
    return o.op("Add", o.op("Mul", x, WIDE[0][None, None]), o.op("Mul", turned, WIDE[1][None, None]))


def rotate_half_by_split(o, x):
    a, b = o.op("Split", x, np.array([D // 2, D // 2]), outputs=2, axis=-1)
    turned = o.op("Concat", o.op("Neg", b), a, axis=-1)
    return o.op("Add", o.op("Mul", x, WIDE[0]), o.op("Mul", turned, WIDE[1]))


def complex_halves(o, x):
    a, b = cut(o, x, 0, D // 2), cut(o, x, D // 2, D)
    real = o.op("Sub", o.op("Mul", a, COS), o.op("Mul", b, SIN))
    return o.op("Concat", real, o.op("Add", o.op("Mul", b, COS), o.op("Mul", a, SIN)), axis=-1)


def interleaved(o, x):
    a, b = cut(o, x, 0, D, 2), cut(o, x, 1, D, 2)
    real = o.op("Sub", o.op("Mul", a, COS), o.op("Mul", b, SIN))
    imaginary = o.op("Add", o.op("Mul", a, SIN), o.op("Mul", b, COS))
    pairs = [o.op("Unsqueeze", p, np.array([-1])) for p in (real, imaginary)]
    return o.reshape(o.op("Concat", *pairs, axis=-1), 1, H, N, D)


def first_channels_only(o, x):
    """GPT-NeoX: the last channels pass."""
    wide = rotate_half(o, cut(o, x, 0, D), D)
    return o.op("Concat", wide, cut(o, x, D, D + 4), axis=-1)


HALF, NEIGHBOUR = (4, 5, 6, 7, 0, 1, 2, 3), (1, 0, 3, 2, 5, 4, 7, 6)
SPELLINGS = {rotate_half: HALF, rotate_half_by_split: HALF, complex_halves: HALF, interleaved: NEIGHBOUR, first_channels_only: (*HALF, 8, 9, 10, 11)}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda f: f.__name__)
def test_spellings_behind_the_split_into_heads(spelling):
    o = Spelled()
    width = len(SPELLINGS[spelling])
    x = o.heads(o.dense(o.input(1, N, 5), 5, H * width), N, H, width)
    graph = o.graph(o.merged(spelling(o, x), N, H * width))
    after = simplify(graph)
    assert census(after) == {"Conv": 1, "Rotate": 1, "Reshape": census(after)["Reshape"]}
    assert_same(graph, after)
    (op,) = (v.op for v in after.order if isinstance(v.op, Rotate))
    assert op.partners == SPELLINGS[spelling]


def test_before_the_split_into_heads():
    o = Spelled()
    x = o.reshape(o.input(1, N, H * D), 1, N, H, D)
    cos, sin = (a[None, :, None] for a in WIDE)
    turned = o.op("Concat", o.op("Neg", cut(o, x, D // 2, D)), cut(o, x, 0, D // 2), axis=-1)
    graph = o.graph(o.op("Add", o.op("Mul", x, cos), o.op("Mul", turned, sin)))
    after = simplify(graph)
    assert census(after) == {"Reshape": 1, "Rotate": 1}
    assert_same(graph, after)


def test_angles_that_differ_between_heads_are_none():
    o = Spelled()
    x = o.input(1, H, N, D)
    turned = o.op("Concat", o.op("Neg", cut(o, x, D // 2, D)), cut(o, x, 0, D // 2), axis=-1)
    graph = o.graph(o.op("Add", o.op("Mul", x, o.weights(1, H, N, D)), o.op("Mul", turned, o.weights(1, H, N, D))))
    after = simplify(graph)
    assert "Rotate" not in census(after)
    assert_same(graph, after)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("neighbours", [0, 1])
def test_standard_operator(neighbours, apart):
    o = Spelled()
    x = o.input(2, H, N, D) if apart else o.input(2, N, H * D)
    heads = {} if apart else {"num_heads": H}
    y = o.op("RotaryEmbedding", x, COS, SIN, np.tile(np.arange(N), (2, 1)), interleaved=neighbours, **heads)
    graph = o.graph(y, opset=23)
    after = simplify(graph)
    assert census(after)["Rotate"] == 1
    assert not {"Mul", "Add", "Gather"} & census(after).keys()
    assert_same(graph, after)
