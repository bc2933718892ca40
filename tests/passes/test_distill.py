"""Weights of few bits tuned to the float network's answers: better on samples that were held out, on their grid, the same every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from float_graphs import Build, graph_of
from numpy.typing import NDArray

from qcompiler import api
from qcompiler.ir.graph import apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Cast, Concat, Dequantize, Input, Quantize
from qcompiler.ir.pointwise import Clip
from qcompiler.ir.types import DType, Quantization, TensorType
from qcompiler.passes import distill as method
from qcompiler.passes import torch_network
from qcompiler.passes.distill import Distilled, distill
from qcompiler.passes.mixtures import Mixtures
from qcompiler.passes.pipeline import NOT_DISTILLED, Options, Quantized, quantize
from qcompiler.passes.precision.simulate import weights_of
from qcompiler.passes.weight_grid import GROUP, MOST, Grid, grid_of_integers, grid_of_rows, grouped_grid

DIGITS = Path(__file__).parents[2] / "models"
PRODUCTS = 2e9
Samples = Sequence[Mapping[str, NDArray[np.generic]]]


def samples(count: int) -> Samples:
    archive = np.load(DIGITS / "digits_calib.npz")
    name = archive.files[0]
    return [{name: x[None]} for x in archive[name][:count]]


@cache
def narrow(network: str) -> Quantized:
    """Two bits, so that there is something to gain."""
    graph = api.import_forms(str(DIGITS / f"{network}.onnx"), None)[0]
    return quantize(graph, samples(96), Options(weight_bits=2, distill=False))


def tuned(network: str, count: int = 96) -> Distilled | str:
    q = narrow(network)
    names = weights_of(q.qdq_graph)
    first, *inner, last = names
    widths = {first: 8, last: 8} | dict.fromkeys(inner, 2)
    return distill(q.float_graph, q.qdq_graph, widths, samples(count), products=PRODUCTS)


def test_held_out_samples_are_answered_better() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    found = tuned("digits_dwconv")
    assert isinstance(found, Distilled)
    assert found.better
    assert found.after < 0.9 * found.before


def test_the_same_every_time_and_on_the_grid() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    one, two = (tuned("digits_dwconv") for _ in range(2))
    assert isinstance(one, Distilled)
    assert isinstance(two, Distilled)
    assert (one.before, one.after) == (two.before, two.after)
    moved = 0
    for name, (old, _) in weights_of(narrow("digits_dwconv").qdq_graph).items():
        made = one.weights[name]
        np.testing.assert_array_equal(made.weights, two.weights[name].weights)
        np.testing.assert_array_equal(made.bias, two.weights[name].bias)
        before = np.rint(old / made.scale.reshape(-1, 1, 1, 1)).astype(np.int64)
        moved += int((before != made.weights).sum())
        if made.bits == 8:
            np.testing.assert_array_equal(before, made.weights)
            continue
        rows = made.weights.reshape(len(old), -1).astype(np.int64)
        if made.weights.shape[-1] > 1:
            assert grid_of_integers(rows, np.ones(len(old)), 2).holds(rows)
        else:
            assert grid_of_rows(rows, np.ones(len(old)), 2, 3).holds(rows)
    assert moved


def test_the_number_of_cores_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the cores that shards are spread over, nor the threads that torch would take for each."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    monkeypatch.setattr(method, "MOST_STEPS", 20)

    def found(cores: int) -> Distilled:
        monkeypatch.setattr("qcompiler.passes.abreast.cpu_count", lambda: cores)
        torch.set_num_threads(cores)
        made = tuned("digits_resnet")
        assert isinstance(made, Distilled)
        assert torch.get_num_threads() == cores
        return made

    before = torch.get_num_threads()
    try:
        one, many = found(1), found(3)
    finally:
        torch.set_num_threads(before)
    assert (one.before, one.after) == (many.before, many.after)
    for name, made in one.weights.items():
        np.testing.assert_array_equal(made.weights, many.weights[name].weights)
        np.testing.assert_array_equal(made.bias, many.weights[name].bias)


@pytest.mark.parametrize(("rate", "seen"), [(method.WEIGHT_RATE, [72, 96]), (10.0, [72])])
def test_what_is_held_out_is_learned_from_when_it_has_judged(monkeypatch: pytest.MonkeyPatch, rate: float, seen: list[int]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    counts: list[int] = []

    class Counted(Mixtures):
        def __init__(self, torch: object, samples: Sequence[Mapping[str, object]]) -> None:
            super().__init__(torch, samples)
            counts.append(len(samples))

    monkeypatch.setattr(method, "Mixtures", Counted)
    monkeypatch.setattr(method, "WEIGHT_RATE", rate)
    monkeypatch.setattr(method, "MOST_STEPS", 80)
    found = tuned("digits_dwconv")
    assert isinstance(found, Distilled)
    assert found.better == (len(seen) == 2)
    assert counts == seen


def test_the_pipeline_keeps_what_is_better_and_reports_both_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    monkeypatch.setattr(method, "MOST_STEPS", 100)
    monkeypatch.setattr(method, "LARGE", 8)
    q = quantize(narrow("digits_dwconv").float_graph, samples(96), Options(weight_bits=2))
    assert q.distilled is not None
    assert q.distilled.after < q.distilled.before
    kept = weights_of(q.qdq_graph)
    for name, made in q.distilled.weights.items():
        np.testing.assert_array_equal(np.rint(kept[name][0] / made.scale.reshape(-1, 1, 1, 1)), made.weights)
    exchanged = weights_of(q.exchange_graph)
    assert all(np.array_equal(kept[name][0], exchanged[name][0]) for name in q.distilled.weights)


def test_the_user_hears_why_nothing_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "import_torch", lambda: None)
    q = quantize(narrow("digits_resnet").float_graph, samples(64), Options(weight_bits=4))
    assert q.distilled is None
    assert [r for _, r in q.declined.reasons if r.startswith(NOT_DISTILLED)] == [f"{NOT_DISTILLED}: {torch_network.MISSING}"]


def test_few_samples_are_not_learned_from() -> None:
    found = tuned("digits_resnet", 8)
    assert isinstance(found, str)
    assert "calibration samples" in found


def test_eight_bits_are_left_alone() -> None:
    q = quantize(narrow("digits_resnet").float_graph, samples(40))
    assert q.distilled is None
    assert not [r for _, r in q.declined.reasons if r.startswith(NOT_DISTILLED)]


def test_samples_that_calibration_did_not_see_are_held_out() -> None:
    learned, held = method.parts_of(method.woven([*range(60)], [*range(100, 160)]))
    assert all(n >= 100 for n in held)
    assert len(held) == 30
    assert sorted([*learned, *held]) == [*range(60), *range(100, 160)]


def test_integers_tell_their_grid() -> None:
    w = np.random.default_rng(0).normal(size=(6, 80)) * np.repeat([1.0, 3.0, 9.0], [32, 32, 16])
    grid = grouped_grid(w, np.ones_like(w), 4)
    q = grid.nearest(w / grid.scale[:, None]).astype(np.int64)
    found = grid_of_integers(q, grid.scale, 4)
    np.testing.assert_array_equal(found.nearest(q.astype(np.float64)), q)
    assert (np.diff(found.multipliers[:, :GROUP], axis=1) == 0).all()
    assert found.bits <= 7
    assert found.multipliers.min() < 0


def test_rows_of_integers_tell_where_they_begin_and_what_they_are_multiples_of() -> None:
    found = [rows_alone(row) for row in ([-3, 12, 0, 4, 2, 0], [0, 2, 5, 1, 3, 7], [2, 30, 8, 15, 1, 2], [-3, 12, 42, 4, 1, 0], [-8, 52, 4, 2, 1, 0])]
    assert [(int(g.low[0]), g.multipliers[0, ::3].tolist()) for g in found] == [(-3, [1, 1]), (0, [1, 1]), (0, [2, 1]), (-1, [3, 1]), (-2, [4, 1])]
    assert all((g.high - g.low == 15).all() for g in found)
    rows_alone([-3, 1, 2, 13, 0, 1], held=False)


def rows_alone(row: list[int], held: bool = True) -> Grid:
    grid = grid_of_rows(np.array([row]), np.ones(1), 4, 3)
    assert grid.holds(np.array([row])) == held
    return grid


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_multiples_of_consecutive_integers_are_found_again(bits: int) -> None:
    random, count = np.random.default_rng(bits), (1 << bits) - 1
    low, multipliers = random.integers(-count, 1, 500), random.integers(1, MOST + 1, (500, 3, 1))
    rows = (multipliers * random.integers(low, low + count + 1, (3, 3, 500)).transpose(2, 0, 1)).reshape(500, 9)
    assert grid_of_rows(rows, np.ones(500), bits, 3).holds(rows)


def test_samples_run_together_behind_a_constant_token() -> None:
    """Beside each of them it is the same."""
    found = torch_network.import_torch()
    if found is None:
        pytest.skip(torch_network.MISSING)
    b = Build()
    token = b.const(1, 1, 3, 8)
    joined = b.op(Concat(1), token, b.conv(b.input(1, 4, 3, 5), 8))
    sample = {"x": np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)}
    network = torch_network.TorchNetwork(graph_of(joined), *found, sample)
    feeds = {"x": found[0].tensor(np.concatenate([sample["x"], sample["x"] * 2]))}
    assert network.together
    assert tuple(network(feeds).shape) == (2, 5, 3, 8)


def test_torch_stores_values_as_the_interpreter_does_and_derives_within_the_range() -> None:
    """Up to ties, of which these have none: the steps of the range lie off them."""
    found = torch_network.import_torch()
    if found is None:
        pytest.skip(torch_network.MISSING)
    torch = found[0]
    b = Build()
    x = b.input(1, 4, 4, 8)
    stored = TensorType((1, 4, 4, 8), DType.i8, Quantization((0.03,), (5,), bits=8))
    g = graph_of(b.op(Dequantize(), b.op(Quantize(stored), x)))
    sample = np.random.default_rng(0).normal(scale=3, size=x.shape).astype(np.float32)
    network = torch_network.TorchNetwork(g, *found, {"x": sample})
    seen = torch.tensor(sample, requires_grad=True)
    y = network({"x": seen})
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), evaluate(g, {"x": sample})[g.outputs[0]], rtol=1e-5, atol=1e-6)
    within = (sample > (-128 - 5) * 0.03) & (sample < (127 - 5) * 0.03)
    assert 0 < within.sum() < within.size
    np.testing.assert_array_equal(seen.grad.numpy(), within)


@pytest.mark.parametrize("clip", [Clip(0.0), Clip(0.0, 2.0), Clip(-1.5, 9.0)])
def test_what_is_clipped_and_stored_is_clipped_once(clip: Clip) -> None:
    """Behind a dense layer: values and derivatives as of one after the other."""
    found = torch_network.import_torch()
    if found is None:
        pytest.skip(torch_network.MISSING)
    torch = found[0]
    b = Build()
    stored = TensorType((1, 4, 4, 6), DType.i8, Quantization((0.031,), (-40,), bits=8))
    clipped = b.op(clip, b.conv(b.input(1, 4, 4, 8), 6))
    g = graph_of(b.op(Dequantize(), b.op(Quantize(stored), clipped)))
    sample = np.random.default_rng(0).normal(scale=3, size=(1, 4, 4, 8)).astype(np.float32)
    network = torch_network.TorchNetwork(g, *found, {"x": sample})
    w, bias = (torch.tensor(i.op.data) for i in clipped.inputs[0].inputs[1:])
    bias.requires_grad_()
    y = network({"x": torch.tensor(sample)}, {clipped.inputs[0].name: (w, bias)})
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), evaluate(g, {"x": sample})[g.outputs[0]], rtol=1e-5, atol=1e-5)
    before = evaluate(graph_of(clipped.inputs[0]), {"x": sample})[clipped.inputs[0]]
    within = (before > max(clip.lo, (-128 + 40) * 0.031)) & (before < min(clip.hi, (127 + 40) * 0.031))
    assert 0 < within.sum() < within.size
    np.testing.assert_array_equal(bias.grad.numpy(), within.sum((0, 1, 2)))


def test_torch_clips_integers_without_a_bound() -> None:
    found = torch_network.import_torch()
    if found is None:
        pytest.skip(torch_network.MISSING)
    clipped = apply(Clip(1.0), apply(Input(TensorType((1, 3), DType.i64)), name="x"), name="clipped")
    g = graph_of(apply(Cast(DType.f32), clipped, name="y"))
    sample = {"x": np.array([[-5, 3, 9]])}
    network = torch_network.TorchNetwork(g, *found, sample)
    assert network({"x": found[0].tensor(sample["x"])}).tolist() == [[1, 3, 9]]
