"""The comparison with peers: what it makes of times, and how it talks to its workers. No times are asserted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from float_graphs import Build, graph_of
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.compare import OURS, markdown, mean_gain, summarized, worker
from benchmarks.few_bits import deep_layers, network_row
from benchmarks.instructions import countable
from benchmarks.lost import Lost, differences, expected, summary
from benchmarks.measure import all_equal, options_for
from benchmarks.models import LIGHT, drawn, with_random_weights
from benchmarks.peers import samples
from benchmarks.precision import Result, difference, greedy, judged, seen, shuffled, spent, uniform
from benchmarks.transformers import Row as Measured
from benchmarks.transformers import line
from benchmarks.views import MOVED, View
from benchmarks.zoo import PERPLEXITY, TOP1, Data, perplexity_of, similarity_of, top1_of
from qcompiler.errors import UsageError
from qcompiler.passes.precision.loss import Classes

ABOUT = dict.fromkeys((OURS, "ORT float", "ORT int8"), "")


def test_ratios_are_taken_turn_by_turn():
    turns = {OURS: [[1.0, 1.0], [10.0, 12.0], [1.0]], "ORT float": [[4.0], [44.0], [4.0]], "ORT int8": [[3.0], [22.0], [2.0]]}
    row = summarized("net", 1, turns, ABOUT)
    assert row.ratio == {"ORT float": 4.0, "ORT int8": 2.0}
    assert (row.fastest, row.gain) == ("ORT int8", 2.0)
    assert row.figures[OURS].median == 1.0
    assert row.figures[OURS].best == 1.0


def test_the_table_has_the_geometric_mean():
    rows = [summarized(str(g), n, {OURS: [[1.0]], "ORT float": [[g]]}, ABOUT) for g, n in ((2.0, 1), (8.0, 1), (3.0, 2))]
    assert mean_gain(rows[:2]) == pytest.approx(4)
    text = markdown(rows)
    assert "geometric mean 4.00x, least 2.00x" in text
    assert "| 3.0 | 1.000 (1.000) | 3.000 (3.000) | 3.00x (ORT float) |" in text


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_worker_measures(tmp_path, clock):
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]), ir_version=8)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4), np.float32))
    order = {"engine": "ort", "model": str(tmp_path / "m.onnx"), "threads": 1, "cpus": sorted(cpus())[:1], "data": str(tmp_path / "d.npz")}
    with worker(sys.executable, order) as w:
        assert w.about.startswith("onnxruntime")
        assert len(w.turn(1, clock)) >= 3


def cpus() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def test_only_matrix_products_are_exchanged_to_be_counted():
    smmla, sdot, ret = 0x4E83A441, 0x4E839441, 0xD65F03C0  # smmla v1.4s, v2.16b, v3.16b; sdot of the same; ret
    code = np.array([smmla, sdot, ret], np.uint32).tobytes() + b"\1\2"
    assert countable(code) == np.array([sdot, sdot, ret], np.uint32).tobytes() + b"\1\2"


def test_light_models_get_different_weights():
    model = with_random_weights(onnx.load(LIGHT / "light_squeezenet.onnx"))
    onnx.checker.check_model(model)
    assert not [n for n in model.graph.node if n.op_type == "ConstantOfShape"]
    kernels = [numpy_helper.to_array(i) for i in model.graph.initializer if len(i.dims) == 4]
    assert kernels
    assert all(len(np.unique(k)) > k.size // 2 for k in kernels)
    assert len(model.graph.input) == 1


def test_weights_keep_the_variance_of_activations():
    w = drawn((64, 32, 3, 3), np.random.default_rng(0))
    assert w.std() == pytest.approx(np.sqrt(2 / 288), rel=0.05)
    assert (drawn((64,), np.random.default_rng(0)) > 0).all()


def test_metrics_of_sequences():
    labels = top1_of(np.array([1, 0, 1]))
    assert labels([np.array([[0, 1]]), np.array([[0, 1]])]) == 50
    scores = similarity_of(np.array([0.0, 5.0, 2.0]))
    a, opposite, across = np.array([1.0, 0.0]), np.array([-3.0, 0.0]), np.array([0.0, 2.0])
    assert scores([a, opposite, a, a, a, across]) == pytest.approx(1)
    assert scores([a, a, a, opposite, a, across]) == pytest.approx(-1)


def test_perplexity_leaves_padding_out():
    even = np.zeros((1, 3, 8), np.float32)
    even[0, 2, 0] = 50
    assert perplexity_of(np.array([[1, 7, -1]]))([even]) == pytest.approx(8)
    assert perplexity_of(np.array([[1, 7, 3]]))([even]) > 1000


def test_losses_are_positive_where_the_program_is_worse():
    assert TOP1.loss(82.0, 81.5) == pytest.approx(0.5)
    assert PERPLEXITY.loss(4.0, 4.2) == pytest.approx(5)


def test_precisions_are_read():
    chosen = options_for("w4a8")
    assert (chosen.weight_bits, chosen.activation_bits) == (4, 8)
    with pytest.raises(UsageError, match="expected a precision such as w8a8, .* found 'int8'"):
        options_for("int8")


def test_a_missed_bar_and_a_differing_target_are_shown():
    row = Measured("net", "w8a8", "top-1", "points", 80.0, 79.0, 1.0, 0.3, {"host": "2/2", "arm64": "1/2"}, {"arm64": True}, float_ms=4, ours_ms=2)
    assert not row.kept
    assert not all_equal(row.exact)
    assert "+1 points (0.3, missed) | {'host': '2/2', 'arm64': '1/2'} | yes | 4.00 | 2.00 | 2.00x" in line(row)
    assert "UnsupportedModel: no" in line(Measured("net", "w8a8", "top-1", "points", 80.0, error="UnsupportedModel: no"))


def test_peers_get_all_inputs(tmp_path):
    np.savez(tmp_path / "d.npz", ids=np.arange(6).reshape(3, 2), mask=np.ones((3, 2)))
    rows = list(samples(tmp_path / "d.npz"))
    assert len(rows) == 3
    assert (rows[1]["ids"] == [[2, 3]]).all()
    assert rows[1]["mask"].shape == (1, 2)


def test_rivals_fill_the_budget():
    costs = np.array([[8, 4, 2], [16, 8, 4], [80, 40, 20], [8, 8, 8]], float)
    for budget in (36.0, 45.0, 60.0):
        greedily = greedy([(2, 2), (0, 1), (1, 1), (0, 2), (1, 2)], costs, budget)
        for choice in (uniform(costs, budget), greedily):
            assert spent(costs, choice) <= budget
            widened = [(n, w) for n, c in enumerate(choice) for w in range(c)]
            assert all(spent(costs, choice) + costs[n, w] - costs[n, choice[n]] > budget for n, w in widened)


def test_draws_are_the_same_samples_in_other_orders():
    samples = list(range(40))
    assert list(shuffled(samples, 0)) == samples
    assert list(shuffled(samples, 1)) != list(shuffled(samples, 2))
    assert sorted(shuffled(samples, 1)) == samples


def test_a_rival_that_is_worse_has_a_positive_difference():
    better, worse = ([Result(m, 0.0, 0.0, 0.5) for m in metrics] for metrics in ((80.0, 82.0), (79.0, 80.0)))
    assert difference(TOP1, better, worse) == "+1.50 +- 0.50"
    assert difference(PERPLEXITY, [Result(4.0, 0, 0, 0)], [Result(4.2, 0, 0, 0)]) == "+5.00"


def test_pictures_are_moved_and_mirrored():
    picture = {"x": np.arange(3 * 4 * 5, dtype=np.float32).reshape(1, 3, 4, 5)}
    assert View()(picture)["x"] is picture["x"]
    x, moved = picture["x"], View(down=1, right=-2)(picture)["x"]
    assert np.array_equal(moved[:, :, 1:, :3], x[:, :, :3, 2:])
    assert np.array_equal(moved[:, :, 0], moved[:, :, 1])
    assert np.array_equal(moved[..., 3], moved[..., 2])
    assert np.array_equal(View(1, -2, mirrored=True)(picture)["x"], moved[..., ::-1])
    assert MOVED[0] == View()
    assert len(set(MOVED)) == 18


def test_only_pictures_are_moved():
    with pytest.raises(UsageError, match=r"expected \[1, 3, height, width\], found \[1, 7\] \('x'\)"):
        View(2)({"x": np.zeros((1, 7), np.float32)})


def test_the_metric_is_the_mean_over_views():
    pictures = [{"x": np.full((1, 3, 2, 2), n, np.float32)} for n in range(2)]
    data = Data([], pictures, lambda answers: float(np.mean(answers)))
    assert [int(s["x"].max()) for s in seen(data, MOVED[:3])] == [0, 1, 0, 1, 0, 1]
    assert judged(data, [np.float32(a) for a in (1, 2, 3, 4)]) == 2.5


def test_what_is_lost_is_told_view_by_view():
    data = Data([], [{"x": np.zeros(1)}] * 2, top1_of(np.array([0, 1])))
    right, wrong = [np.array([2.0, 0.0]), np.array([0.0, 2.0])], [np.array([0.0, 2.0]), np.array([0.0, 2.0])]
    assert differences(data, [*right, *right, *wrong], [*right, *wrong, *right]) == [0, 50, -50]


def test_what_labels_would_lose_that_follow_the_float_network():
    floats = [np.log([0.7, 0.2, 0.1]), np.log([0.1, 0.5, 0.4])]
    same, second = [np.array([3.0, 1.0, 0.0]), np.array([0.0, 2.0, 1.0])], [np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0])]
    assert expected(Classes(), floats, same) == 0
    assert expected(Classes(), floats, second) == pytest.approx(100 * (0.5 + 0.1) / 2)
    assert expected(Classes(probabilities=True), [np.exp(a) for a in floats], second) == pytest.approx(30)


def test_draws_are_summed_up():
    assert summary([Lost(1, 2, 0, 3, 1, 0.25, 9), Lost(3, 2, -1, 4, 1, 0.75, 11)]) == [
        "2.00 +- 1.00",
        "2.00 +- 0.00 (-1.00 to 4.00)",
        "1.00 +- 0.00",
        "0.5000",
        "10",
    ]


def test_deep_deep_layers_several_pixels_are_told():
    b = Build()
    shallow = b.conv(b.input(1, 4, 4, 8), 32, kernel=3, pads=((1, 1), (1, 1)))
    deep = b.conv(shallow, 32, kernel=3, pads=((1, 1), (1, 1)))
    depthwise = b.conv(deep, 32, kernel=3, groups=32)
    one = b.conv(depthwise, 256, kernel=2)
    assert deep_layers(graph_of(one)) == {deep.name: 16}


def test_a_network_is_compared_layer_by_layer_and_in_sum():
    times = {"a": (2.0, 1.0), "b": (3.0, 2.0), "c": (1.0, 1.0)}
    assert network_row("n", times, {"a": 49, "b": 49, "c": 196}) == "| n | 3 | 6.00 | 4.00 | 1.50 | 196: 1.00 to 1.00, 49: 1.50 to 2.00 |"
