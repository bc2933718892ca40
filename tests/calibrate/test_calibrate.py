"""Streaming statistics equal one-shot statistics, in constant memory; bad batches are refused with a remedy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.errors import UsageError
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.types import DType, TensorType, float_type
from qcompiler.passes.calibrate import calibrate, synthetic_batches
from qcompiler.passes.calibrate.histogram import BINS, coarsen
from qcompiler.passes.calibrate.statistics import combine, observe

RNG = np.random.default_rng(0)
FLOATS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)


def small_graph() -> Graph:
    x = apply(ops.Input(float_type(1, 6, 5, 3)), name="image")
    w = ops.constant(RNG.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    y = apply(pw.Clip(0.0), apply(ops.Conv(), x, w, name="conv"), name="relu")
    return Graph((x,), (y,), ("y",))


@settings(max_examples=80, deadline=None)
@given(st.lists(arrays(np.float32, st.integers(1, 40), elements=FLOATS), min_size=1, max_size=6))
def test_streaming_equals_one_shot(parts: list[np.ndarray]) -> None:
    streamed = None
    for part in parts:
        streamed = combine(streamed, observe(part.reshape(-1, 1), 1))
    whole = observe(np.concatenate(parts).reshape(-1, 1), 1)
    assert streamed is not None
    assert (streamed.count, streamed.min, streamed.max) == (whole.count, whole.min, whole.max)
    assert (streamed.histogram.exponent, streamed.histogram.first) == (whole.histogram.exponent, whole.histogram.first)
    assert np.array_equal(streamed.histogram.counts, whole.histogram.counts)


@settings(max_examples=80, deadline=None)
@given(arrays(np.float32, st.integers(1, 200), elements=FLOATS))
def test_histogram_counts_what_numpy_counts(x: np.ndarray) -> None:
    h = observe(x, 0).histogram
    assert len(h.counts) <= BINS
    expected = np.bincount(np.floor(x.astype(np.float64) / h.width).astype(np.int64) - h.first, minlength=len(h.counts))
    assert np.array_equal(h.counts, expected)


def test_histogram_is_as_fine_as_its_bins_allow() -> None:
    h = observe(RNG.standard_normal(10_000).astype(np.float32), 0).histogram
    assert BINS // 2 < len(h.counts) <= BINS
    assert coarsen(h, h.exponent + 3).counts.sum() == 10_000


def test_statistics_equal_those_of_the_interpreter() -> None:
    graph = small_graph()
    relu, conv = graph.outputs[0], graph.outputs[0].inputs[0]
    batch = RNG.standard_normal((5, 6, 5, 3)).astype(np.float32)
    found = calibrate(graph, [{"image": batch[:2]}, {"image": batch[2:]}], [graph.inputs[0], conv, relu])
    values = [np.concatenate([evaluate(graph, {"image": x[None]}, [v])[v] for x in batch]) for v in (conv, relu)]
    for v, expected in zip((graph.inputs[0], conv, relu), (batch, *values)):
        s = found[v]
        assert s.count == expected.size == s.histogram.counts.sum()
        np.testing.assert_allclose([s.min, s.max], [expected.min(), expected.max()], rtol=1e-5)
        np.testing.assert_allclose(s.channel_mean, expected.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(s.channel_min, expected.min((0, 1, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(s.channel_max, expected.max((0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_progress_counts_samples() -> None:
    graph, heard = small_graph(), list[int]()
    calibrate(graph, [{"image": np.ones((3, 6, 5, 3), np.float32)}] * 2, graph.outputs, heard.append)
    assert heard == [1, 2, 3, 4, 5, 6]


def test_memory_does_not_grow_with_samples() -> None:
    x = apply(ops.Input(float_type(1, 64, 64, 8)), name="image")
    graph = Graph((x,), (apply(pw.Neg(), x, name="n"),), ("y",))

    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(graph, synthetic_batches(graph, count), graph.outputs)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak(2) + 64 * 1024 > peak(40)


def test_integer_and_scalar_values_have_statistics() -> None:
    tokens = apply(ops.Input(TensorType((1, 4), DType.i64)), name="tokens")
    total = apply(ops.Reduce(ops.Reduction.sum, (0, 1), keepdims=False), apply(ops.Cast(DType.f32), tokens, name="f"), name="sum")
    found = calibrate(Graph((tokens,), (total,), ("y",)), [{"tokens": np.array([[1, 2, 3, 4]])}], [tokens, total])
    assert (found[tokens].min, found[tokens].max, found[total].max) == (1, 4, 10)
    assert found[total].channel_mean.tolist() == [10]


def test_synthetic_batches_repeat_for_a_seed_and_index_within_bounds() -> None:
    tokens = apply(ops.Input(TensorType((1, 50), DType.i32)), name="tokens")
    mask = apply(ops.Input(TensorType((1, 50), DType.i64)), name="mask")
    table = ops.constant(np.zeros((7, 2), np.float32), "table")
    picked = apply(ops.Gather(0), table, apply(ops.Cast(DType.i64), tokens, name="wide"), name="e")
    graph = Graph((tokens, mask), (picked,), ("y",))
    first, again, other = (list(synthetic_batches(graph, 2, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(first, again) for k in a)
    assert not np.array_equal(first[0]["tokens"], other[0]["tokens"])
    assert (first[0]["tokens"].min(), first[0]["tokens"].max()) == (0, 6)
    assert (first[0]["mask"] == 1).all()


def image(**changes: object) -> dict[str, np.ndarray]:
    return {"image": np.ones((1, 6, 5, 3), np.float32)} | changes  # type: ignore[return-value]


WRONG = {
    "name": ({"img": np.ones((1, 6, 5, 3), np.float32)}, r"expected the inputs \['image'\], found \['img'\]"),
    "extra": (image(mask=np.ones(3)), r"found \['image', 'mask'\]"),
    "shape": (image(image=np.ones((1, 3, 6, 5), np.float32)), r"'image': expected shape \(1, 6, 5, 3\).*found \(1, 3, 6, 5\).*Preprocess"),
    "no batch": (image(image=np.ones((6, 5, 3), np.float32)), r"x\[None\]"),
    "empty batch": (image(image=np.ones((0, 6, 5, 3), np.float32)), r"found \(0, 6, 5, 3\)"),
    "type": (image(image=np.ones((1, 6, 5, 3), np.uint8)), r"'image': expected elements of type float32, found uint8.*astype"),
    "NaN": (image(image=np.full((1, 6, 5, 3), np.nan, np.float32)), r"'image': expected finite numbers, found nan at \(0, 0, 0, 0\)"),
    "Inf": (image(image=np.full((1, 6, 5, 3), np.inf, np.float32)), r"found inf"),
    "no mapping": ([np.ones((1, 6, 5, 3))], r"expected a mapping from input name to array, found list"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_batches_are_refused(wrong: str) -> None:
    graph = small_graph()
    batch, message = WRONG[wrong]
    with pytest.raises(UsageError, match=message):
        calibrate(graph, [batch], graph.outputs)  # type: ignore[list-item]


def test_an_empty_set_is_refused() -> None:
    graph = small_graph()
    empty: Iterator[dict[str, np.ndarray]] = iter(())
    with pytest.raises(UsageError, match="at least one batch, found none"):
        calibrate(graph, empty, graph.outputs)


def test_inputs_of_different_counts_are_refused() -> None:
    a, b = (apply(ops.Input(float_type(1, 2)), name=n) for n in "ab")
    graph = Graph((a, b), (apply(pw.Add(), a, b, name="s"),), ("y",))
    with pytest.raises(UsageError, match="different numbers of samples"):
        calibrate(graph, [{"a": np.ones((2, 2), np.float32), "b": np.ones((3, 2), np.float32)}], graph.outputs)


def test_a_value_that_overflows_is_named() -> None:
    x = apply(ops.Input(float_type(1, 2)), name="x")
    big: Value = apply(pw.Exp(), x, name="blowup")
    graph = Graph((x,), (big,), ("y",))
    with pytest.raises(UsageError, match="value 'blowup', found NaN or infinite"):
        calibrate(graph, [{"x": np.full((1, 2), 1000, np.float32)}], [big])


def test_wider_floats_are_accepted() -> None:
    graph = small_graph()
    assert calibrate(graph, [{"image": np.ones((1, 6, 5, 3), np.float64)}], graph.inputs)[graph.inputs[0]].max == 1
