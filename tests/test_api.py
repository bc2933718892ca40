"""The Python interface."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qcompiler
from qcompiler.api import build, quantize_model
from qcompiler.errors import UsageError
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import const_data
from qcompiler.passes.weight_grid import MOST, ends_of, has_groups

MODEL = Path(__file__).parents[1] / "models" / "digits_dwconv.onnx"


def test_layers_without_noise_or_signal_can_be_saved(tmp_path: Path) -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, d, d]) for n, d in (("x", 4), ("y", 3))]
    model = helper.make_model(helper.make_graph([pool], "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    program = qcompiler.compile(model, calibration=[{"x": np.zeros((1, 3, 4, 4), np.float32)}])
    assert [layer.sqnr for layer in program.report.layers] == [None] * len(program.report.layers)
    assert program.report.source is None
    program.save(tmp_path / "m")
    json.loads((tmp_path / "m/manifest.json").read_text(), parse_constant=pytest.fail)


def test_the_target_names_its_system() -> None:
    model = quantize_model(MODEL)
    assert build(model, "arm64@macos").target.os == "macos"
    assert build(model, "arm64@macos", os="linux").target.os == "linux"


@pytest.mark.parametrize(("precision", "weights", "greatest"), [("w4a8", 4, 7), ("w2a8", 2, 1), (None, 8, 127)])
def test_precision_by_name(precision: str | None, weights: int, greatest: int) -> None:
    model = quantize_model(MODEL, precision=precision)
    convs = [v for v in model.graphs.integer_graph.order if isinstance(v.op, IntConv)][1:-1]
    depthwise = [v for v in convs if v.inputs[1].shape[-1] == 1]
    assert {layer.weight_bits for layer in model.report.layers if layer.weight_bits} == {weights, 8}
    for v in (v for v in convs if v not in depthwise):
        w = const_data(v.inputs[1]).astype(int)
        most = greatest if weights == 8 or not has_groups(w.shape, v.type.size // v.shape[-1], weights) else -ends_of(weights)[0] * MOST
        assert greatest <= np.abs(w).max() <= most
    for rows in (const_data(v.inputs[1]).astype(int).reshape(v.shape[-1], -1) for v in depthwise):
        most = MOST if weights <= 4 else 1
        assert np.ptp(np.c_[rows, np.zeros(len(rows), int)], axis=1).max() <= most * ((1 << weights) - 1), "consecutive integers that hold zero"


def test_precisions_that_there_are_none_of() -> None:
    with pytest.raises(UsageError, match="expected a precision such as w8a8"):
        qcompiler.compile(MODEL, precision="w16a8")


@pytest.mark.parametrize(
    ("limit", "samples", "message"),
    [
        (1.0, None, "needs calibration data, .* give --calib"),
        (None, [], "needs a greatest drop, size or latency; give max_drop=, max_bytes= or max_latency="),
    ],
)
def test_what_an_automatic_choice_lacks_is_named(limit: float | None, samples: list[dict[str, np.ndarray]] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        qcompiler.compile(MODEL, calibration=samples, precision="auto", max_drop=limit)


def test_answers_have_16_bits() -> None:
    model = quantize_model(MODEL)
    program = build(model)
    feeds = {t.name: np.zeros(t.shape, np.int8) for t in program.interface.inputs}
    (logits,) = program.run_integer(feeds).values()
    assert logits.dtype == np.int16
    assert {layer.wide for layer in model.report.layers} == {None, "read by a layer in 16 bits", "output of the network"}


def test_threads_may_be_set() -> None:
    program = qcompiler.compile(MODEL)
    x = {v.name: np.random.default_rng(0).standard_normal(v.shape).astype(np.float32) for v in program.interface.inputs}
    alone = program.run(x)
    program.threads = 2
    assert program.threads == 2
    together = program.run(x)
    assert all(np.array_equal(alone[name], together[name]) for name in alone)
