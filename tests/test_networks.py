"""Networks of classes that nobody tuned for: compiled with the defaults, exact on every target, integers only, near the float model."""

from __future__ import annotations

from functools import cache

import networks
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from qcompiler.api import Program, QuantizedModel, build, quantize_model
from qcompiler.backends.llvm.target import find_target, host_arch

CROSS = ("x86-64-avx2", "x86-64", "arm64-dotprod")
QUICK = ("deeplab_classes", "audio", "two_towers", "repvgg")
"""Compiled for the foreign targets in the ordinary run, the others when slow tests are wanted."""
LEAST = 17.0
"""dB against the float network. Random networks amplify noise more than trained ones."""


@cache
def quantized(name: str) -> tuple[onnx.ModelProto, QuantizedModel]:
    model = networks.NETWORKS[name]()
    return model, quantize_model(model, iter(networks.inputs(model, 32)))


def program(model: QuantizedModel, target: str) -> Program:
    row = find_target(target)
    return build(model, row.generic() if row.arch == host_arch() and not row.runs_here else row)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_exact(p: Program, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made, expected = p.run(feeds), p.reference(feeds)
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values, strict=True)
    assert p.certificate.ok
    return made


def decibels(real: np.ndarray, made: np.ndarray) -> float:
    return 10 * float(np.log10((real.astype(np.float64) ** 2).sum() / ((real.astype(np.float64) - made) ** 2).sum()))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_host(name: str) -> None:
    model, made = quantized(name)
    p, real = build(made), session(model)
    feeds = networks.inputs(model, 3, seed=9)
    ours = [assert_exact(p, f) for f in feeds]
    for i, output in enumerate(real.get_outputs()):
        expected = np.stack([real.run(None, f)[i] for f in feeds])
        got = np.stack([o[output.name] for o in ours])
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        if expected.dtype.kind == "i":
            assert (expected == got).mean() > 0.97
        elif name != "yolo":  # boxes and probabilities share one scale there
            assert decibels(expected, got) > LEAST


@pytest.mark.parametrize("target", CROSS)
@pytest.mark.parametrize("name", QUICK)
def test_foreign_targets(name: str, target: str) -> None:
    model, made = quantized(name)
    assert_exact(program(made, target), networks.inputs(model, 1, seed=9)[0])


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: onnx.ModelProto) -> None:
        self.feeds = iter(networks.inputs(model, 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def arrived_quantized(tmp_path, per_channel: bool, weights: QuantType) -> tuple[onnx.ModelProto, onnx.ModelProto]:  # type: ignore[no-untyped-def]
    model = networks.NETWORKS["batched"]()
    onnx.save(model, tmp_path / "float.onnx")
    types = {"activation_type": QuantType.QUInt8, "weight_type": weights}
    quantize_static(tmp_path / "float.onnx", tmp_path / "int.onnx", Reader(model), per_channel=per_channel, **types)
    return model, onnx.load(tmp_path / "int.onnx")


@pytest.mark.parametrize(("per_channel", "weights"), [(True, QuantType.QInt8), (False, QuantType.QInt8), (False, QuantType.QUInt8)])
@pytest.mark.parametrize("target", ["host", *CROSS])
def test_arrived_quantized(tmp_path, per_channel: bool, weights: QuantType, target: str) -> None:  # type: ignore[no-untyped-def]
    """Per channel and per tensor, dense layers with int32 biases, weights with zero points."""
    model, given = arrived_quantized(tmp_path, per_channel, weights)
    feeds = networks.inputs(model, 1, seed=9)[0]
    made = assert_exact(program(quantize_model(given, iter([feeds])), target), feeds)
    expected = session(model).run(None, feeds)[0]
    assert decibels(expected, next(iter(made.values()))) > LEAST


@pytest.mark.parametrize("target", ["host", *CROSS, "arm64"])
def test_weights_of_least_int8(tmp_path, target: str) -> None:  # type: ignore[no-untyped-def]
    """-128 has no negative: the forms that multiply by signs must still give every target's answer."""
    model, given = arrived_quantized(tmp_path, True, QuantType.QInt8)
    changed = 0
    for tensor in given.graph.initializer:
        data = numpy_helper.to_array(tensor).copy()
        if data.dtype == np.int8 and data.ndim == 4:
            data.reshape(-1)[::9] = -128
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
            changed += 1
    feeds = networks.inputs(model, 1, seed=9)[0]
    made = quantize_model(given, iter([feeds]))
    assert changed
    assert any("not kept to the bit" in reason for _, reason in made.graphs.declined.reasons)
    assert_exact(program(made, target), feeds)
