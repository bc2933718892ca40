"""Profiles and the linter: exports keep to their own profile, and what breaks a rule is found, whoever made the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import invoke
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from qcompiler.backends.onnx.lint import lint
from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.exchange import export, written
from qcompiler.frontend import import_model
from qcompiler.passes.pipeline import Measured, Options, exchange_graph, measured
from qcompiler.passes.scheme import is_power_of_two
from qcompiler.profiles import names, parse_profile, profile_named

MODELS = Path(__file__).parents[2] / "models"
NETWORK = MODELS / "digits_dwconv.onnx"
KINDS = [(n, t.value) for n in names() for t in profile_named(n).activations.types]


@cache
def digits(part: str) -> dict[str, np.ndarray]:
    return dict(np.load(MODELS / f"digits_{part}.npz"))


@cache
def seen() -> Measured:
    """The network on calibration data: looked at once for all profiles."""
    return measured(import_model(NETWORK), ({"input": x[None]} for x in digits("calib")["input"][:48]), Options())


@cache
def exported(name: str, stored: str) -> ModelProto:
    profile = profile_named(name)
    return written(exchange_graph(seen(), replace(Options(), scheme=profile.scheme(profile.stored(stored)))), profile, stored)


def copy_of(name: str, stored: str) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(exported(name, stored))
    return model


@pytest.mark.parametrize(("name", "stored"), KINDS)
def test_exports_keep_to_their_profile(name: str, stored: str) -> None:
    model = exported(name, stored)
    onnx.checker.check_model(model, full_check=True)
    found = lint(model, profile_named(name))
    assert (found.violations, found.fallbacks) == ((), ())
    assert found.operators > 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    data = digits("eval")
    answers = [session.run(None, {"input": x[None]})[0].argmax() for x in data["input"][:150]]
    assert (np.array(answers) == data["labels"][:150]).mean() > 0.97


def test_there_are_profiles_and_each_names_its_sources() -> None:
    assert len(names()) >= 10
    for profile in map(profile_named, names()):
        assert profile.sources
        assert all(s.startswith("https://") for s in profile.sources)
        assert profile.opset >= 13
        assert "Conv" in profile.operators


def test_profiles_of_few_words_are_read_and_strange_ones_refused() -> None:
    head, types = "title = 'x'\nsources = []\nopset = 13\n", "types = ['int8']\n"
    text = f"{head}[activations]\n{types}[weights]\n{types}[bias]\n{types}[operators]\nConv = {{}}"
    assert parse_profile("x", text).rule("Conv") is not None
    for wrong in ("int9", "colour"):
        with pytest.raises(UsageError, match="profile 'x'"):
            parse_profile("x", text.replace("int8", wrong))
    with pytest.raises(UsageError, match="unknown key 'axes'"):
        parse_profile("x", text.replace("Conv = {}", "Conv = { axes = 1 }"))
    with pytest.raises(UsageError, match="no profile is called 'qnm'"):
        profile_named("qnm")
    with pytest.raises(UsageError, match="profile 'vitis-dpu' has activations of type int8, found 'uint8'"):
        profile_named("vitis-dpu").stored("uint8")


def test_an_old_opset_that_lacks_an_operator_is_refused() -> None:
    body = onnx.parser.parse_graph("g (float[1,8] x) => (float[1,8] y) { h = Mul(x, x) y = Gelu(h) }")
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(UnsupportedModel, match="Gelu '.*' does not exist in opset 13"):
        export(model, "stm32")


# --- planted violations -------------------------------------------------------------------------------------------------


def nodes(model: ModelProto, kind: str) -> list[NodeProto]:
    return [n for n in model.graph.node if n.op_type == kind]


def replaced(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
    """A changed copy of an initializer; its name."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    made = numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), f"{name}_planted")
    model.graph.initializer.append(made)
    return made.name


def first_pair(model: ModelProto) -> list[NodeProto]:
    """The QuantizeLinear of the first activation, and what dequantizes it."""
    q = nodes(model, "QuantizeLinear")[1]
    return [q, *(n for n in nodes(model, "DequantizeLinear") if n.input[0] == q.output[0])]


def weights_of(model: ModelProto, operand: int = 1) -> NodeProto:
    conv = nodes(model, "Conv")[0]
    return next(n for n in nodes(model, "DequantizeLinear") if n.output[0] == conv.input[operand])


def in_pair(index: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[ModelProto], None]:
    def plant(model: ModelProto) -> None:
        pair = first_pair(model)
        made = replaced(model, pair[0].input[index], change)
        for n in pair:
            n.input[index] = made

    return plant


def in_weights(index: int, change: Callable[[np.ndarray], np.ndarray], operand: int = 1) -> Callable[[ModelProto], None]:
    def plant(model: ModelProto) -> None:
        node = weights_of(model, operand)
        node.input[index] = replaced(model, node.input[index], change)

    return plant


def one_of_pair(model: ModelProto) -> None:
    node = first_pair(model)[1]
    node.input[1] = replaced(model, node.input[1], lambda s: s * np.float32(2))


def newer(model: ModelProto) -> None:
    model.opset_import[0].version = 22


def free_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def great_stride(model: ModelProto) -> None:
    next(a for a in nodes(model, "Conv")[0].attribute if a.name == "strides").ints[:] = [4, 4]


def float_bias(model: ModelProto) -> None:
    conv = nodes(model, "Conv")[0]
    conv.input[2] = replaced(model, weights_of(model, 2).input[0], lambda b: b.astype(np.float32))


def along_inputs(model: ModelProto) -> None:
    """Scales along axis 1 of weights [O, I, h, w]."""
    node = weights_of(model)
    size = next(t for t in model.graph.initializer if t.name == node.input[0]).dims[1]
    if size == 1:
        node.input[0] = replaced(model, node.input[0], lambda w: np.repeat(w, 2, 1))
    for index in (1, 2):
        node.input[index] = replaced(model, node.input[index], lambda a: np.resize(a, max(size, 2)))
    next(a for a in node.attribute if a.name == "axis").i = 1


def unsigned_weights(model: ModelProto) -> None:
    in_weights(0, lambda w: (w.astype(np.int16) + 128).astype(np.uint8))(model)
    in_weights(2, lambda z: np.full_like(z, 128, np.uint8))(model)


def one(index: tuple[int, ...], value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(a: np.ndarray) -> np.ndarray:
        made = a.copy()
        made[index if a.ndim else ()] = value
        return made

    return change


PLANTED: dict[str, tuple[str, str, Callable[[ModelProto], None]]] = {
    "opset": ("tensorrt", "int8", newer),
    "dynamic-shape": ("qnn", "uint8", free_batch),
    "pair": ("qnn", "uint8", one_of_pair),
    "activation-type": ("stm32", "int8", in_pair(2, lambda z: z.astype(np.int16))),
    "activation-zero-point": ("tensorrt", "int8", in_pair(2, lambda z: z + np.int8(3))),
    "activation-scale": ("vitis-dpu", "int8", in_pair(1, lambda s: s * np.float32(1.5))),
    "activation-axis": ("qnn", "uint8", in_pair(1, lambda s: np.resize(s, 4))),
    "weight-type": ("tensorrt", "int8", unsigned_weights),
    "weight-zero-point": ("qnn", "uint8", in_weights(2, one((0,), 5))),
    "weight-range": ("xnnpack", "int8", in_weights(0, one((0, 0, 0, 0), -128))),
    "weight-per-channel": ("neutron", "int8", in_weights(1, lambda s: np.resize(s, 16))),
    "weight-axis": ("qnn", "uint8", along_inputs),
    "weight-scale": ("vitis-dpu", "int8", in_weights(1, lambda s: s * np.float32(0.7))),
    "bias-type": ("qnn", "uint8", float_bias),
    "bias-scale": ("qnn", "uint8", in_weights(1, lambda s: s * np.float32(1.1), 2)),
    "bias-zero-point": ("qnn", "uint8", in_weights(2, one((0,), 7), 2)),
    "stride": ("ethos-u", "int8", great_stride),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_planted_violations_are_found(rule: str) -> None:
    """That rule and no other, but that a bias may no longer have the product of the scales; with the node and what to do."""
    name, stored, plant = PLANTED[rule]
    model = copy_of(name, stored)
    plant(model)
    found = lint(model, profile_named(name)).violations
    assert rule in {v.rule for v in found}
    assert {v.rule for v in found} <= {rule, "bias-scale"}
    known = {n.name for n in model.graph.node} | {model.graph.name}
    assert all(v.node in known and v.message and v.remedy for v in found)


def test_scales_that_must_be_shared_or_fixed() -> None:
    text = """<ir_version: 9, opset_import: ["" : 13]> g (float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float s = {0.02}, float t = {0.03}, int8 z = {0}> {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = MaxPool<kernel_shape = [1, 1]>(b)
        d = QuantizeLinear(c, t, z) e = DequantizeLinear(d, t, z) f = Sigmoid(e) h = QuantizeLinear(f, s, z) y = DequantizeLinear(h, s, z) }"""
    model = onnx.parser.parse_model(text)
    assert [v.rule for v in lint(model, profile_named("xnnpack")).violations] == ["scales-differ", "output-scale"]
    assert lint(model, profile_named("qnn")).violations == ()


def test_operators_in_float_are_counted_and_named() -> None:
    text = """<ir_version: 9, opset_import: ["" : 13]> g (float[1,8] x) => (float[1,8] y)
        <float s = {0.02}, int8 z = {0}> {
        a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) c = Erf(b) d = Relu(c)
        e = QuantizeLinear(d, s, z) f = DequantizeLinear(e, s, z) y = Tanh(f) }"""
    found = lint(onnx.parser.parse_model(text), profile_named("tidl"))
    assert (found.operators, len(found.fallbacks)) == (3, 2)
    assert [f.operator for f in found.fallbacks] == ["Erf", "Tanh"]
    assert found.fallbacks[0].reason == "tidl has no quantized Erf"
    assert found.fallbacks[1].reason == "its result 'y' is not quantized"
    assert len(lint(onnx.parser.parse_model(text), profile_named("tensorrt")).fallbacks) == 2  # it has no Tanh; results may be float


# --- models of other quantizers -------------------------------------------------------------------------------------------


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.data = iter([{"input": x[None]} for x in digits("calib")["input"][:16]])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.data, None)


@pytest.fixture(scope="module")
def of_onnxruntime(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """uint8 activations, int8 weights with one scale, int32 biases."""
    path = tmp_path_factory.mktemp("ort") / "int.onnx"
    quantize_static(NETWORK, path, Reader(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return onnx.load(path)


def test_onnxruntimes_quantizer(of_onnxruntime: ModelProto) -> None:
    """It suits onnxruntime. TensorRT wants int8 and zero points of 0: every activation breaks one rule of them, and those are all."""
    assert lint(of_onnxruntime, profile_named("onnxruntime-cpu")).violations == ()
    found = lint(of_onnxruntime, profile_named("tensorrt")).violations
    stored = {n.output[0] for n in nodes(of_onnxruntime, "QuantizeLinear")}
    assert {v.rule for v in found} == {"activation-type"}
    assert {v.message.split("'")[1] for v in found} == stored
    po2 = lint(of_onnxruntime, profile_named("vitis-dpu")).violations
    scales = {n.output[0]: _scale(of_onnxruntime, n) for n in nodes(of_onnxruntime, "QuantizeLinear")}
    assert {v.message.split("'")[1] for v in po2 if v.rule == "activation-scale"} == {k for k, s in scales.items() if not is_power_of_two(s)}


def _scale(model: ModelProto, node: NodeProto) -> float:
    return float(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == node.input[1]))


NNCF = """
import sys, numpy as np, onnx, nncf
model, data = onnx.load(sys.argv[1]), np.load(sys.argv[2])["input"][:16]
onnx.save(nncf.quantize(model, nncf.Dataset([{"input": x[None]} for x in data])), sys.argv[3])
"""


def test_nncfs_quantizer(tmp_path: Path) -> None:
    """It quantizes operands alone, those of depthwise convolutions per channel: so does OpenVINO want it, and HTP and TensorRT do not."""
    python = os.environ.get("QC_PEERS_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import nncf, onnx"], capture_output=True).returncode:
        pytest.skip(f"nncf is not installed for {python}; name a Python that has it in QC_PEERS_PYTHON")
    path = tmp_path / "nncf.onnx"
    done = subprocess.run([python, "-c", NNCF, NETWORK, MODELS / "digits_calib.npz", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = onnx.load(path)
    ours, htp, trt = (lint(model, profile_named(p)) for p in ("openvino", "qnn", "tensorrt"))
    assert (ours.violations, ours.fallbacks) == ((), ())
    assert {v.rule for v in htp.violations} == {"dynamic-shape", "activation-axis"}
    depthwise = {n.input[0] for n in nodes(model, "Conv") if any(a.name == "group" and a.i > 1 for a in n.attribute)}
    read = {n.input[0] for n in nodes(model, "DequantizeLinear") if n.output[0] in depthwise}
    assert {v.message.split("'")[1] for v in htp.violations if v.rule == "activation-axis"} <= read
    assert {f.operator for f in htp.fallbacks} == {"Flatten", "Gemm"}
    assert {v.rule for v in trt.violations} == {"activation-type", "activation-axis"}


# --- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_judges_and_exits(tmp_path: Path) -> None:
    onnx.save(exported("qnn", "uint8"), tmp_path / "m.onnx")
    assert invoke("lint", tmp_path / "m.onnx", "--profile", "qnn").exit_code == 0
    result = invoke("lint", tmp_path / "m.onnx", "--profile", "vitis-dpu", "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert not told["ok"]
    assert {"rule", "node", "operator", "message", "remedy"} == set(told["violations"][0])
    spoken = invoke("lint", tmp_path / "m.onnx", "--profile", "vitis-dpu")
    assert spoken.exit_code == 1
    assert f"{len(told['violations'])} violations, {len(told['fallbacks'])} of {told['operators']} operators would run in float" in spoken.output
    assert invoke("lint", tmp_path / "m.onnx", "--profile", "qnm").exit_code == 2


def test_a_target_may_name_a_profile(tmp_path: Path) -> None:
    place = tmp_path / "v.onnx"
    arguments = ("--calib", MODELS / "digits_calib.npz", "--limit", "16", "-o", place)
    result = invoke(NETWORK, "--target", "onnx-qdq:vitis-dpu", *arguments, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["violations"], told["fallbacks"]) == (0, 0)
    assert lint(onnx.load(place), profile_named("vitis-dpu")).violations == ()
    for wrong in (("onnx-qdq:none",), ("onnx-qoperator:qnn",), ("onnx-qdq:qnn:int4",), ("onnx-qdq:qnn", "--scales", "power-of-two")):
        assert invoke(NETWORK, "--target", *wrong, *arguments).exit_code == 2
