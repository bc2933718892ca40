"""Layers that read 16 bits: which do without being asked, what a plan may ask, and how their accumulators are kept within 32."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.backends import reference
from qcompiler.errors import UsageError
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.integer import IntConv, IntReduceSum, IntSumPool
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import AveragePool, MatMul, MaxPool, Quantize, Reduce, Reduction, Reshape, Transpose
from qcompiler.ir.pointwise import Add, Clip, Sigmoid
from qcompiler.passes.pipeline import Options, Quantized, legal, observed, quantize, quantized
from qcompiler.passes.precision.plan import Plan, Precision, layers_of, parse_plan, plan_of
from qcompiler.passes.scheme import Scheme

SAME = ((1, 1), (1, 1))
WIDE = Precision(8, 16)


def pooled(b: Build, x: Value, op: type = Reduce) -> Value:
    return b.op(Reduce(Reduction.mean, (1, 2), True) if op is Reduce else AveragePool(x.shape[1:3], (1, 1)), x)


def relu(b: Build, x: Value) -> Value:
    return b.op(Clip(0.0, inf), x)


def classifier(op: type = Reduce, channels: int = 16) -> Graph:
    """Two convolutions, an average over all pixels, a dense layer."""
    b = Build()
    x = relu(b, b.conv(b.input(1, 8, 8, 3), 8, 3, pads=SAME))
    return graph_of(b.conv(pooled(b, relu(b, b.conv(x, channels, 3, pads=SAME)), op), 5))


def samples(graph: Graph, count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{v.name: rng.normal(size=v.shape).astype(np.float32) for v in graph.inputs} for _ in range(count)]


def made(graph: Graph, **options: object) -> Quantized:
    return quantize(graph, samples(graph), Options(**options))  # type: ignore[arg-type]


def read(q: Quantized) -> list[int]:
    """The bits of what each convolution and average reads, in order."""
    return list(_read(q.integer_graph))


def _read(graph: Graph) -> Iterator[int]:
    for v in graph.order:
        if isinstance(v.op, (IntConv, IntReduceSum, IntSumPool)):
            assert v.inputs[0].type.quant is not None
            yield v.inputs[0].type.quant.bits


def error(q: Quantized, graph: Graph) -> float:
    """Of the answer, relative to it."""
    pairs = [(next(iter(reference.run(q.integer_graph, s).values())), evaluate(graph, s)[graph.outputs[0]]) for s in samples(graph, 20)]
    found, expected = (np.stack(a) for a in zip(*pairs))
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


def names(graph: Graph) -> list[str]:
    return [v.name for v in layers_of(graph)]


# --- without being asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Reduce, AveragePool])
def test_an_average_over_all_pixels_and_the_layer_behind_it(op: type) -> None:
    graph = classifier(op)
    q = made(graph)
    assert read(q) == [8, 8, 16, 16]
    assert str(plan_of(q.qdq_graph).layers[names(q.qdq_graph)[-1]]) == "w8a16"
    stored = [v.type.quant.bits for v in q.exchange_graph.order if isinstance(v.op, Quantize) and v.type.quant is not None]
    assert stored == [8, 8, 8, 8, 16]  # other tools get 8 bits, but for the output
    assert error(q, graph) < 0.02


def test_what_something_else_reads_too_has_8_bits() -> None:
    b = Build()
    x = relu(b, b.conv(b.input(1, 8, 8, 3), 16, 3, pads=SAME))
    q = made(graph_of(b.conv(pooled(b, x), 5), b.conv(x, 4)))
    assert sorted(read(q)) == [8, 8, 8, 16]


def test_what_a_table_gives_has_8_bits() -> None:
    b = Build()
    q = made(graph_of(b.conv(pooled(b, b.op(Sigmoid(), b.conv(b.input(1, 8, 8, 3), 16, 3, pads=SAME))), 5)))
    assert read(q) == [8, 8, 16]


def test_heavy_dense_layers_are_not_light() -> None:
    b = Build()
    graph = graph_of(b.conv(relu(b, b.conv(b.input(1, 1, 1, 12), 30)), 30))
    assert read(made(graph)) == [8, 8]


def test_dense_layers_that_have_a_hundredth_of_the_products_are() -> None:
    b = Build()
    rows = b.op(Reshape((1, 1, 1, 72)), relu(b, b.conv(b.input(1, 6, 6, 64), 2)))
    wide = relu(b, b.conv(relu(b, b.conv(b.input(1, 24, 24, 64, name="z"), 64, 3, pads=SAME)), 2, 24))
    assert read(made(graph_of(b.conv(rows, 9), b.conv(b.op(Reshape((1, 1, 1, 2)), wide), 9)))) == [8, 16, 8, 8, 16]


def test_weights_of_few_bits_are_read_beside_bytes() -> None:
    """Whether they are known before scales are chosen, or decided after (`auto`), in which case scales of bytes are at hand."""
    graph = classifier()
    last = layers_of(graph)[-1].name
    options = Options(plan=Plan({last: Precision(4, 8)}), distill=False)
    data = samples(graph)
    even = legal(graph, Declined())
    later = quantized(even, observed(even, data, data, Options(), None), options, Declined())
    for q in (made(graph, plan=options.plan, distill=False), later):
        assert read(q) == [8, 8, 16, 8]
    assert read(made(graph)) == [8, 8, 16, 16]


def test_only_the_plain_scheme_has_them() -> None:
    assert read(made(classifier(), scheme=Scheme(symmetric=True))) == [8, 8, 8, 8]
    assert read(made(classifier(), scheme=Scheme(streams=False))) == [8, 8, 8, 8]


def test_sums_of_many_pixels_have_fewer_bits() -> None:
    b = Build()
    graph = graph_of(pooled(b, b.conv(b.input(1, 300, 300, 1), 2)))
    assert read(quantize(graph, samples(graph, 1))) == [8, 14]


def test_residuals_of_what_is_averaged_are_added_in_the_accumulator() -> None:
    b = Build()
    x = relu(b, b.conv(b.input(1, 8, 8, 3), 16, 3, pads=SAME))
    y = relu(b, b.op(Add(), b.conv(relu(b, b.conv(x, 16, 3, pads=SAME)), 16, 3, pads=SAME), x))
    graph = graph_of(b.conv(pooled(b, y), 5))
    q = made(graph)
    assert read(q) == [8, 8, 8, 16, 16]
    added = [v.inputs[3].type.quant.bits for v in q.integer_graph.order if isinstance(v.op, IntConv) and len(v.inputs) > 3]  # type: ignore[union-attr]
    assert added == [16]
    assert error(q, graph) < 0.03


# --- asked -------------------------------------------------------------------------------------------------------------


def test_activations_of_16_bits_everywhere_but_at_the_input() -> None:
    graph = classifier()
    q = made(graph, activation_bits=16)
    assert read(q) == [8, 16, 16, 16]
    assert [reason for _, reason in q.declined.reasons if "not 16" in reason] == ["it reads 8 bits, not 16: Input 'x' gives 8 bits"]
    assert error(q, graph) < error(made(graph), graph) < 0.03


@pytest.mark.parametrize("weights", [8, 4])
def test_a_plan_asks_layer_by_layer(weights: int) -> None:
    graph = classifier()
    second = names(made(graph).float_graph)[1]
    q = made(graph, plan=parse_plan(f'[layers]\n"{second}" = "w{weights}a16"'))
    assert read(q) == [8, 16, 16, 16]
    assert plan_of(q.qdq_graph).layers[second] == Precision(weights, 16)


def test_other_readers_of_what_one_is_asked_to_read_read_it_too() -> None:
    b = Build()
    x = b.op(MaxPool((2, 2), (2, 2)), relu(b, b.conv(b.input(1, 8, 8, 3), 8, 3, pads=SAME)))
    graph = graph_of(b.conv(x, 4, 3, pads=SAME), b.conv(x, 6))
    first, *others = names(made(graph).float_graph)
    assert read(made(graph, plan=Plan({others[0]: WIDE}))) == [8, 16, 16]
    with pytest.raises(UsageError, match=f"asks that '{first}' read 16 bits, but Input 'x' gives 8 bits; name w8a8 for it"):
        made(graph, plan=Plan({first: WIDE}))


def behind_tables() -> Graph:
    """A depthwise convolution, one that reads a table's results, and a product of activations."""
    b = Build()
    x = relu(b, b.conv(b.input(1, 8, 8, 3), 8, 3, pads=SAME))
    y = b.conv(relu(b, b.conv(x, 8, 3, pads=SAME, groups=8)), 6)
    z = b.conv(b.op(Sigmoid(), b.conv(x, 4)), 6)
    return graph_of(y, b.op(MatMul(), z, b.op(Transpose((0, 1, 3, 2)), y)))


def test_layers_that_cannot_read_16_bits_say_why() -> None:
    graph = behind_tables()
    q = made(graph, activation_bits=16)
    reasons = {n: r.removeprefix("it reads 8 bits, not 16: ") for n, r in q.declined.reasons if "not 16" in r}
    table = next(v for v in q.float_graph.order if isinstance(v.op, Sigmoid))
    product = next(v for v in q.float_graph.order if isinstance(v.op, MatMul))
    behind = next(u for u in q.float_graph.uses[table])
    first = names(q.float_graph)[0]
    assert reasons == {
        first: "Input 'x' gives 8 bits",
        behind.name: f"Sigmoid '{table.name}' gives 8 bits",
        product.name: "products of activations read 8 bits",
    }
    assert sorted(read(q)) == [8, 8, 16, 16, 16]
    for name, reason in reasons.items():
        with pytest.raises(UsageError, match=f"asks that '{name}' read 16 bits, but {reason}; name w8a8 for it"):
            made(graph, plan=Plan({name: WIDE}))


def test_a_long_sum_reads_fewer_bits_and_says_so() -> None:
    """|w| is 127 for all of K = 1152, so that 2^30 is not reached by 2^12 times their sum."""
    b = Build()
    x = relu(b, b.conv(b.input(1, 4, 4, 3), 128, 3, pads=SAME))
    last = b.conv(x, 4, 3, pads=SAME)
    last.inputs[1].op.data[:] = np.sign(last.inputs[1].op.data)  # type: ignore[attr-defined]
    graph = graph_of(last)
    name = names(made(graph).float_graph)[-1]
    q = made(graph, plan=Plan({name: WIDE}), equalize=False)
    assert read(q) == [8, 13]
    assert max(bound.reach for bound in q.bounds.values()) < 1 << 30
    assert [r for n, r in q.declined.reasons if n == name and "13 bits instead of 16" in r]
    assert not [r for n, r in q.declined.reasons if "weight scale" in r]
    assert error(q, graph) < error(made(graph, equalize=False), graph)


def test_additions_stay_within_what_their_readers_hold() -> None:
    """A sum of two streams has no requantization whose bounds it could have: it is clamped."""
    b = Build()
    x = b.conv(b.input(1, 4, 4, 3), 128, 3, pads=SAME)
    y = b.op(Add(), x, b.conv(x, 128))
    last = b.conv(y, 4, 3, pads=SAME)
    last.inputs[1].op.data[:] = np.sign(last.inputs[1].op.data)  # type: ignore[attr-defined]
    graph = graph_of(last)
    q = made(graph, activation_bits=16, equalize=False)
    assert read(q) == [8, 13, 13]
    assert error(q, graph) < 0.03
