"""Models that arrive quantized: their own scales, and the answers that onnxruntime gives for the same graph, within one step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from trained_graphs import FORMS, Trained

import qcompiler
from qcompiler.api import QuantizedModel, quantize_model, reference_run
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.ops import Quantize

LARGEST_SHARE = 0.05
"""Of elements that differ by the one step: those whose exact value lies near a tie of theirs or ours."""


def samples(model: onnx.ModelProto, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    (x,) = model.graph.input
    return [{x.name: rng.normal(0, 1.5, [d.dim_value for d in x.type.tensor_type.shape.dim]).astype(np.float32)} for _ in range(count)]


def exact(model: onnx.ModelProto) -> ort.InferenceSession:
    """onnxruntime as the graph is written: no fusion, all between the pairs in float."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def last_scale(model: onnx.ModelProto) -> float:
    """That of the pair at the end."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return float(tensors[model.graph.node[-1].input[1]])


@pytest.mark.parametrize("form", [f for f in FORMS if f != "contrib-pairs"])
def test_answers_are_those_of_the_graph_within_a_step(form: str) -> None:
    model = FORMS[form]()
    made, session, step = quantize_model(model), exact(model), last_scale(model)
    ours, theirs = (
        np.stack(answers)
        for answers in zip(*((*reference_run(made.graphs.integer_graph, f).values(), *session.run(None, f)) for f in samples(model)))
    )
    steps = np.abs(ours - theirs) / step
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < LARGEST_SHARE
    assert np.ptp(theirs) > 10 * step


def stored_scales(made: QuantizedModel) -> set[float]:
    return {v.type.quant.scale[0] for v in made.graphs.qdq_graph.order if isinstance(v.op, Quantize) and v.type.quant and v.type.quant.bits <= 8}


@pytest.mark.parametrize("form", [f for f in FORMS if f != "contrib-pairs"])
def test_scales_are_the_models_own(form: str) -> None:
    """All that is stored in 8 bits; the operand of an addition that no pair stores has 16."""
    model = FORMS[form]()
    theirs = {float(s) for t in model.graph.initializer for s in numpy_helper.to_array(t).ravel() if t.data_type == onnx.TensorProto.FLOAT}
    assert stored_scales(quantize_model(model)) <= theirs


@pytest.mark.parametrize("form", ["tensorrt-residual", "transposed-convolution", "brevitas-weights-of-four-bits", "concatenated"])
def test_programs_give_the_same_bits(form: str) -> None:
    model = FORMS[form]()
    program = qcompiler.compile(model)
    for feeds in samples(model, 2):
        (ours,), (expected,) = program.run(feeds).values(), program.reference(feeds).values()
        np.testing.assert_array_equal(ours, expected)


def sixteen_bits_multiplied() -> onnx.ModelProto:
    t = Trained()
    return t.end(t.op("Conv", t.image(2.0**-12, np.int16(0)), t.stored_weights(6, 4, 3, 3)), opset=21)


def sixteen_bits_off_centre() -> onnx.ModelProto:
    t = Trained()
    return t.end(t.op("Conv", t.image(), t.stored_weights(6, 4, 3, 3)), 2.0**-9, np.uint16(30000), opset=21)


def scales_per_channel_of_activations() -> onnx.ModelProto:
    t = Trained()
    x = t.pair(t.input(1, 4, 8, 8), t.scales(4) * 10, np.zeros(4, np.int8), axis=1)
    return t.end(t.op("Conv", x, t.stored_weights(6, 4, 3, 3)))


def another_scale_behind() -> onnx.ModelProto:
    t = Trained()
    q = t.op("QuantizeLinear", t.input(1, 4, 8, 8), np.float32(0.02), np.uint8(128))
    return t.end(t.op("Relu", t.op("DequantizeLinear", q, np.float32(0.03), np.uint8(128))))


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "16 bits multiplied": (sixteen_bits_multiplied, r"QuantizeLinear '\S+' gives 16 bits to Conv '\S+'; products are of 8 bits"),
    "16 bits off centre": (sixteen_bits_off_centre, r"QuantizeLinear '\S+' gives 16 bits with a zero point that is not the middle"),
    "16 bits too fine": (
        FORMS["contrib-pairs"],
        r"QuantizeLinear '\S+' stores 16 bits in steps of 0.00195, of which its operand may reach \d+; expected at most 16384",
    ),
    "activations per channel": (scales_per_channel_of_activations, r"QuantizeLinear '\S+' gives activations 4 scales; expected one per tensor"),
    "another scale behind": (another_scale_behind, r"'\S+' does not have the scale and zero point of the QuantizeLinear before it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_arithmetic_is_refused_by_name(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=message):
        quantize_model(build())


def test_weights_that_move_are_said() -> None:
    """A zero point far from the middle leaves nine bits: those channels are rounded again, and the report says so."""
    t = Trained()
    w = t.op("DequantizeLinear", t.stored(6, 4, 3, 3, dtype=np.uint8, zero=60, low=-60, high=190), np.float32(0.0021), np.uint8(60))
    made = quantize_model(t.end(t.op("Conv", t.image(), w)))
    assert any("weights are not kept to the bit" in reason for _, reason in made.graphs.declined.reasons)
