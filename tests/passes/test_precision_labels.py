"""Right answers: temperatures and excesses against their definitions, and choices that know them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph
from qcompiler.ir.ops import Reshape
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.auto import quantize_auto
from qcompiler.passes.precision.labels import calibrated, rights_of, shrunk
from qcompiler.passes.precision.loss import Classes, Values
from qcompiler.passes.precision.search import Goal
from qcompiler.passes.precision.sensitivity import SURE, measure_sensitivities
from qcompiler.passes.precision.simulate import Simulation, weights_of

ROWS, NUMBER = 3, 6


def logits(count: int) -> np.ndarray:
    """[count, ROWS, NUMBER]"""
    return np.random.default_rng(5).normal(size=(count, ROWS, NUMBER)) * 2


def drawn_labels(z: np.ndarray) -> np.ndarray:
    """Of classes that follow softmax(z) [count, ROWS]."""
    noise = np.random.default_rng(6).gumbel(size=z.shape)
    return np.asarray((z + noise).argmax(-1), np.int64)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_temperature_makes_probabilities_honest(temperature: float) -> None:
    z = logits(4000)
    found = calibrated(Classes(), list(temperature * z), list(drawn_labels(z)))
    assert isinstance(found, Classes)
    assert found.temperature == pytest.approx(temperature, rel=0.05)


def test_excess_is_what_cross_entropy_grows_by_beyond_the_loss() -> None:
    y, other = logits(1)[0], logits(2)[1]
    judge, right = Classes(temperature=1.5), np.array([4, 0, 2])
    p, q = (np.exp(z / 1.5) / np.exp(z / 1.5).sum(1, keepdims=True) for z in (y, other))
    at = np.arange(ROWS), right
    assert judge.loss(y, other) + judge.excess(y, other, right) == pytest.approx((np.log(p[at]) - np.log(q[at])).mean())
    one = judge.excess(y, other, np.array([-1, 0, -1]))
    assert one == pytest.approx(judge.excess(y[1:2], other[1:2], right[1:2]))
    assert judge.excess(y, other, np.full(3, -1)) == 0


def test_excess_is_nothing_on_average_where_labels_follow_the_network() -> None:
    z = logits(8000)
    others = z + np.random.default_rng(7).normal(size=z.shape) * 0.5
    found = np.array([Classes().excess(y, o, right) for y, o, right in zip(z, others, drawn_labels(z))])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))


def test_noise_is_shrunk_away() -> None:
    rng = np.random.default_rng(8)
    truth, errors = np.linspace(-1, 1, 200), np.full(200, 0.8)
    seen = truth + rng.normal(size=200) * 0.8
    assert ((shrunk(seen, errors) - truth) ** 2).mean() < 0.6 * ((seen - truth) ** 2).mean()
    assert not shrunk(rng.normal(size=200) * 0.1, np.full(200, 0.2)).any()
    assert shrunk(seen, 0 * errors).tolist() == seen.tolist()
    assert not shrunk(np.zeros(3), np.ones(3)).any()


def network() -> Graph:
    b = Build()
    return graph_of(b.op(Reshape((1, 10)), b.conv(b.conv(b.input(1, 1, 1, 8), 16), 10)))


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(9)
    return [{"x": rng.normal(size=(1, 1, 1, 8)).astype(np.float32)} for _ in range(count)]


def test_changes_towards_the_truth_cost_less() -> None:
    """The network is biased against half of the classes; a change takes that back, another makes it worse. The divergence cannot tell them."""
    g, inputs = network(), samples(200)
    name, (w, bias) = list(weights_of(g).items())[-1]
    bent = np.where(np.arange(10) < 5, 1.0, -1.0).astype(np.float32)
    answers = np.stack(list(Simulation(g).answers(inputs)))
    rights = list(drawn_labels(answers + bent))
    forms = {4: {name: (w, bias + 0.3 * bent)}, 3: {name: (w, bias - 0.3 * bent)}}
    known, unknown = (measure_sensitivities(Simulation(g), forms, inputs, Classes(), rights=r).loss for r in (rights, ()))
    assert abs(np.log(unknown[0] / unknown[1])) < 0.3
    assert known[0] == pytest.approx(SURE * unknown[0])
    assert known[1] > 2 * unknown[1]


def batches(labels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    return ({**x, "y": right} for x, right in zip(samples(len(labels)), labels))


def test_labels_are_looked_at() -> None:
    g, inputs = network(), samples(48)
    answers = np.stack(list(Simulation(g).answers(inputs)))
    right = drawn_labels(0.4 * answers)
    options, goal = Options(distill=False), Goal(max_bytes=200)
    without = quantize_auto(g, samples(48), options, goal)[1]
    known = quantize_auto(g, batches(right), options, goal, labels="y")[1]
    assert (known.sensitivities.loss != without.sensitivities.loss).all()
    assert known.sensitivities.noise.tolist() == without.sensitivities.noise.tolist()
    assert known.point.costs["bytes"] <= 200


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((48, 1), 10), "expected labels below 10, the number of classes, found 10"),
        (np.zeros((48, 2), int), "expected 1 labels for each calibration sample, one for each row of classes, found 2"),
        (np.zeros((48, 1)), "right answers 'y': expected integers, one or more for each of 1 samples, found float64"),
        (np.full((48, 1), -1), "of no calibration sample that is looked at the right answer is known"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantize_auto(network(), batches(labels), Options(), Goal(max_bytes=200), labels="y")


def test_labels_must_be_there_and_name_classes() -> None:
    with pytest.raises(UsageError, match="expected right answers 'z', found 'x', 'y'"):
        rights_of({"x": np.zeros(2), "y": np.zeros(2, int)}, "z", 2)
    assert [r.tolist() for r in rights_of({"y": np.arange(4, dtype=np.uint8)}, "y", 2) if r is not None] == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match="the network's first output is no row of classes"):
        calibrated(Values(1.0), [np.zeros(3)], [np.zeros(3, np.int64)])
