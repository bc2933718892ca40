"""Pixels in, class out: what stands around a network, inside of its program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.backends.onnx import export_qdq, export_qoperator
from qcompiler.errors import ModelError, UsageError
from qcompiler.frontend.ends import Pixels, as_pixels, give_bytes, name_classes, take_pixels
from qcompiler.frontend.importer import import_model
from qcompiler.ir.graph import Graph
from qcompiler.ir.integer import IntCast, IntConv
from qcompiler.ir.ops import Transpose
from qcompiler.passes.pipeline import quantize

MODELS = Path(__file__).parents[2] / "models"
RESNET = MODELS / "digits_resnet.onnx"
COLOR = Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def color_network(pads: int = 1) -> onnx.ModelProto:
    """A convolution of three channels, a second one, and the mean of the image."""
    generator = np.random.default_rng(3)
    w = [generator.standard_normal(s).astype(np.float32) * 0.2 for s in ((8, 3, 3, 3), (5, 8, 1, 1))]
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["a"], pads=[pads] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["scores"]),
    ]
    source = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 12, 10])
    result = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5])
    graph = helper.make_graph(nodes, "color", [source], [result], [numpy_helper.from_array(x, f"w{i}") for i, x in enumerate(w)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def floats(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: row[None]})[0] for row in x])


def pictures(count: int = 8) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 3, 12, 10), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_float_network_of_pixels_is_the_same_function(layout: str) -> None:
    bytes_in, model = pictures(), color_network()
    normalized = (bytes_in / 255 - np.reshape(COLOR.mean, (3, 1, 1))) / np.reshape(COLOR.std, (3, 1, 1))
    given = bytes_in.transpose(0, 2, 3, 1) if layout == "nhwc" else bytes_in
    of_pixels = take_pixels(model, Pixels(COLOR.mean, COLOR.std, layout=layout))
    onnx.checker.check_model(of_pixels)
    assert np.allclose(floats(of_pixels, np.ascontiguousarray(given)), floats(model, normalized.astype(np.float32)), atol=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_preprocessed_images_become_the_bytes_they_were(layout: str) -> None:
    bytes_in = pictures()
    normalized = ((bytes_in / 255 - np.reshape(COLOR.mean, (3, 1, 1))) / np.reshape(COLOR.std, (3, 1, 1))).astype(np.float32)
    found = as_pixels(normalized, color_network(), Pixels(COLOR.mean, COLOR.std, layout=layout))
    expected = bytes_in.transpose(0, 2, 3, 1) if layout == "nhwc" else bytes_in
    assert np.array_equal(found, expected)
    assert np.array_equal(as_pixels(bytes_in, color_network(), Pixels(layout=layout)), expected)


@pytest.mark.parametrize("target", [*TARGETS])
def test_programs_of_every_target_take_all_256_values(target: str) -> None:
    """Bytes of channels last, mean and deviation of each channel; every target the bits of the reference."""
    row = TARGETS[target]
    data = np.ascontiguousarray(pictures(4).transpose(0, 2, 3, 1))
    data.reshape(-1)[:256] = np.arange(256)
    model = take_pixels(color_network(), Pixels(COLOR.mean, COLOR.std, layout="nhwc"))
    program = qcompiler.compile(model, row if row.runs_here else row.generic(), [{"image": data}])
    (source,) = program.interface.inputs
    assert (source.dtype, source.storage, source.shape, source.scale) == ("uint8", "uint8", (1, 12, 10, 3), None)
    found, expected = program.run({"image": data})["scores"], program.reference({"image": data})["scores"]
    assert found.tobytes() == expected.tobytes()
    real = floats(model, data)
    assert np.sqrt(np.mean((found - real) ** 2)) < 0.05 * np.sqrt(np.mean(real**2))
    assert not [v for v in program.graph.order if isinstance(v.op, Transpose)], "channels-last pixels are moved nowhere"


def test_mean_and_deviation_vanish_where_nothing_is_padded() -> None:
    model = take_pixels(color_network(pads=0), Pixels(COLOR.mean, COLOR.std))
    graph = qcompiler.compile(model, calibration=[{"image": pictures()}]).graph
    assert sum(isinstance(v.op, IntConv) for v in graph.order) == 2
    assert sum(isinstance(v.op, IntCast) for v in graph.order) == 1


def test_pixels_to_classes_on_the_bundled_digits() -> None:
    """As accurate as the float network, to half a percent, with bytes in and a number out, and no float anywhere."""
    model = name_classes(take_pixels(str(RESNET), Pixels(layout="nhwc")))
    calib, data = np.load(MODELS / "digits_calib.npz")["input"], np.load(MODELS / "digits_eval.npz")
    calib, given = (as_pixels(x, str(RESNET), Pixels(layout="nhwc")) for x in (calib, data["input"]))
    assert given.shape == (500, 8, 8, 1)
    program = qcompiler.compile(model, calibration=[{"input": calib}])
    ((name, found),) = program.run({"input": given}).items()
    assert (name, found.dtype, found.shape) == ("logits.argmax", np.int64, (500,))
    assert (found == data["labels"]).mean() >= 0.985
    ((_, integer),) = program.run_integer({"input": given}).items()
    assert np.array_equal(found, integer)


def quantized_end(kind: int, bounded: bool = True, transposed: bool = False) -> onnx.ModelProto:
    """The network of colors without its mean, its sigmoid as integers of `kind`, perhaps channels-last."""
    model = color_network()
    del model.graph.node[3:], model.graph.output[:]
    zero = np.array(32768 if kind == TensorProto.UINT16 else 0, helper.tensor_dtype_to_np_dtype(kind))
    model.graph.initializer.append(numpy_helper.from_array(zero, "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "step"))
    last = ["q"] if transposed else ["answer"]
    model.graph.node.append(helper.make_node("Sigmoid", ["c"], ["p"]))
    model.graph.node.append(helper.make_node("QuantizeLinear", ["p" if bounded else "c", "step", "zero"], last))
    if transposed:
        model.graph.node.append(helper.make_node("Transpose", last, ["answer"], perm=(0, 2, 3, 1)))
    model.graph.output.append(helper.make_tensor_value_info("answer", kind, [1, "a", "b", "c"]))
    model.opset_import[0].version = 21
    model.ir_version = 10
    return model


ENDS = {
    "u8": quantized_end(TensorProto.UINT8),
    "i8": quantized_end(TensorProto.INT8),
    "u8 channels-last": quantized_end(TensorProto.UINT8, transposed=True),
    "i16": quantized_end(TensorProto.INT16, bounded=False),
    "u16": quantized_end(TensorProto.UINT16, bounded=False, transposed=True),
}


@pytest.mark.parametrize("target", [*TARGETS])
@pytest.mark.parametrize("name", ENDS)
def test_quantized_outputs_are_integers_of_the_declared_type(name: str, target: str) -> None:
    """`run`, `run_integer` and the reference alike, near what onnxruntime makes of the float part."""
    row, model = TARGETS[target], ENDS[name]
    data, model = pictures(3), take_pixels(model, COLOR)
    program = qcompiler.compile(model, row if row.runs_here else row.generic(), [{"image": data}])
    expected, reference = floats(model, data), program.reference({"image": data})["answer"]
    assert reference.dtype == expected.dtype
    assert reference.tobytes() == program.run({"image": data})["answer"].tobytes() == program.run_integer({"image": data})["answer"].tobytes()
    (described,) = program.interface.outputs
    assert (described.dtype, described.storage, described.scale) == (str(expected.dtype), str(expected.dtype), None)
    assert np.sqrt(np.mean((reference.astype(float) - expected) ** 2)) < 5
    assert expected.std() > 10
    assert expected.shape == reference.shape


@pytest.mark.parametrize("export_model", [export_qdq, export_qoperator])
@pytest.mark.parametrize("name", [n for n in ENDS if "8" in n])
def test_quantized_outputs_are_exported_in_the_declared_type(name: str, export_model: Callable[[Graph], onnx.ModelProto]) -> None:
    data = (np.random.default_rng(1).standard_normal((3, 3, 12, 10)) * 0.7).astype(np.float32)
    made = export_model(quantize(import_model(ENDS[name]), [{"image": data}]).exchange_graph)
    onnx.checker.check_model(made)
    found, expected = floats(made, data), floats(ENDS[name], data)
    assert found.dtype == expected.dtype
    assert np.sqrt(np.mean((found.astype(float) - expected) ** 2)) < 5


@pytest.mark.parametrize("step", [1 / 255, 0.01])
def test_the_answer_in_bytes(step: float) -> None:
    model = give_bytes(color_network(), step)
    onnx.checker.check_model(model)
    data = (np.random.default_rng(1).standard_normal((16, 3, 12, 10)) * 2).astype(np.float32)
    program = qcompiler.compile(model, calibration=[{"image": data}])
    ((name, found),) = program.run({"image": data}).items()
    real = np.clip(np.rint(floats(color_network(), data) / step), 0, 255)
    assert (name, found.dtype) == ("scores.u8", np.uint8)
    assert np.abs(found - real).max() <= 4
    assert found.max() > 10 * 4
    with pytest.raises(UsageError, match="positive step"):
        give_bytes(color_network(), 0.0)
    with pytest.raises(UsageError, match="expected real numbers to give as bytes, found output 'scores.u8' of UINT8"):
        give_bytes(model)


def test_a_declared_type_of_another_width_is_refused() -> None:
    model = quantized_end(TensorProto.UINT8)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT16
    with pytest.raises(ModelError, match="output 'answer' is declared INT16"):
        qcompiler.compile(model, calibration=None)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (Pixels(mean=(0.5, 0.5)), "--mean has 2 values, expected 1 or 3"),
        (Pixels(std=(0.0,)), "other than zero"),
        (Pixels(layout="hwcn"), "expected the layout nchw or nhwc"),
    ],
)
def test_wrong_numbers_are_refused(pixels: Pixels, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        take_pixels(color_network(), pixels)


def test_what_is_no_image_is_refused() -> None:
    model = color_network()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.raises(UsageError, match="images of 1, 3 or 4 channels, found 'image'"):
        take_pixels(model, Pixels())
    with pytest.raises(UsageError, match="found int32"):
        as_pixels(np.zeros((1, 3, 12, 10), np.int32), color_network(), Pixels())
