"""The integer program against brute force, losses against their definitions, and the whole choice on a small network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, Reshape
from qcompiler.ir.pointwise import Clip
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.auto import quantize_auto
from qcompiler.passes.precision.choose import LOSS, Problem, choose
from qcompiler.passes.precision.costs import Latencies
from qcompiler.passes.precision.gradients import measure_second_order
from qcompiler.passes.precision.loss import Classes, Directions, Values, drop_of, judge_of
from qcompiler.passes.precision.plan import plan_of
from qcompiler.passes.precision.search import BYTES, MILLISECONDS, Goal
from qcompiler.passes.precision.sensitivity import measure_sensitivities, rank_correlations
from qcompiler.passes.precision.simulate import Simulation, weights_of


def drawn(seed: int, layers: int = 5, widths: int = 3) -> Problem:
    rng = np.random.default_rng(seed)
    costs = {BYTES: rng.integers(1, 50, (layers, widths)).astype(float), LOSS: rng.uniform(0, 1, (layers, widths))}
    options = range(layers * widths)
    pairs = {(i, j): float(rng.normal(0, 0.3)) for i in options for j in options if i // widths < j // widths and rng.random() < 0.4}
    return Problem(costs, pairs)


def by_force(problem: Problem, minimise: str, limits: dict[str, float]) -> float | None:
    layers, widths = problem.shape
    able = [c for c in product(range(widths), repeat=layers) if all(problem.cost(n, c) <= limit for n, limit in limits.items())]
    return min((problem.cost(minimise, c) for c in able), default=None)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("minimise", "limited"), [(BYTES, LOSS), (LOSS, BYTES)])
def test_choices_are_as_good_as_the_best_of_all(seed: int, minimise: str, limited: str) -> None:
    problem = drawn(seed)
    for part in (0.15, 0.4, 0.7):
        limit = part * float(problem.costs[limited].max(1).sum())
        best, found = by_force(problem, minimise, {limited: limit}), choose(problem, minimise, {limited: limit})
        assert (best is None) == (found is None)
        if found is not None and best is not None:
            assert problem.cost(limited, found) <= limit + 1e-6
            assert problem.cost(minimise, found) == pytest.approx(best, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_closed_options_are_not_taken(seed: int) -> None:
    """Even where they are the best."""
    problem = drawn(seed)
    limit = {BYTES: 0.8 * float(problem.costs[BYTES].max(1).sum())}
    first = choose(problem, LOSS, limit)
    assert first is not None
    closed = frozenset(layer * 3 + width for layer, width in enumerate(first[:3]))
    found = choose(replace(problem, closed=closed), LOSS, limit)
    assert found is not None
    assert all(a != b for a, b in zip(found[:3], first[:3]))


def test_what_is_impossible_is_no_choice() -> None:
    problem = drawn(0)
    assert choose(problem, LOSS, {BYTES: float(problem.costs[BYTES].min(1).sum()) - 1}) is None


def test_directions_are_the_loss_to_second_order() -> None:
    rng = np.random.default_rng(1)
    y, d = rng.normal(size=(4, 7)), rng.normal(size=(4, 7)) * 1e-3
    for judge in (Classes(), Values(2.0)):
        assert (judge.directions(y, y + d) ** 2).sum() == pytest.approx(judge.loss(y, y + d), rel=1e-2)
    assert Classes().loss(y, y + 3) == pytest.approx(0, abs=1e-12)
    assert Values(2.0).loss(np.zeros(10), np.ones(10)) == pytest.approx(0.25)


def test_drop_is_the_probability_that_is_lost() -> None:
    p = np.array([[0.5, 0.3, 0.2]])
    z = np.log(p)
    for judge, y in ((Classes(), z), (Classes(probabilities=True), p)):
        found = drop_of(judge, [y, y], [y, y[:, [1, 0, 2]]])
        assert found.mean == pytest.approx(10)
        assert found.error == pytest.approx(200**0.5)
    found = drop_of(Values(2.0), [np.zeros(10)] * 2, [np.ones(10), np.zeros(10)])
    assert found.mean == pytest.approx(12.5)


def test_drop_of_few_samples_is_that_of_many() -> None:
    rng = np.random.default_rng(5)
    z = rng.normal(size=(2048, 1, 6)) * 2
    answers, others = list(z), list(z + rng.normal(size=z.shape) * 0.5)
    p = np.exp(z[:, 0]) / np.exp(z[:, 0]).sum(1, keepdims=True)
    seen = 100 * (p.max(1) - p[np.arange(len(p)), np.argmax([o[0] for o in others], 1)])
    few = [drop_of(Classes(), answers[i : i + 64], others[i : i + 64]) for i in range(0, 2048, 64)]
    means = np.array([d.mean for d in few])
    assert abs(means.mean() - seen.mean()) < 0.1 * seen.mean()
    assert means.std() < 0.8 * seen.reshape(-1, 64).mean(1).std()
    assert 0.6 < means.std() / np.mean([d.error for d in few]) < 1.5


def unit(z: np.ndarray) -> np.ndarray:
    return np.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True))


def test_directions_are_judged_by_the_ranks_of_their_cosines() -> None:
    rng = np.random.default_rng(3)
    y = unit(rng.normal(size=(256, 1, 32)) + rng.normal(size=(1, 1, 32)))
    near, far = (unit(y + rng.normal(size=y.shape) * size) for size in (0.01, 0.05))
    judge = Directions.of(1 / 32, list(y))
    small, great = (drop_of(judge, list(y), list(other)) for other in (near, far))
    assert 0 < small.mean < 0.3 * great.mean
    assert 0 < great.error < great.mean
    turn = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    turned = drop_of(judge, list(y), list(y @ turn))
    assert turned.mean == pytest.approx(0, abs=1e-6), "what turns all of them alike changes no cosine"
    assert turned.loss > great.loss
    cosines, others = ((z[:, 0] @ z[:, 0].T)[np.triu_indices(256, 1)] for z in (y, near))
    assert small.loss == pytest.approx(0.5 * ((others - cosines) ** 2).mean() / cosines.var(), rel=0.1)
    parts = [drop_of(judge, list(y[i : i + 64]), list(far[i : i + 64])) for i in range(0, 256, 64)]
    spread = np.std([p.mean for p in parts], ddof=1)
    assert 0.3 < np.mean([p.error for p in parts]) / spread < 3


@pytest.mark.parametrize(("scale", "expected"), [(1.0, Directions), (1.1, Values)])
def test_answers_of_length_one_are_directions(scale: float, expected: type) -> None:
    b = Build()
    graph = graph_of(b.op(Clip(-5, 5), b.conv(b.input(1, 1, 1, 4), 32)))
    assert type(judge_of(graph, list(scale * unit(np.random.default_rng(0).normal(size=(5, 1, 1, 1, 32)))))) is expected


def test_interrupted_sensitivities_go_on(tmp_path: Path) -> None:
    g, samples = network(), list(batches(6))
    own = weights_of(g)
    forms = {4: {n: (rounded(w, 4), bias) for n, (w, bias) in own.items()}}
    heard = list[int]()

    def stop(done: int) -> None:
        heard.append(done)
        if len(heard) == 3 * len(own):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivities(Simulation(g), forms, samples, Classes(), stop, tmp_path)
    again = measure_sensitivities(Simulation(g), forms, samples, Classes(), heard.append, tmp_path)
    assert heard[3 * len(own)] == 2 * len(own) + 1
    whole = measure_sensitivities(Simulation(g), forms, samples, Classes())
    assert again.loss.tolist() == whole.loss.tolist()
    assert again.pairs.tolist() == whole.pairs.tolist()
    next(tmp_path.iterdir()).write_bytes(b"broken")
    assert measure_sensitivities(Simulation(g), forms, samples, Classes(), None, tmp_path).loss.tolist() == whole.loss.tolist()


def network(classes: bool = True) -> Graph:
    b = Build()
    x = b.input(1, 8, 8, 4)
    for stride in (1, 2, 2):
        x = b.op(Clip(0.0, float("inf")), conv(b, x, 16, 3, pads=((1, 1), (1, 1)), strides=(stride, stride)))
    x = conv(b, x, 10, 2)
    return graph_of(b.op(Reshape((1, 10)), x) if classes else x)


def conv(b: Build, x: Value, out: int, kernel: int, **attributes: object) -> Value:
    """Such weights that results have about the variance of x."""
    reach = float(np.sqrt(4 / (kernel * kernel * x.shape[3])))
    return b.op(Conv(**attributes), x, b.const(out, kernel, kernel, x.shape[3], low=-reach, high=reach), b.const(out, low=-0.1, high=0.1))  # type: ignore[arg-type]


def batches(count: int = 48) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return ({"x": rng.normal(size=(1, 8, 8, 4)).astype(np.float32)} for _ in range(count))


def test_simulation_computes_as_the_interpreter() -> None:
    g = network()
    (sample,) = batches(1)
    simulation, own = Simulation(g), weights_of(g)
    expected = np.asarray(evaluate(g, sample)[g.outputs[0]])
    assert np.allclose(next(simulation.answers([sample])), expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(next(simulation.answers([sample], own)), expected, rtol=1e-4, atol=1e-4)
    name = next(iter(own))
    w, bias = own[name]
    assert not np.allclose(next(simulation.answers([sample], {name: (w * 0.5, bias)})), expected, rtol=1e-2)


def test_variants_and_samples_side_by_side_keep_their_order() -> None:
    """More of them than any machine runs at once."""
    g = network()
    samples, simulation, own = list(batches(40)), Simulation(g), weights_of(g)
    changes = [{name: (w * np.float32(factor), bias)} for name, (w, bias) in own.items() for factor in np.linspace(0.1, 2, 10)]
    one_by_one = [next(simulation.answers(samples[:1], changed)) for changed in changes]
    np.testing.assert_allclose(list(simulation.variants(samples[0], changes)), one_by_one, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(list(simulation.answers(samples)), [next(simulation.answers([s])) for s in samples])


def test_coarser_weights_cost_more_and_estimates_agree() -> None:
    g = network()
    own = weights_of(g)
    forms = {bits: {n: (rounded(w, bits), bias) for n, (w, bias) in own.items()} for bits in (6, 4, 3)}
    samples = list(batches(40))
    found = measure_sensitivities(Simulation(g), forms, samples[:20], Classes())
    losses = found.loss.reshape(len(own), 3)
    assert (np.diff(losses, axis=1) > 0).all()
    truth = measure_sensitivities(Simulation(g), forms, samples[20:], Classes())
    assert all(tau > 0.6 for tau in rank_correlations(found, truth.loss).values())
    assert found.joint([0]) == pytest.approx(found.loss[0])
    assert found.joint([0, 3]) == pytest.approx(found.loss[0] + found.loss[3] + 2 * found.pairs[0, 3])


@pytest.mark.parametrize("judge", [Classes(), Values(0.5)])
def test_derivatives_predict_small_changes(judge: Classes | Values) -> None:
    pytest.importorskip("torch", reason="derivatives need the extra qcompiler[torch]")
    g, samples = network(), list(batches(40))
    own, rng = weights_of(g), np.random.default_rng(3)
    forms = {4: {n: ((w + rng.normal(size=w.shape) * 0.01 * (1 + i)).astype(np.float32), bias) for i, (n, (w, bias)) in enumerate(own.items())}}
    shifted = {4: {n: (w, (bias + 0.02 * rng.normal(size=bias.shape)).astype(np.float32)) for n, (w, bias) in own.items()}}
    truth = measure_sensitivities(Simulation(g), shifted, samples, judge)
    assert np.all(np.abs(np.log(measure_second_order(g, shifted, samples, judge).fisher / truth.loss)) < np.log(2.5))
    truth = measure_sensitivities(Simulation(g), forms, samples, judge)
    found = measure_second_order(g, forms, samples, judge)
    for estimate in (found.fisher, found.hessian):
        assert np.all(np.abs(np.log(estimate / truth.loss)) < np.log(2.5))
    assert set(rank_correlations(truth, truth.loss, {"Fisher": found.fisher})) == {"KL", "second order", "SQNR", "Fisher"}


def rounded(w: np.ndarray, bits: int) -> np.ndarray:
    step = np.abs(w).max() / ((1 << (bits - 1)) - 1)
    return (np.rint(w / step) * step).astype(np.float32)


def test_automatic_choice_keeps_its_promise_with_fewer_bytes() -> None:
    made, chosen = quantize_auto(network(), batches(), Options(), Goal(max_drop=2.0))
    assert chosen.point.drop is not None
    assert chosen.point.drop.most <= 2.0
    assert chosen.point.costs[BYTES] < chosen.reference.costs[BYTES]
    written = plan_of(made.qdq_graph).layers
    assert {name: p.weights for name, p in chosen.plan.layers.items()} == {name: written[name].weights for name in chosen.plan.layers}


def test_budget_of_bytes_is_kept() -> None:
    """Half of the bytes of eight bits: less than four bits take, with their multipliers."""
    made, chosen = quantize_auto(network(), batches(), Options(), Goal(max_bytes=2800))
    assert chosen.point.costs[BYTES] <= 2800
    written = plan_of(made.qdq_graph).layers
    assert {p.weights for p in written.values()} & {2, 3}
    assert {name: p.weights for name, p in chosen.plan.layers.items()} == {name: written[name].weights for name in chosen.plan.layers}
    frontier = [p.costs[BYTES] for p in chosen.frontier]
    assert frontier == sorted(frontier)


@pytest.mark.parametrize(
    ("goal", "message"),
    [(Goal(max_bytes=100), r"no choice of precisions keeps to 100 bytes .*feasible is at least \d+"), (Goal(max_drop=1e-9), r"allow [\d.]+ or more")],
)
def test_infeasible_goals_say_what_is_feasible(goal: Goal, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantize_auto(network(classes=False), batches(), Options(), goal)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="expected at least 4"):
        quantize_auto(network(), batches(3), Options(), Goal(max_drop=1.0))


def test_latency_tables_are_read_as_written(tmp_path: Path) -> None:
    table = Latencies("x86_64", "a CPU", (8, 4), {"a": (2.0, 1.0), "b": (4.0, 3.5)}, 0.5, "guessed", {"a": (2, 1), "b": (9, 5)}, 128)
    path = f"{tmp_path}/latencies.json"
    table.save(path)
    assert Latencies.read(path) == table
    assert table.of(["b", "a"], [4]).tolist() == [[3.5], [1.0]]
    with pytest.raises(UsageError, match="lacks layer 'c'"):
        table.of(["c"], [8])
    with pytest.raises(UsageError, match=r"not of \[6\]"):
        table.of(["a"], [6])
    (tmp_path / "odd.json").write_text('{"target": "t", "cpu": null, "widths": [8, 4], "layers": {"a": [1.0]}}')
    with pytest.raises(UsageError, match="layer 'a' with 1 latencies for 2 widths"):
        Latencies.read(tmp_path / "odd.json")


def test_latency_is_kept_and_drop_and_bytes_with_it() -> None:
    g = network()
    table = Latencies("t", None, (8, 4), dict.fromkeys(weights_of(g), (1.0, 0.5)), 2.0)
    _, chosen = quantize_auto(g, batches(), Options(), Goal(max_latency=4.6, max_bytes=5000, max_drop=50.0), table)
    assert chosen.point.costs[MILLISECONDS] <= 4.6
    assert chosen.point.costs[BYTES] <= 5000
    assert chosen.reference.costs[MILLISECONDS] == 6.0
    for goal, message in (
        (Goal(max_latency=3.9), "keeps to 3.9 milliseconds .*feasible is at least 4 milliseconds"),
        (Goal(1.0, None, 1.0), "feasible"),
    ):
        with pytest.raises(UsageError, match=message):
            quantize_auto(g, batches(), Options(), goal, table)
    with pytest.raises(UsageError, match="or a latency table"):
        quantize_auto(g, batches(), Options(), Goal(max_latency=1.0))
