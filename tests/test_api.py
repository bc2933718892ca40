"""The Python interface."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qcompiler
from qcompiler.api import build, quantize_model

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
