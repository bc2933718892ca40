"""Networks of classes that nobody tuned for: compiled with the defaults, exact on every target, integers only, near the float model."""

from __future__ import annotations

from functools import cache

import net
import networks
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import transformer_networks
from float_graphs import census
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from qcompiler.api import Program, QuantizedModel, build, quantize_model
from qcompiler.backends.llvm.target import find_target, host_arch
from qcompiler.ir.ops import Dequantize
from qcompiler.passes.pipeline import Options

CROSS = ("x86-64-avx2", "x86-64", "arm64-dotprod")
QUICK = ("deeplab_classes", "audio", "two_towers", "repvgg", "swin", "encoder_of_zeros")
"""Compiled for the foreign targets in the ordinary run, the others when slow tests are wanted."""
LEAST = 17.0
"""dB against the float network. Random networks amplify noise more than trained ones."""
NETWORKS = [name for name, build in net.NETWORKS.items() if build.__module__ in (networks.__name__, transformer_networks.__name__)]
TRANSFORMERS = [name for name, build in net.NETWORKS.items() if build.__module__ == transformer_networks.__name__]
EXPECTED = {"convnext": 0, "cross_attention": 4}
"""How often attention is computed, where not twice."""
NARROW = {6: 10.0, 4: 5.0}
"""Bits of weights and activations, and dB that are left with them."""


@cache
def quantized(name: str) -> tuple[onnx.ModelProto, QuantizedModel]:
    model = net.NETWORKS[name]()
    return model, quantize_model(model, iter(net.inputs(model, 32)))


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


@pytest.mark.parametrize("name", NETWORKS)
def test_host(name: str) -> None:
    model, made = quantized(name)
    p, real = build(made), session(model)
    feeds = net.inputs(model, 3, seed=9)
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
    assert_exact(program(made, target), net.inputs(model, 1, seed=9)[0])


@pytest.mark.parametrize("name", ["gpt", "text_recogniser"])
def test_emulated_arm64(name: str) -> None:
    model, made = quantized(name)
    assert_exact(program(made, "arm64"), net.inputs(model, 1, seed=9)[0])


@pytest.mark.parametrize("bits", NARROW)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_narrow(name: str, bits: int) -> None:
    """Weights and activations of 6 and 4 bits: the reference's answers, and no fewer decibels than such integers can give."""
    model = net.NETWORKS[name]()
    made = quantize_model(model, iter(net.inputs(model, 16)), options=Options(weight_bits=bits, activation_bits=bits))
    p, feeds = build(made), net.inputs(model, 4, seed=9)
    real = session(model)
    got = [assert_exact(p, f)[real.get_outputs()[0].name] for f in feeds]
    assert decibels(np.stack([real.run(None, f)[0] for f in feeds]), np.stack(got)) > NARROW[bits]
    widths = {t.quant.bits for v in made.graphs.qdq_graph.order if isinstance(v.op, Dequantize) and (t := v.inputs[0].type).quant is not None}
    assert {bits, 8} <= widths, "first and last layers keep 8 bits, the others have what was asked for"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_everything_is_recognized(name: str) -> None:
    """No normalization, softmax, rotation or mask is left in pieces; attention needs no transposition."""
    _, made = quantized(name)
    found = census(made.graphs.float_graph)
    assert not found.keys() & {"MatMul", "Where", "Erf", "Sqrt", "Neg", "Sigmoid", "Equal"}, found
    assert found["Softmax"] == (name == "text_recogniser")
    assert found["Attention"] == EXPECTED.get(name, 2)
    assert found["Rotate"] == (4 if name == "llama" else 0)
    assert found["Normalize"] >= 5


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: onnx.ModelProto) -> None:
        self.feeds = iter(net.inputs(model, 16))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def arrived_quantized(tmp_path, per_channel: bool, weights: QuantType) -> tuple[onnx.ModelProto, onnx.ModelProto]:  # type: ignore[no-untyped-def]
    model = net.NETWORKS["batched"]()
    onnx.save(model, tmp_path / "float.onnx")
    types = {"activation_type": QuantType.QUInt8, "weight_type": weights}
    quantize_static(tmp_path / "float.onnx", tmp_path / "int.onnx", Reader(model), per_channel=per_channel, **types)
    return model, onnx.load(tmp_path / "int.onnx")


@pytest.mark.parametrize(("per_channel", "weights"), [(True, QuantType.QInt8), (False, QuantType.QInt8), (False, QuantType.QUInt8)])
@pytest.mark.parametrize("target", ["host", *CROSS])
def test_arrived_quantized(tmp_path, per_channel: bool, weights: QuantType, target: str) -> None:  # type: ignore[no-untyped-def]
    """Per channel and per tensor, dense layers with int32 biases, weights with zero points."""
    model, given = arrived_quantized(tmp_path, per_channel, weights)
    feeds = net.inputs(model, 1, seed=9)[0]
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
    feeds = net.inputs(model, 1, seed=9)[0]
    made = quantize_model(given, iter([feeds]))
    assert changed
    assert any("not kept to the bit" in reason for _, reason in made.graphs.declined.reasons)
    assert_exact(program(made, target), feeds)
