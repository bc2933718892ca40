"""What the residual streams of transformers are given: normalizations of their own, 16 bits, and widths of what is multiplied."""

from math import inf

import numpy as np
import pytest
from float_graphs import Build, assert_same, census, graph_of

from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import Conv, Gather, Input, MatMul, Reshape, Slice, Transpose
from qcompiler.ir.pointwise import Add, Clip, Gelu
from qcompiler.ir.sequence import Attention, Normalize
from qcompiler.ir.types import DType, TensorType
from qcompiler.passes.split_normalizations import split_normalizations
from qcompiler.passes.storage_points import storage_points
from qcompiler.passes.wide_values import streams, wide_values
from qcompiler.passes.widths import activation_widths, weight_widths

N, C = 6, 8


def normalized(b: Build, x: Value) -> Value:
    return b.op(Normalize(1e-5), x, b.const(C), b.const(C))


def mlp(b: Build, x: Value) -> Value:
    return b.conv(b.op(Gelu(), b.conv(x, 12)), C)


def embedded(b: Build) -> Value:
    """Rows of a table, [1, 1, N, C]."""
    ids = apply(Input(TensorType((1, 1, N), DType.i64)), name="ids")
    return b.op(Gather(0), b.const(20, C), ids)


def before_the_layers(b: Build) -> tuple[Graph, dict[str, Value]]:
    """x + f(normalize(x)), twice."""
    x = embedded(b)
    first = b.op(Add(), x, mlp(b, normalized(b, x)))
    second = b.op(Add(), first, mlp(b, normalized(b, first)))
    last = normalized(b, second)
    y = b.conv(last, 5)
    return graph_of(y), {"embedding": x, "first": first, "second": second, "last": last, "y": y}


def after_the_additions(b: Build) -> tuple[Graph, dict[str, Value]]:
    """normalize(x + f(x)), twice."""
    x = normalized(b, embedded(b))
    first = b.op(Add(), mlp(b, x), x)
    n = normalized(b, first)
    second = b.op(Add(), n, mlp(b, n))
    y = b.conv(normalized(b, second), 5)
    return graph_of(y), {"x": x, "first": first, "n": n, "second": second, "y": y}


def named(graph: Graph, name: str) -> Value:
    return next(v for v in graph.order if v.name == name)


# --- split_normalizations ---


def test_a_normalization_of_layers_and_additions_is_computed_for_each() -> None:
    graph, v = after_the_additions(Build())
    after = split_normalizations(graph)
    assert_same(graph, after, 1e-7)
    assert census(after)["Normalize"] == census(graph)["Normalize"] + 2
    for name in ("x", "n"):
        layers, stream = named(after, v[name].name), named(after, f"{v[name].name}.stream")
        assert not any(isinstance(u.op, Add) for u in after.uses[layers])
        assert [type(u.op) for u in after.uses[stream]] == [Add]
        assert stream.inputs == layers.inputs


def test_a_normalization_that_only_layers_or_only_additions_read_stays() -> None:
    graph, _ = before_the_layers(Build())
    assert split_normalizations(graph) is graph
    b = Build()
    n = normalized(b, b.input(1, 1, N, C))
    graph = graph_of(b.op(Add(), n, mlp(b, b.input(1, 1, N, C, name="z"))))
    assert split_normalizations(graph) is graph


def test_layers_behind_a_reshape_and_outputs_count() -> None:
    b = Build()
    n = normalized(b, b.input(1, N, C))
    rows = b.op(Reshape((1, 1, N, C)), n)
    graph = graph_of(b.op(Add(), b.op(Reshape((1, N, C)), mlp(b, rows)), n), n)
    after = split_normalizations(graph)
    assert_same(graph, after, 1e-7)
    assert census(after)["Normalize"] == 2
    assert after.outputs[1].name == n.name


# --- wide_values ---


def test_the_stream_before_normalizations_is_wide_and_nothing_that_is_multiplied() -> None:
    graph, v = before_the_layers(Build())
    assert wide_values(graph) == {v[name] for name in ("embedding", "first", "second", "y")} | branches(graph)
    pairs = {(a.name, i.name) for a, i in streams(graph, wide_values(graph))}
    assert (v["second"].name, v["first"].name) in pairs
    assert (v["first"].name, v["embedding"].name) in pairs


def branches(graph: Graph) -> frozenset[Value]:
    """Wide results of dense layers that nothing but an addition reads."""
    return frozenset(w for w in wide_values(graph) if isinstance(w.op, Conv) and graph.uses[w] and all(isinstance(u.op, Add) for u in graph.uses[w]))


def test_the_stream_after_additions_is_wide_where_no_layer_reads_it() -> None:
    graph, v = after_the_additions(Build())
    wide = wide_values(graph)
    assert {v["first"], v["second"], v["y"]} <= wide
    assert v["x"] not in wide
    assert v["n"] not in wide
    after = split_normalizations(graph)
    wide = wide_values(after)
    for name in ("x", "n"):
        assert named(after, f"{v[name].name}.stream") in wide
        assert named(after, v[name].name) not in wide


@pytest.mark.parametrize("graph", [before_the_layers(Build())[0], split_normalizations(after_the_additions(Build())[0])])
def test_nothing_wide_is_read_by_a_product_or_a_table(graph: Graph) -> None:
    wide = wide_values(graph)
    assert wide
    assert not any(isinstance(u.op, (Conv, MatMul, Attention, Gelu)) for v in wide for u in graph.uses[v])


def test_a_sum_that_a_layer_reads_keeps_8_bits() -> None:
    b = Build()
    x = b.input(1, 1, N, C)
    total = b.op(Add(), x, b.conv(x, C))
    graph = graph_of(b.conv(total, 4), b.conv(normalized(b, total), 4))
    assert total not in wide_values(graph)


def test_what_shares_with_a_value_of_8_bits_keeps_8_bits() -> None:
    """A slice of what a layer reads, too, has its scale."""
    b = Build()
    whole = b.conv(b.input(1, 1, N, C), 2 * C)
    part = b.op(Slice((0, 0, 0, 0), (1, 1, N, C), (1, 1, 1, 1)), whole)
    graph = graph_of(b.conv(normalized(b, part), 4), b.conv(whole, 4))
    assert not {whole, part} & wide_values(graph)
    b = Build()
    whole = b.conv(b.input(1, 1, N, C), 2 * C)
    part = b.op(Slice((0, 0, 0, 0), (1, 1, N, C), (1, 1, 1, 1)), whole)
    assert {whole, part} <= wide_values(graph_of(b.conv(normalized(b, part), 4)))


def test_outputs_of_layers_are_wide_and_those_of_tables_are_not() -> None:
    b = Build()
    x = b.input(1, 1, N, C)
    outputs = b.conv(x, 4), b.op(Clip(0.0, inf), b.conv(x, 4)), b.op(Gelu(), b.conv(x, 4)), b.op(Transpose((0, 1, 3, 2)), b.conv(x, 4))
    wide = wide_values(graph_of(*outputs))
    assert [v in wide for v in outputs] == [True, True, False, True]


# --- widths ---


def attention_layer(b: Build, x: Value) -> Value:
    q, k, v = (b.op(Reshape((1, N, 2, C // 2)), b.conv(x, C)) for _ in range(3))
    return b.conv(b.op(Reshape((1, 1, N, C)), b.op(Attention(0.5), q, k, v)), C)


def network() -> tuple[Graph, list[Value]]:
    """Layers in order: patches, then q, k, v, projection, two dense layers, the answer."""
    b = Build()
    x = b.conv(b.input(1, 1, N, 3), C)
    x = b.op(Add(), x, attention_layer(b, normalized(b, x)))
    x = b.op(Add(), x, mlp(b, normalized(b, x)))
    graph = graph_of(b.conv(normalized(b, x), 4))
    return graph, [v for v in graph.order if isinstance(v.op, Conv)]


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_first_and_last_layers_keep_8_bits(bits: int) -> None:
    graph, convs = network()
    assert [weight_widths(graph, bits)[c] for c in convs] == [8, *[bits] * 6, 8]
    read = activation_widths(graph, bits)
    assert [read.get(c.inputs[0]) for c in convs] == [8, *[bits] * 6, 8]


@pytest.mark.parametrize("bits", [7, 8])
def test_from_7_bits_on_all_layers_are_alike(bits: int) -> None:
    graph, convs = network()
    assert set(weight_widths(graph, bits).values()) == {bits}
    assert {activation_widths(graph, bits)[c.inputs[0]] for c in convs} == {bits}


def test_products_read_narrow_values_and_all_others_keep_8_bits() -> None:
    graph, _ = network()
    widths = activation_widths(graph, 4)
    assert set(widths) == set(storage_points(graph))
    attention = next(v for v in graph.order if isinstance(v.op, Attention))
    tables = [v for v in graph.order if isinstance(v.op, Gelu)]
    assert {widths[i] for i in attention.inputs} == {4}
    assert {widths[i.inputs[0]] for i in attention.inputs} == {4}, "what is moved to attention"
    assert widths[attention] == 4, "the projection reads it, moved"
    assert {widths[t.inputs[0]] for t in tables} == {8}, "what a table reads"
    assert {widths[t] for t in tables} == {4}
    assert {widths[v] for v in graph.order if isinstance(v.op, Add)} == {8}


def test_products_of_activations_are_narrow_on_both_sides() -> None:
    b = Build()
    x = b.conv(b.input(1, 1, N, 3), C)
    left, right = b.op(Gelu(), x), b.op(Transpose((0, 1, 3, 2)), b.op(Clip(-1.0, 1.0), x))
    graph = graph_of(b.conv(b.conv(b.op(MatMul(), left, right), C), 4))
    widths = activation_widths(graph, 4)
    assert {widths[left], widths[right], widths[right.inputs[0]]} == {4}
    assert np.unique(list(weight_widths(graph, 4).values())).tolist() == [4, 8]
